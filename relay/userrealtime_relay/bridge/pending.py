"""What is to be told: of each user the newest standing only, and of no more users than there is room for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import islice
from typing import Final

from userrealtime_core.standing import Moved, Standing

MAX_USERS: Final = 100_000
"""About 20 MiB. What finds no room is told after the next look at the logs."""


class Pending:
    """A queue of users whose logs have moved, each at most once. `dropped` is how many found no room."""

    def __init__(self, max_users: int = MAX_USERS) -> None:
        self.dropped = 0
        self._max_users = max_users
        self._standings: dict[str, Standing] = {}
        self._some = asyncio.Event()

    def __len__(self) -> int:
        return len(self._standings)

    def add(self, moved: Iterable[Moved]) -> None:
        """Add users whose logs have grown. Within one epoch the greater head stays."""
        for user_id, standing in moved:
            waiting = self._standings.get(user_id)
            if waiting is None and len(self._standings) >= self._max_users:
                self.dropped += 1
            elif waiting is None or waiting.epoch != standing.epoch or waiting.head < standing.head:
                self._standings[user_id] = standing
                self._some.set()

    def put_back(self, moved: Iterable[Moved]) -> None:
        """Add users that could not be published, or were read before what waits. What waits stays."""
        self.add([each for each in moved if each.user_id not in self._standings])

    async def take(self, most: int) -> list[Moved]:
        """Those that wait longest, at least one of them: waits for it."""
        await self._some.wait()
        taken = [Moved(*item) for item in islice(self._standings.items(), most)]
        for user_id, _ in taken:
            del self._standings[user_id]
        if not self._standings:
            self._some.clear()
        return taken
