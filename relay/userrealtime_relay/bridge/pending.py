"""What waits for the broker: signals, of each user the newest one, and broadcasts, each in a limited number."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final

from userrealtime_core.wire.broadcast import Broadcast
from userrealtime_core.wire.position import LogMoved, LogPosition

MAX_USERS: Final = 100_000
"""About 20 MiB. The next poll publishes the signals that exceed it."""
MAX_BROADCASTS: Final = 10_000
"""At most about 70 MiB. Broadcasts that exceed it are dropped."""


class Pending:
    """A queue of users whose logs have grown, each at most once. `dropped` counts what exceeded the limit."""

    def __init__(self, max_users: int = MAX_USERS) -> None:
        self.dropped = 0
        self._max_users = max_users
        self._standings: dict[str, LogPosition] = {}
        self._some = asyncio.Event()

    def __len__(self) -> int:
        return len(self._standings)

    def add(self, moved: Iterable[LogMoved]) -> None:
        """Add users whose logs have grown. Within one epoch the greater head stays."""
        for user_id, position in moved:
            waiting = self._standings.get(user_id)
            if waiting is None and len(self._standings) >= self._max_users:
                self.dropped += 1
            elif waiting is None or waiting.epoch != position.epoch or waiting.head < position.head:
                self._standings[user_id] = position
                self._some.set()

    def put_back(self, moved: Iterable[LogMoved]) -> None:
        """Add users that could not be published, or were read before what waits. What waits stays."""
        self.add([each for each in moved if each.user_id not in self._standings])

    async def take(self, most: int) -> list[LogMoved]:
        """Remove and return up to `most` of the users that have waited longest. Wait until there is one."""
        await self._some.wait()
        taken = [LogMoved(*item) for item in islice(self._standings.items(), most)]
        for user_id, _ in taken:
            del self._standings[user_id]
        if not self._standings:
            self._some.clear()
        return taken


class PendingBroadcasts:
    """A queue of broadcasts, in their order."""

    def __init__(self, most: int = MAX_BROADCASTS) -> None:
        self._most = most
        self._queue: deque[Broadcast] = deque()
        self._some = asyncio.Event()

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, broadcasts: Sequence[Broadcast]) -> int:
        """Add broadcasts. Returns how many are dropped because the queue is full."""
        accepted = broadcasts[: max(0, self._most - len(self._queue))]
        self._queue.extend(accepted)
        if self._queue:
            self._some.set()
        return len(broadcasts) - len(accepted)

    def take(self, most: int) -> list[Broadcast]:
        """Remove and return up to `most` of the oldest."""
        taken = [self._queue.popleft() for _ in range(min(most, len(self._queue)))]
        if not self._queue:
            self._some.clear()
        return taken

    def clear(self) -> int:
        """Drop all. Returns how many."""
        return len(self.take(len(self._queue)))

    async def wait(self) -> None:
        """Wait until there is one."""
        await self._some.wait()
