"""The loop of the announcer: four phases, each of which returns the next one.

    waiting      listens on the doorbell; publishers ring
    polling      holds the lease; publishers insert into the queue and do not notify
    settling     has ended the lease; polls until the transactions that did not ring have ended
    standing by  another announcer holds the lease

A second announcer costs nothing while it waits or stands by, and takes over within a second when the first one dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import asyncpg

from userrealtime_core.secret import Secret
from userrealtime_core.wire.position import LogMoved

from .loop import OBSERVE_INTERVAL, POOLED_PAUSE, RENEW_INTERVAL, Loop
from .metrics import Metrics
from .queue import DOORBELL, LEASE_MS, Queue
from .traffic import Traffic

FORGET_INTERVAL: Final = 1.0
CHECK_INTERVAL: Final = 5.0
"""Seconds between two checks while no publisher rings. The doorbell stays armed for at least 120."""
STANDBY_INTERVAL: Final = 0.5
FIRST_SETTLING_PAUSE: Final = 0.005
LONGEST_SETTLING_PAUSE: Final = 0.25
MAX_CHANNELS: Final = 100_000
"""Channels that have rung and are not looked up yet. Anyone can ring, so what exceeds this is dropped."""

Report = Callable[[Sequence[LogMoved]], None]
Phase = Callable[[], Awaitable["Phase"]]

_logger = logging.getLogger(__name__)


class Announcer(Loop):
    """Announces the users of one database. `run` it in one task.

    Args:
        url: of the database. With a direct connection, or a pooler of sessions, publishers ring while little happens.
            Behind a pooler of transactions the announcer polls all the time.
        name: the application name of its connection.
        report: called with the users whose logs have grown; None if relays only LISTEN.
        missed: called when rings may have been lost: when it has connected, and behind a transaction pooler after
            every time without a lease.
    """

    def __init__(
        self,
        url: Secret,
        name: str,
        metrics: Metrics,
        report: Report | None = None,
        missed: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(url, name, metrics, _logger, "announcements")
        self._metrics = metrics
        self._report = report
        self._missed = missed
        self._traffic = Traffic()
        self._rung: set[str] = set()

    async def _serve(self, connection: asyncpg.Connection, *, hears: bool) -> None:
        self._connection = connection
        self._hears = hears
        self._queue = Queue(connection, self._identity, pooled=not hears)
        await self._queue.prepare()
        if hears:
            await connection.add_listener(DOORBELL, self._rang)
        else:
            _logger.warning(
                "DATABASE_URL leads to a transaction pooler, where LISTEN does not work: the queue is polled all the "
                "time. Use a direct connection to save this load"
            )
        self._position: str | None = None
        self._forgotten: str | None = None
        self._rung.clear()
        await self._observe()
        self._forget_at = self._now() + FORGET_INTERVAL
        self._unheard: list[str] | None = None
        # Of the connection before this one.
        self._unsettled = await self._queue.end_lease()
        self._check_at = 0.0
        self._missed()
        phase: Phase = self._settle
        while True:
            phase = await phase()

    async def _wait(self) -> Phase:
        """Wait for publishers to ring. The queue is read as well, for what an announcer that died has left there."""
        if not self._hears:
            return await self._lease()
        while True:
            try:
                async with asyncio.timeout_at(self._check_at):
                    await self._ring.wait()
            except TimeoutError:
                if await self._queue.is_leased():  # by an announcer that received more rings than this one
                    return self._stand_by
                await self._observe()
            if self._connection.is_closed():
                raise ConnectionResetError("the connection was lost")
            await self._announce()
            if self._traffic.is_busy(self._now()):
                return await self._lease()
            if await self._arm():
                return self._settle

    async def _lease(self) -> Phase:
        if not await self._queue.renew_lease():
            return self._stand_by
        self._renewed_at = self._now()
        self._traffic.begin(self._renewed_at)
        self._metrics.leased.set(1)
        await self._note_unheard()
        _logger.debug("polling the queue")
        return self._poll

    async def _renew(self, now: float) -> bool:
        """Extend the lease. False if another announcer has it."""
        if not await self._queue.renew_lease():
            self._metrics.leased.set(0)
            return False
        lapsed = now - self._renewed_at >= LEASE_MS / 1000
        self._renewed_at = now
        if lapsed:
            await self._note_unheard()
        return True

    async def _note_unheard(self) -> None:
        """Behind a transaction pooler, note the transactions that may still ring: rings are not received there."""
        if not self._hears:
            self._unheard = await self._queue.unsettled()

    async def _settle_unheard(self) -> None:
        """Report missed rings once the last of these transactions has ended."""
        if self._unheard is not None:
            self._unheard = await self._queue.unsettled(self._unheard) if self._unheard else []
            if not self._unheard:
                self._unheard = None
                self._missed()

    async def _poll(self) -> Phase:
        """Poll the queue as long as there is traffic."""
        while True:
            users = await self._announce()
            now = self._now()
            self._traffic.polled(now, users)
            if self._hears and self._traffic.is_quiet(now):
                self._unsettled += await self._queue.end_lease()
                self._metrics.leased.set(0)
                return self._settle
            if now >= self._renewed_at + RENEW_INTERVAL and not await self._renew(now):
                return self._stand_by
            await self._settle_unheard()
            self.connected = True
            await self._maintain()
            idle = not self._hears and self._traffic.is_quiet(now)
            await asyncio.sleep(POOLED_PAUSE if idle else self._traffic.pause(users, self._listeners))

    async def _settle(self) -> Phase:
        """Poll until every transaction that may not ring has ended."""
        pause = FIRST_SETTLING_PAUSE
        await self._arm()
        while True:
            # In this order: a transaction that has ended by now is visible to the poll that follows.
            if self._unsettled:
                self._unsettled = await self._queue.unsettled(self._unsettled)
            await self._announce()
            self.connected = self.connected or self._hears
            if self._traffic.is_busy(self._now()):
                return await self._lease()
            if not self._unsettled:
                await self._forget()
                return self._stand_by if await self._queue.is_leased() else self._wait
            await self._maintain()
            # Publishers ring meanwhile, while a transaction that published early may stay open for minutes.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._ring.wait()
            pause = min(pause * 1.5, LONGEST_SETTLING_PAUSE)

    async def _stand_by(self) -> Phase:
        """Wait until no other announcer holds the lease; then announce what it may have left."""
        self.connected = True
        while True:
            await asyncio.sleep(STANDBY_INTERVAL)
            await self._look_up()
            if not await self._queue.is_leased():
                self._position = None
                self._unsettled = await self._queue.unsettled()
                return self._settle

    async def _announce(self) -> int:
        """Announce what was committed to the queue since the last time. Returns the number of users in it."""
        self._metrics.polls.inc()
        try:
            announced = await self._queue.announce(self._position, notifying=True)
        except asyncpg.ProgramLimitExceededError as error:
            self._metrics.full.inc()
            _logger.warning(
                "could not notify relays: the notification queue of the server is full; "
                "they find new events at their next poll. Does a session that listens stay in a transaction?",
                extra={"fields": {"error": str(error)}},
            )
            announced = await self._queue.announce(self._position, notifying=False)
        self._position = announced.position
        self._publish(announced.moved)
        await self._look_up()
        return announced.queued

    async def _look_up(self) -> None:
        """Announce the users whose publishers rang. Relays that listen were notified by the publisher itself."""
        self._ring.clear()
        if self._rung:
            channels = list(self._rung)
            self._rung.clear()
            if self._report is not None:
                self._publish(await self._queue.standings(channels))

    def _publish(self, moved: Sequence[LogMoved]) -> None:
        if moved:
            self._metrics.announced.inc(len(moved))
            if self._report is not None:
                self._report(moved)

    async def _maintain(self) -> None:
        """What is due from time to time while the queue is polled."""
        now = self._now()
        if now >= self._forget_at:
            await self._forget()
        if now >= self._observe_at:
            await self._observe()
        await self._arm()

    async def _observe(self) -> None:
        self._observe_at = self._now() + OBSERVE_INTERVAL
        self._listeners = await self._queue.listeners()
        self._metrics.queue_usage.set(await self._queue.notification_queue_usage())

    async def _forget(self) -> None:
        self._forget_at = self._now() + FORGET_INTERVAL
        if self._position is not None and self._position != self._forgotten:
            await self._queue.forget(self._forgotten, self._position)
            self._forgotten = self._position

    async def _arm(self) -> bool:
        """Keep the doorbell armed. True if some transactions will not ring."""
        if self._hears and self._now() >= self._check_at:
            self._unsettled += await self._queue.arm_doorbell()
            self._check_at = self._now() + CHECK_INTERVAL
        return bool(self._unsettled)

    def _rang(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        self._metrics.rings.inc()
        self._traffic.rang(self._now())
        if len(self._rung) < MAX_CHANNELS:
            self._rung.update(str(payload).split())
        self._ring.set()
