"""What is to be told: of each user the newest standing only, and of no more users than there is room for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import islice
from typing import Final

from userrealtime_relay.signals import Moved, Standing

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
        """The logs stand here now: what waited of the same users is old."""
        for user_id, standing in moved:
            if user_id not in self._standings and len(self._standings) >= self._max_users:
                self.dropped += 1
            else:
                self._standings[user_id] = standing
                self._some.set()

    def put_back(self, moved: Iterable[Moved]) -> None:
        """These could not be told; of who moved again meanwhile, the newer standing stays."""
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
