"""Traffic: several events a second for a short time, which a client misses while its pod is away."""

from __future__ import annotations

import asyncio
import contextlib
import time

from .database import Database, DatabaseError

INTERVAL_S = 0.25


class Traffic:
    """Publishes to the users for whom it was started. One task serves all users."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._until: dict[str, float] = {}

    def start(self, user: str, seconds: float) -> None:
        """Publish for so many seconds from now on, or longer if an earlier call requested that."""
        self._until[user] = max(self._until.get(user, 0.0), time.monotonic() + seconds)

    def stop(self, user: str) -> None:
        """Stop publishing to a user."""
        self._until.pop(user, None)

    async def run(self) -> None:
        """Publish at the interval. Never ends."""
        while True:
            for user in [user for user, until in self._until.items() if until > time.monotonic()]:
                # While the database does not answer, ticks are omitted. The log has no gap.
                with contextlib.suppress(DatabaseError):
                    await self._database.tick(user)
            await asyncio.sleep(INTERVAL_S)
