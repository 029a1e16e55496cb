"""Keeps the ring at the end of the log, whatever happens to Postgres.

One task: connect, `open` (where does the log stand, which channel), LISTEN, read from the ring's head, then read again
at every signal and at least every poll interval. LISTEN comes before the first read, so that nothing falls between
them. A failure of any kind gives up the connection and starts over, from the head the ring has: nothing is lost and
nothing comes twice. The poll asks `open` again, which tells a dead connection and another epoch alike.

With a broker the signals come over another connection, and say where the log stands: what is known already needs no
look. So the tail may *rest*: it closes a connection that was not used for a while, and opens one when a signal says
more than it knows, when somebody asks for the log, or when it heard nothing for a poll interval.

The numbers of one epoch only grow. When the log turns out to be another one, or to be shorter than what was read, its
numbers mean other events: the ring is *replaced* by a new one, by which every client sees that it must reset. A client
therefore holds on to the ring its cursor belongs to.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

import asyncpg

from userrealtime_core.backoff import backoff
from userrealtime_core.wire.position import LogPosition, LogState
from userrealtime_relay.config import Config
from userrealtime_relay.log.log import CONNECT_TIMEOUT, ERRORS, Log, Opened, Page
from userrealtime_relay.metrics import Metrics
from userrealtime_relay.notify import Notifier
from userrealtime_relay.wire.submission import Submission, Unavailable

from .ring import Ring

PAGE_EVENTS: Final = 1000
PAGE_BYTES: Final = 256 << 10
"""What is read into the ring at a time: each page waits for Postgres to be woken, so few events a page are slow."""
CHUNK_EVENTS: Final = 500
"""What is read for one client at a time, of whom there may be many, each with a chunk in memory."""
POLL_INTERVAL: Final = 15.0
"""Seconds after which the log is looked at without a signal, unless the configuration says otherwise."""
MAX_SUBMITTING: Final = 4
"""Messages of clients on their way to Postgres at a time: reading the log waits behind no more than these."""
RESUME_JITTER_S: Final = 2.0
"""In which relays that rest look at the log, when the broker is there again."""
STRETCH: Final = 5
"""Poll intervals within which the log is read in any case. Signals put the next poll off, but no further than this."""
ATTEND_AFTER: Final = 90.0
"""Seconds after which a relay reports again, before it reads, that it runs: a report counts for 180 seconds."""
BUSY_RECHECK_S: Final = 0.1
"""Between two looks at whether a connection that was to be closed is still being used."""

_logger = logging.getLogger(__name__)


class _Ask(NamedTuple):
    """Which page of a log."""

    log: Log
    after: int
    max_events: int
    max_bytes: int

    async def read(self) -> Page:
        return await self.log.page(self.after, max_events=self.max_events, max_bytes=self.max_bytes)


class _Ahead:
    """A page that is being read before anybody has asked for it. At most one is kept."""

    def __init__(self, ask: _Ask) -> None:
        self.ask = ask
        self.task = asyncio.create_task(ask.read())
        # Nobody may ever ask for it; whoever does gets the failure.
        self.task.add_done_callback(lambda task: task.cancelled() or task.exception())


class Tail:
    """Follows one user's log. `run` it in one task; the rest may be called from any task of the same loop."""

    def __init__(self, config: Config, signal: Notifier, metrics: Metrics) -> None:
        self._config = config
        self._poll_interval = config.poll_interval or POLL_INTERVAL
        self._pooled = {"listen": False, "poll": True}.get(config.signal)
        self._rests = config.broker_url is not None
        self._signal = signal
        self._metrics = metrics
        self._ahead: _Ahead | None = None
        self._ring = self._new_ring(0)
        self._opened = Opened(0, 1, None, "")
        self.located = False
        """Whether Postgres was ever reached; before, `ring` and `position` mean nothing."""
        self._log: Log | None = None
        self._reachable = asyncio.Event()
        self._submitting = asyncio.Semaphore(MAX_SUBMITTING)
        self._wake = asyncio.Event()
        self._needed = asyncio.Event()
        self._caught_up = False
        self._resting = False
        self._lent = 0
        self._used_at = self._heard_at = self._polled_at = self._attended_at = -math.inf  # on the loop's clock
        self._patience = 0.0
        self._attempt = 0
        self._waiting: set[Callable[[], None]] = set()
        self._readers = 0
        self._told = 0  # the head that a broker told of last, where it is news

    @property
    def ring(self) -> Ring:
        """The ring of the log as it is now."""
        return self._ring

    @property
    def position(self) -> LogState:
        """Where the log stands."""
        return LogState(max(self._opened.head, self._ring.head), self._opened.earliest, self._opened.epoch)

    @property
    def not_ready_reason(self) -> str | None:
        """Why this relay should get no new clients, in words; None if it may."""
        if self._log is None and not self._resting:
            return "not connected to Postgres"
        if not self._caught_up:
            return "reading the log"
        return None

    def call_once(self, wake: Callable[[], None]) -> None:
        """Call `wake` at the next change of the ring or the position, once."""
        self._waiting.add(wake)

    def forget(self, wake: Callable[[], None]) -> None:
        """Undo `call_once`, if it has not happened."""
        self._waiting.discard(wake)

    def on_signal(self, position: LogPosition | None) -> None:
        """A broker says where the log stands or, by None, that it may have said so unheard."""
        loop = asyncio.get_running_loop()
        if position is None and self._log is None:
            # All relays see the broker return at the same moment. Most receive soon a signal that they are up to date.
            # A connection that is being made reads the log when it is there.
            if self._resting:
                loop.call_later(random.uniform(0, RESUME_JITTER_S), self._look, loop.time())  # noqa: S311 (no secret)
            return
        if position is not None:
            # A signal may be old or forged: it never stands for more than a look at what is here already.
            if self._opened.epoch == position.epoch and self._ring.head > position.head:
                return
            self._heard_at = loop.time()
            if self._opened.epoch == position.epoch and self._ring.head == position.head:
                return
            self._told = position.head
        self._wake.set()
        if self._log is None:
            self._needed.set()

    def _look(self, unless_heard_since: float) -> None:
        if self._heard_at < unless_heard_since:
            self._needed.set()

    async def locate(self) -> None:
        """Ask the log itself for its `position`. Waits, without limit, until Postgres answers."""
        while True:
            async with self._lend() as log:
                try:
                    return await self._reopen(log)
                except ERRORS:
                    self._give_up(log)

    async def page(self, after: int, max_bytes: int) -> Page:
        """Events of the log that the ring may have let go of. Waits, without limit, until Postgres answers.

        The caller checks that `ring` is still the one its cursor belongs to, and that the first number fits.
        """
        while True:
            async with self._lend() as log:
                try:
                    return await self._read(_Ask(log, after, CHUNK_EVENTS, max_bytes))
                except ERRORS:
                    self._give_up(log)

    async def submit(self, submission: Submission) -> int:
        """Store a message for the application; returns its id.

        Raises:
            Unavailable: Postgres is away, or did not answer; the message may have been stored all the same.
            Refused: it cannot be stored.
        """
        async with self._submitting, self._lend_soon() as log:
            try:
                return await log.submit(submission)
            except ERRORS as error:
                if not isinstance(error, asyncpg.PostgresError):
                    self._give_up(log)
                _logger.warning("cannot store a message", extra={"fields": {"error": type(error).__name__}})
                raise Unavailable("the database did not answer; repeat it with the same ref") from None

    async def reachable(self) -> None:
        """Wait, without limit, until Postgres answers or, as far as is known, would."""
        if not self._resting:
            await self._reach()

    async def present(self, instance: str, clients: int | None) -> None:
        """Say how many clients this pod has.

        Raises:
            Unavailable: Postgres is away, or did not take it.
        """
        async with self._lend_soon(using=False) as log:
            try:
                await log.present(instance, clients, listens=self._listens(log))
                self._attended_at = asyncio.get_running_loop().time()
            except ERRORS as error:
                if not isinstance(error, asyncpg.PostgresError):
                    self._give_up(log)
                raise Unavailable(type(error).__name__) from None

    async def run(self) -> None:
        """Follow the log until cancelled."""
        while True:
            try:
                await self._rest()
                log = await Log.connect(
                    self._config.database_url, self._config.user_id, pooled=self._pooled, listening=not self._rests
                )
                self._metrics.log_connections.inc()
                if self._rests:
                    self._pooled = log.pooled  # found out once, not at every signal
                try:
                    await self._follow(log)
                    self._resting = True
                    self._leave(log)
                    await log.close()
                finally:
                    self._give_up(log)
            except ERRORS as error:
                self._resting = False
                if self._rests:
                    self._pooled = None
                self._metrics.log_failures.inc()
                delay = backoff(self._attempt)
                self._attempt += 1
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

    async def _rest(self) -> None:
        """Wait until a connection is needed; not at all if the last one was not closed for want of use."""
        while self._resting and not self._needed.is_set():
            try:
                async with asyncio.timeout_at(self._next_poll()):
                    await self._needed.wait()
            except TimeoutError:
                if asyncio.get_running_loop().time() >= self._next_poll():  # nothing was heard meanwhile
                    return

    def _next_poll(self) -> float:
        """When the log is read without a signal. A signal that reports nothing new puts it off, up to a limit."""
        return min(max(self._heard_at, self._polled_at) + self._patience, self._polled_at + STRETCH * self._patience)

    def _polled(self) -> None:
        self._polled_at = asyncio.get_running_loop().time()
        # Random, so that a fleet does not look all at once.
        self._patience = self._poll_interval * random.uniform(0.8, 1)  # noqa: S311 (no secret)

    async def _follow(self, log: Log) -> None:
        """Keep the ring at the log's end, over this connection. Returns when the tail may rest."""
        loop = asyncio.get_running_loop()
        floor = self._ring.head
        await self._attend(log)
        opened = await log.open()
        async with self._signal(log, opened.channel, self._wake.set):
            self._adopt(opened, floor)
            self._log = log
            self._needed.clear()  # what it was set for is read below
            self._reachable.set()
            self._metrics.log_connected.set(1)
            _logger.log(
                logging.DEBUG if self._resting else logging.INFO,
                "connected to Postgres",
                extra={"fields": {"head": opened.head, "ring_head": self._ring.head, "epoch": opened.epoch}},
            )
            self._polled()
            while True:
                self._wake.clear()
                await self._catch_up(log)
                self._caught_up = True
                try:
                    async with asyncio.timeout_at(min(self._next_poll(), self._rest_at())):
                        await self._wake.wait()
                    continue
                except TimeoutError:
                    pass
                if loop.time() >= self._next_poll():
                    await self._reopen(log)
                    self._polled()
                    self._attempt = 0  # not sooner: a connection that is lost again and again is a failing one
                if loop.time() >= self._rest_at() and not self._wake.is_set():
                    self._attempt = 0
                    return

    async def _attend(self, log: Log) -> None:
        """Report that this relay runs, before the log is read: signals are sent to running relays only."""
        now = asyncio.get_running_loop().time()
        if now >= self._attended_at + ATTEND_AFTER:
            await log.attend(self._config.instance, listens=self._listens(log))
            self._attended_at = now

    def _listens(self, log: Log) -> bool:
        return self._config.signal == "listen" or (self._config.signal == "auto" and not log.pooled)

    def _rest_at(self) -> float:
        """When the connection may be closed, if nothing happens until then."""
        if not self._rests:
            return math.inf
        if self._lent:
            return asyncio.get_running_loop().time() + BUSY_RECHECK_S
        return self._used_at + self._config.idle_after

    async def _catch_up(self, log: Log) -> None:
        more = True
        while more:
            ring, after = self._ring, self._ring.head
            page = await log.event(after + 1) if self._told == after + 1 else None
            if not page:  # it may have been let go of, with later ones there
                page = await self._read(_Ask(log, after, PAGE_EVENTS, PAGE_BYTES))
            if self._ring is not ring or ring.head != after:
                continue  # `locate` found, meanwhile, that the log is another one, or has lost its beginning
            if not page:
                break
            if page.first != after + 1:
                ring.skip_to(page.first - 1)
            frames = page.frames()
            ring.extend(page.first, frames, page.times())
            self._used_at = asyncio.get_running_loop().time()
            self._changed()
            # A frame is longer than its data, so a page that was cut short is always recognized.
            more = len(page) == PAGE_EVENTS or sum(map(len, frames)) >= PAGE_BYTES
        if self._opened.epoch is None and self._ring.head > 0:
            await self._reopen(log)  # the first event of a user makes the log, and its epoch

    async def _read(self, ask: _Ask) -> Page:
        """A page of the log. While it is made use of, Postgres reads the next one, if only one is reading."""
        ahead, self._ahead = self._ahead, None
        self._readers += 1
        try:
            page = await ahead.task if ahead is not None and ahead.ask == ask else None
            if not page:  # none then is not none now
                page = await ask.read()
            if len(page) == ask.max_events and self._readers == 1:
                self._ahead = _Ahead(ask._replace(after=page.last))
                await asyncio.sleep(0)  # so that Postgres is asked before the caller begins
            return page
        finally:
            self._readers -= 1

    async def _reopen(self, log: Log) -> None:
        floor = self._ring.head
        self._adopt(await log.open(), floor)

    def _adopt(self, opened: Opened, floor: int) -> None:
        """Take in where the log stands. `floor` is the ring's head from before the log was asked."""
        before, self._opened = self._opened, opened
        if not self.located:
            self.located = True
            self._ring = self._new_ring(opened.head)
        elif opened.head < floor or (before.epoch is not None and opened.epoch != before.epoch):
            _logger.warning(
                "the log is not the one it was: every client is reset",
                extra={
                    "fields": {
                        "old_head": floor,
                        "old_epoch": before.epoch,
                        "head": opened.head,
                        "epoch": opened.epoch,
                    }
                },
            )
            self._ring = self._new_ring(opened.head)
        elif opened.earliest - 1 > self._ring.head:
            self._ring.skip_to(opened.earliest - 1)
        if opened.head > self._ring.head:
            self._wake.set()
        self._changed()

    def _new_ring(self, head: int) -> Ring:
        self._ahead = None  # it may be of the log as it was
        return Ring(head, max_events=self._config.ring_events, max_bytes=self._config.ring_bytes)

    def _changed(self) -> None:
        waiting, self._waiting = self._waiting, set()
        for wake in waiting:
            wake()

    async def _reach(self) -> Log:
        while self._log is None:
            self._needed.set()
            await self._reachable.wait()
        return self._log

    @asynccontextmanager
    async def _lend(self, *, using: bool = True) -> AsyncIterator[Log]:
        """The connection, which is not closed meanwhile nor, if it is `using` it, soon after. Waits without limit."""
        self._lent += 1
        try:
            yield await self._reach()
        finally:
            self._lent -= 1
            if using:
                self._used_at = asyncio.get_running_loop().time()

    @asynccontextmanager
    async def _lend_soon(self, *, using: bool = True) -> AsyncIterator[Log]:
        """As `_lend`, for who cannot wait.

        Raises:
            Unavailable: Postgres is away; at once, if that is known.
        """
        away = Unavailable("the database is away; repeat it with the same ref")
        if self._log is None and not self._resting:
            raise away
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT) as limit, self._lend(using=using) as log:
                limit.reschedule(None)  # what is asked for has time limits of its own
                yield log
        except TimeoutError:
            if limit.expired():
                raise away from None
            raise

    def _leave(self, log: Log) -> None:
        if self._log is log:
            self._log = None
            self._reachable.clear()
            self._metrics.log_connected.set(0)

    def _give_up(self, log: Log) -> None:
        log.abandon()  # which wakes `_follow`, whose next query then fails, as does what is read ahead
        self._leave(log)
