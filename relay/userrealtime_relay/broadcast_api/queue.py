"""The broadcasts that wait for the database, in a limited number, and the loop that writes them.

A broadcast is written at most once. While there is no connection, none is accepted: it would arrive late.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from typing import Final, NamedTuple

import asyncpg

from userrealtime_core.postgres import CONNECTION_ERRORS, open_session
from userrealtime_core.reconnect import Reconnect
from userrealtime_core.secret import Secret

from .metrics import Metrics

NAME: Final = "userrealtime-broadcast-api"
MAX_PENDING: Final = 2000
"""At most about 14 MiB."""
BATCH: Final = 500
CONNECT_TIMEOUT: Final = 10
QUERY_TIMEOUT: Final = 20
CHECK_INTERVAL: Final = 5.0
"""Seconds without a broadcast after which the connection is checked."""

DRAIN_TIMEOUT: Final = 5.0

_BROADCAST: Final = """
select userrealtime.broadcast(b.user_id, b.event, b.data::jsonb)
from unnest($1::text[], $2::text[], $3::text[]) as b (user_id, event, data)
"""

_logger = logging.getLogger(__name__)


class PendingBroadcast(NamedTuple):
    """A broadcast that is accepted. `data` is JSON."""

    user_id: str
    event: str
    data: str


class BroadcastWriter:
    """Writes broadcasts to the queue in the database. `run` it in one task."""

    def __init__(self, url: Secret, metrics: Metrics, max_pending: int = MAX_PENDING) -> None:
        self._url = url
        self._metrics = metrics
        self._max_pending = max_pending
        self._pending: deque[PendingBroadcast] = deque()
        self._some = asyncio.Event()
        self._idle = asyncio.Event()  # nothing waits, and nothing is being written
        self._idle.set()
        self.connected = False
        """Whether there is a connection that may call `userrealtime.broadcast`."""
        metrics.pending.set_function(lambda: len(self._pending))

    @property
    def is_full(self) -> bool:
        """Whether no more broadcasts are accepted."""
        return len(self._pending) >= self._max_pending

    def add(self, broadcast: PendingBroadcast) -> None:
        """Add a broadcast. The caller has checked `connected` and `is_full`."""
        self._pending.append(broadcast)
        self._idle.clear()
        self._some.set()

    async def drain(self) -> None:
        """Wait until the accepted broadcasts are written, for at most `DRAIN_TIMEOUT` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_TIMEOUT):
                await self._idle.wait()

    async def run(self) -> None:
        """Write until cancelled."""
        reconnect = Reconnect(CONNECTION_ERRORS, _logger, "no connection to Postgres for broadcasts, retrying")

        async def session() -> None:
            # A transaction pooler does not support prepared statements.
            connection = await open_session(
                self._url,
                name=NAME,
                connect_timeout=CONNECT_TIMEOUT,
                query_timeout=QUERY_TIMEOUT,
                statement_cache_size=0,
            )
            try:
                await self._write_all(connection, reconnect)
            finally:
                connection.terminate()

        def failed() -> None:
            self.connected = False
            self._metrics.failures.inc()
            self._lose(len(self._pending))
            self._pending.clear()
            self._some.clear()
            self._idle.set()

        await reconnect.run(session, failed)

    async def _write_all(self, connection: asyncpg.Connection, reconnect: Reconnect) -> None:
        connection.add_termination_listener(lambda _: self._some.set())
        await self._write(connection, [])  # raises if the role lacks a right
        reconnect.succeeded()
        self.connected = True
        _logger.info("connected to Postgres")
        while True:
            batch = await self._take()
            try:
                await self._write(connection, batch)
            except (asyncpg.DataError, asyncpg.ProgramLimitExceededError):
                await self._write_each(connection, batch)
            except BaseException:
                self._lose(len(batch))
                raise
            if not self._pending:
                self._idle.set()

    async def _take(self) -> list[PendingBroadcast]:
        """Remove and return the oldest broadcasts; none after `CHECK_INTERVAL`, to check the connection."""
        try:
            async with asyncio.timeout(CHECK_INTERVAL):
                await self._some.wait()
        except TimeoutError:
            return []
        batch = [self._pending.popleft() for _ in range(min(BATCH, len(self._pending)))]
        if not self._pending:
            self._some.clear()
        return batch

    async def _write(self, connection: asyncpg.Connection, batch: list[PendingBroadcast]) -> None:
        columns = [list(column) for column in zip(*batch, strict=True)] or [[], [], []]
        await connection.execute(_BROADCAST, *columns)
        self._metrics.written.inc(len(batch))

    async def _write_each(self, connection: asyncpg.Connection, batch: list[PendingBroadcast]) -> None:
        """Write broadcasts of which the database has rejected one, such as a number that it writes with more digits."""
        for place, broadcast in enumerate(batch):
            try:
                await self._write(connection, [broadcast])
            except (asyncpg.DataError, asyncpg.ProgramLimitExceededError) as error:
                self._lose(1)
                # Only the type: the message of Postgres may quote the data.
                _logger.warning("the database rejects a broadcast", extra={"fields": {"error": type(error).__name__}})
            except BaseException:
                self._lose(len(batch) - place)
                raise

    def _lose(self, number: int) -> None:
        self._metrics.lost.inc(number)
