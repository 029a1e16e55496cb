"""Signals that wait for the broker: of each user the newest one, and a limited number of users."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import islice
from typing import Final

from userrealtime_core.wire.position import LogMoved, LogPosition

MAX_USERS: Final = 100_000
"""About 20 MiB. The next poll publishes the signals that exceed it."""


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
