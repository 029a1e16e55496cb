"""The loop that sends broadcasts. It has a separate connection, so broadcasts do not delay signals.

    waiting  listens on the doorbell of broadcasts; callers ring
    polling  holds the lease; callers insert into the queue and do not notify

A broadcast is sent at most once. Whatever fails, it is dropped, and its caller is not affected.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Final

import asyncpg

from userrealtime_core.secret import Secret
from userrealtime_core.wire.broadcast import Broadcast

from .loop import OBSERVE_INTERVAL, POOLED_PAUSE, RENEW_INTERVAL, Loop
from .metrics import BroadcastMetrics
from .queue import BROADCAST_DOORBELL, BroadcastQueue
from .traffic import Traffic

ARM_INTERVAL: Final = 5.0
"""Seconds between two reports that this announcer waits. Each is valid for 15."""
QUIET_S: Final = 1.0
"""Seconds without a broadcast after which callers ring again."""
REMAINDER_S: Final = 30.0
"""Seconds without a broadcast for which open transactions that may commit one are waited for."""
IDLE_PAUSE: Final = 0.05
"""Seconds between two polls while only such transactions remain."""
PAUSE_PER_RATE: Final = 0.0000025
LONGEST_RATE_PAUSE: Final = 0.005
"""Seconds between two polls, by the number of broadcasts in the last second. A poll costs Postgres and this process
about 0.5 ms in addition to its broadcasts, so frequent polls would take the CPU that events need."""
LEASE_ATTEMPTS: Final = 8
"""How often a lease that another announcer holds is tried, a renewal interval apart. A lease lasts for four of them."""

_logger = logging.getLogger(__name__)


class Broadcaster(Loop):
    """Sends the broadcasts of one database. `run` it in one task.

    Args:
        url: of the database, as for the announcer.
        name: the application name of its connection.
        report: called with the broadcasts for relays that do not listen; None if there is no broker.
    """

    def __init__(
        self,
        url: Secret,
        name: str,
        metrics: BroadcastMetrics,
        report: Callable[[Sequence[Broadcast]], None] | None = None,
    ) -> None:
        super().__init__(url, name, metrics, _logger, "broadcasts")
        self._metrics = metrics
        self._report = report

    async def _serve(self, connection: asyncpg.Connection, *, hears: bool) -> None:
        self._queue = BroadcastQueue(connection, self._identity, pooled=not hears)
        await self._queue.prepare()
        self._position: str | None = None
        self._observe_at = self._arm_at = 0.0
        if hears:
            await connection.add_listener(BROADCAST_DOORBELL, lambda *_: self._ring.set())
        self._ring.set()  # for what an announcer that died has left
        while True:
            if hears:
                await self._wait_for_ring(connection)
            if await self._lease():
                await self._poll(for_good=not hears)
            self.connected = True

    async def _wait_for_ring(self, connection: asyncpg.Connection) -> None:
        while True:
            await self._maintain()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self._arm_at):
                    await self._ring.wait()
            if connection.is_closed():
                raise ConnectionResetError("the connection was lost")
            if self._ring.is_set():
                self._ring.clear()
                return

    async def _lease(self) -> bool:
        """Take the lease. False if another announcer keeps it, which then sends what has rung."""
        for _ in range(LEASE_ATTEMPTS):
            if await self._queue.lease():
                self._metrics.leased.set(1)
                return True
            await asyncio.sleep(RENEW_INTERVAL)
        return False

    async def _poll(self, *, for_good: bool) -> None:
        """Take and send broadcasts until there are none, or another announcer has the lease."""
        traffic = Traffic()
        renewed_at = taken_at = self._now()
        while True:
            taken = await self._take()
            now = self._now()
            if taken is None:
                break
            self.connected = True
            if taken:
                taken_at = now
            traffic.polled(now, taken)
            if now >= renewed_at + RENEW_INTERVAL:
                if not await self._queue.lease():
                    break
                renewed_at = now
            await self._maintain()
            quiet = now - taken_at >= QUIET_S
            if quiet and not for_good:
                # Later than this, what is left is dropped: a transaction may stay open for hours.
                remains = await self._queue.release(self._position)
                if not remains or now - taken_at >= REMAINDER_S or not await self._queue.lease():
                    break
                await asyncio.sleep(IDLE_PAUSE)
            else:
                await asyncio.sleep(POOLED_PAUSE if quiet else pause(traffic, taken, self._listeners))
        self._metrics.leased.set(0)

    async def _take(self) -> int | None:
        """Take and send what was committed since the last time. Returns how many; None without the lease."""
        try:
            taken = await self._queue.take(self._position)
        except asyncpg.ProgramLimitExceededError as error:
            _logger.warning(
                "could not send broadcasts: the notification queue of the server is full; they wait for at most 30 s",
                extra={"fields": {"error": str(error)}},
            )
            return 0
        if taken is None:
            return None
        self._position = taken.position
        self._metrics.taken.inc(taken.taken)
        self._metrics.sent.inc(taken.sent)
        if taken.broadcasts and self._report is not None:
            self._report(taken.broadcasts)
        return taken.taken

    async def _maintain(self) -> None:
        """What is due from time to time."""
        now = self._now()
        if now >= self._arm_at:
            await self._queue.arm()
            self._arm_at = now + ARM_INTERVAL
        if now >= self._observe_at:
            self._listeners = await self._queue.listeners()
            self._metrics.dropped.set(await self._queue.dropped())
            self._observe_at = now + OBSERVE_INTERVAL


def pause(traffic: Traffic, taken: int, listeners: int) -> float:
    """Return the seconds until the next poll, after a poll that has taken this number of broadcasts."""
    by_rate = min(traffic.recent * PAUSE_PER_RATE, LONGEST_RATE_PAUSE)
    return max(traffic.pause(taken, listeners), by_rate)
