"""Reads, every poll interval, the heads of the logs of all users that have a running relay.

A relay that receives its present head this way is up to date without a query to Postgres.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from typing import Final

import asyncpg

from userrealtime_core.reconnect import Reconnect
from userrealtime_core.secret import Secret
from userrealtime_core.wire.position import LogMoved, LogPosition
from userrealtime_relay.log.log import ERRORS, connect

from .metrics import Metrics
from .pending import Pending

NAME: Final = "userrealtime-bridge"

SPREAD: Final = 0.5
"""The part of a poll interval over which the heads of one poll are published. If thousands of relays got a signal at
the same moment, new events would wait behind them."""
SLICE: Final = 50

_HEADS: Final = "select user_id, head, epoch from userrealtime.heads() order by user_id"

_logger = logging.getLogger(__name__)


class Poller:
    """Adds the heads of all logs to `pending`. `run` it in one task."""

    def __init__(self, url: Secret, poll_interval: float, pending: Pending, metrics: Metrics) -> None:
        self._url = url
        self._poll_interval = poll_interval
        self._pending = pending
        self._metrics = metrics
        self.connected = False
        """Whether it has read the heads since it connected last."""
        self._due = asyncio.Event()

    def poll_now(self) -> None:
        """Poll now: the signals that were published last may be lost."""
        self._due.set()

    async def run(self) -> None:
        """Poll until cancelled."""
        reconnect = Reconnect(ERRORS, _logger, "no connection to Postgres, retrying")

        async def session() -> None:
            # A transaction pooler does not support prepared statements.
            connection = await connect(self._url, name=NAME, statement_cache_size=0)
            try:
                await self._follow(connection)
            finally:
                connection.terminate()

        def failed() -> None:
            self._metrics.postgres_failures.inc()
            if self.connected:
                reconnect.succeeded()
            self.connected = False

        await reconnect.run(session, failed)

    async def _follow(self, connection: asyncpg.Connection) -> None:
        """Poll over this connection, until it fails with one of ERRORS."""
        connection.add_termination_listener(lambda _: self._due.set())
        at_once = True
        while True:
            self._due.clear()
            period = self._poll_interval * random.uniform(0.8, 1)  # noqa: S311 (no secret)
            rows = await connection.fetch(_HEADS)
            self._metrics.polls.inc()
            if not self.connected:
                self.connected = True
                _logger.info("connected to Postgres", extra={"fields": {"users": len(rows)}})
            spread = 0 if at_once else period * SPREAD
            await self._publish(rows, spread)
            # A poll without spread is followed by one with spread no later than a period after it.
            at_once = await self._is_due(period * (1 - SPREAD))

    async def _publish(self, rows: list[asyncpg.Record], spread: float) -> None:
        """Add all heads over so many seconds, or until another poll is due, which adds all of them again."""
        pause = spread * SLICE / max(SLICE, len(rows))
        for begin in range(0, len(rows), SLICE):
            # A signal that waits is newer than this poll.
            self._pending.put_back(
                LogMoved(user_id, LogPosition(head, epoch)) for user_id, head, epoch in rows[begin : begin + SLICE]
            )
            if pause and await self._is_due(pause):
                break

    async def _is_due(self, within: float) -> bool:
        """Whether another poll is due, within so many seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self._due.wait()
        return self._due.is_set()
