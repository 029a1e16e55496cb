"""Events for a user, several a second, for a short time: so that there is something to miss while a pod is away."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time

from .database import Database, DatabaseError

INTERVAL_S = 0.25


class Traffic:
    """Publishes to those users for whom it was started. One task, however many they are."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._until: dict[str, float] = {}
        self._numbers = itertools.count(1)

    def start(self, user: str, seconds: float) -> None:
        """Publish for so long from now on, or as long as was asked for already."""
        self._until[user] = max(self._until.get(user, 0.0), time.monotonic() + seconds)

    def stop(self, user: str) -> None:
        """Publish no more."""
        self._until.pop(user, None)

    async def run(self) -> None:
        """Never ends."""
        while True:
            for user in [user for user, until in self._until.items() if until > time.monotonic()]:
                # While the database is away, ticks are left out; the log has no gap.
                with contextlib.suppress(DatabaseError):
                    await self._database.publish(user, "tick", {"number": next(self._numbers)})
            await asyncio.sleep(INTERVAL_S)
