"""The check whether the database is available."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from .database import Database, DatabaseError

PING_FRESH_S = 5.0
"""Seconds for which a result is used again."""


class DatabaseHealth:
    """Checks the database for many callers: all calls within `PING_FRESH_S` seconds share one query.

    When the database becomes unavailable, all users are reconciled, and each reconciliation calls `check`.
    """

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock
        self._lock = asyncio.Lock()
        self._checked_at = -math.inf
        self._error: DatabaseError | None = None

    async def check(self) -> DatabaseError | None:
        """Return the error of the last check, None if the database answered.

        It returns within twice `database.PING_TIMEOUT_S` seconds.
        """
        async with self._lock:
            if self._clock() - self._checked_at >= PING_FRESH_S:
                try:
                    await self._database.ping()
                    self._error = None
                except DatabaseError as error:
                    self._error = error
                self._checked_at = self._clock()
            return self._error
