"""The connection to the log that the tail opens and that all clients of the relay use.

With a broker, the tail closes a connection that has been idle. The connection then counts as *idle* and not as lost:
the next `acquire` opens it again.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from userrealtime_core.wire.submission import Unavailable
from userrealtime_relay.metrics import Metrics

from .log import CONNECT_TIMEOUT, Log

BUSY_RECHECK_S: Final = 0.1
"""Seconds until an idle connection is checked again that was in use when it was to be closed."""


class LogConnection:
    """At most one `Log` at a time.

    Args:
        idle_after: seconds without use after which the connection may be closed; None if it stays open.
    """

    def __init__(self, idle_after: float | None, metrics: Metrics) -> None:
        self.log: Log | None = None
        """The connection; None while there is no working one."""
        self.idle = False
        """Whether the last connection was closed because it was not used."""
        self.needed = asyncio.Event()
        """Set when a connection should be opened."""
        self._idle_after = idle_after
        self._metrics = metrics
        self._available = asyncio.Event()
        self._users = 0
        self._used_at = -math.inf  # on the loop's clock

    @property
    def lost(self) -> bool:
        """Whether Postgres is not known to be reachable."""
        return self.log is None and not self.idle

    @property
    def resting(self) -> bool:
        """Whether there is no connection because none is needed."""
        return self.log is None and self.idle and not self.needed.is_set()

    def attach(self, log: Log) -> None:
        """Let others use this connection."""
        self.log = log
        self.needed.clear()
        self._available.set()
        self._metrics.log_connected.set(1)

    def detach(self, log: Log) -> None:
        """End the use of this connection: `acquire` waits for another one."""
        if self.log is log:
            self.log = None
            self._available.clear()
            self._metrics.log_connected.set(0)

    def discard(self, log: Log) -> None:
        """Drop a connection that has failed. The tail notices it, and so does every query under way."""
        log.abandon()
        self.detach(log)

    def used(self) -> None:
        """Note that the connection was used just now."""
        self._used_at = asyncio.get_running_loop().time()

    def close_at(self) -> float:
        """Return the time by the loop's clock at which the connection may be closed if it is not used before."""
        if self._idle_after is None:
            return math.inf
        if self._users:
            return asyncio.get_running_loop().time() + BUSY_RECHECK_S
        return self._used_at + self._idle_after

    async def wait(self) -> Log:
        """Wait, without limit, for a connection."""
        while self.log is None:
            self.needed.set()
            await self._available.wait()
        return self.log

    @asynccontextmanager
    async def acquire(self, *, using: bool = True) -> AsyncIterator[Log]:
        """Wait, without limit, for the connection. It stays open inside the block.

        Args:
            using: whether this counts as use, which keeps the connection open for a while.
        """
        self._users += 1
        try:
            yield await self.wait()
        finally:
            self._users -= 1
            if using:
                self.used()

    @asynccontextmanager
    async def acquire_soon(self, *, using: bool = True) -> AsyncIterator[Log]:
        """As `acquire`, but wait only as long as connecting may take.

        Raises:
            Unavailable: Postgres is unreachable; immediately, if that is known.
        """
        unreachable = Unavailable("the database is unreachable; repeat the message with the same ref")
        if self.lost:
            raise unreachable
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT) as limit, self.acquire(using=using) as log:
                limit.reschedule(None)  # every query has a time limit
                yield log
        except TimeoutError:
            if limit.expired():
                raise unreachable from None
            raise
