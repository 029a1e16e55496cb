"""The bridge's end in Postgres: what is notified, and what is read beneath it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
from typing import Final

import asyncpg

from userrealtime_relay.backoff import backoff
from userrealtime_relay.config import Secret
from userrealtime_relay.log import ERRORS, connect, hears, is_direct
from userrealtime_relay.signals import Moved, Standing

from .metrics import Metrics
from .pending import Pending

CHANNEL: Final = "userrealtime"
NAME: Final = "userrealtime-bridge"
POOLED_INTERVAL: Final = 1.0
"""Seconds between two looks where no notification comes through."""

SPREAD: Final = 0.5
"""Of the time to the next look: in which a look that nothing waits for tells of the logs, a few at a time. Thousands of
relays that heard at the same moment would all be busy then, and so would the machines, before what is new."""
SLICE: Final = 50

_HEADS: Final = "select user_id, head, epoch from userrealtime.heads() order by user_id"
_SETTINGS: Final = """
set statement_timeout = 18000;
set tcp_keepalives_idle = 30;
set tcp_keepalives_interval = 10;
set tcp_keepalives_count = 3
"""

_logger = logging.getLogger(__name__)


def parse(payload: str) -> list[Moved]:
    """What a notification says: `{"user": [head, "epoch"], …}`.

    Raises:
        ValueError: it says nothing of the kind. Anyone may notify.
    """
    try:
        moved = [_moved(user, head, epoch) for user, (head, epoch) in json.loads(payload).items()]
    except (AttributeError, TypeError, RecursionError) as error:
        raise ValueError(str(error)) from None
    return moved


def _moved(user: str, head: object, epoch: object) -> Moved:
    if not (isinstance(head, int) and 0 <= head < 2**63 and isinstance(epoch, str)):
        raise ValueError("no head and epoch")
    f"{user} {epoch}".encode()  # which what is no text cannot be
    return Moved(user, Standing(head, epoch))


class Source:
    """Tells `pending` what moves. `run` it in one task."""

    def __init__(self, url: Secret, poll_interval: float, pending: Pending, metrics: Metrics) -> None:
        self._url = url
        self._poll_interval = poll_interval
        self._pending = pending
        self._metrics = metrics
        self.connected = False
        """Whether it has read the logs since it connected last."""
        self._due = asyncio.Event()
        self._newer: set[str] | None = None  # during a look: who was notified of since it began

    def look(self) -> None:
        """Read where the logs stand at once, not only when it is time: what was told last may be lost."""
        self._due.set()

    async def run(self) -> None:
        """Follow the logs until cancelled."""
        attempt = 0
        while True:
            try:
                connection = await connect(self._url, name=NAME, statement_cache_size=0)
                try:
                    await self._follow(connection)
                finally:
                    connection.terminate()
            except ERRORS as error:
                self._metrics.postgres_failures.inc()
                attempt = 0 if self.connected else attempt + 1
                self.connected = False
                delay = backoff(attempt)
                _logger.warning(
                    "no connection to Postgres",
                    extra={
                        "fields": {
                            "error": f"{type(error).__name__}: {str(error) or 'timed out'}",
                            "retry_in_s": round(delay, 2),
                        }
                    },
                )
                await asyncio.sleep(delay)

    async def _follow(self, connection: asyncpg.Connection) -> None:
        """Returns never; raises one of ERRORS when the connection is lost."""
        interval, listens = self._poll_interval, True
        connection.add_termination_listener(lambda _: self._due.set())
        if await is_direct(connection) or await hears(self._url):
            await connection.execute(_SETTINGS)
            await connection.add_listener(CHANNEL, self._heard)
        else:
            interval, listens = min(interval, POOLED_INTERVAL), False
            _logger.warning(
                "LISTEN does not work here: DATABASE_URL leads to a pooler of transactions. The logs are polled "
                "instead; give the bridge a direct connection",
                extra={"fields": {"poll_interval_s": interval}},
            )
        at_once = True
        while True:
            self._due.clear()
            period = interval * random.uniform(0.8, 1)  # noqa: S311 (no secret)
            newer: set[str] = set()
            self._newer = newer
            rows = await connection.fetch(_HEADS)
            self._metrics.looks.inc()
            if not self.connected:
                self.connected = True
                _logger.info("connected to Postgres", extra={"fields": {"users": len(rows)}})
            spread = period * SPREAD if listens else 0
            await self._tell(rows, newer, 0 if at_once else spread)
            self._newer = None
            # After one that was told of at once, too: the next must not tell anybody later than in a period.
            at_once = await self._is_due(period - spread) or not listens

    async def _tell(self, rows: list[asyncpg.Record], newer: set[str], spread: float) -> None:
        """Tell of all logs over so many seconds, or until another look is due, which tells of all.

        `newer` is, at any time, who was notified of since the logs were read: their rows are the older news.
        """
        pause = spread * SLICE / max(SLICE, len(rows))
        for begin in range(0, len(rows), SLICE):
            self._pending.add(
                Moved(user_id, Standing(head, epoch))
                for user_id, head, epoch in rows[begin : begin + SLICE]
                if user_id not in newer
            )
            if pause and await self._is_due(pause):
                break

    async def _is_due(self, within: float) -> bool:
        """Whether another look is due, within so many seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self._due.wait()
        return self._due.is_set()

    def _heard(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        self._metrics.notifications.inc()
        try:
            moved = parse(str(payload))
        except ValueError:
            _logger.warning("a notification that cannot be understood: somebody else sends to this channel")
            return
        if self._newer is not None:
            self._newer.update(user_id for user_id, _ in moved)
        self._pending.add(moved)
