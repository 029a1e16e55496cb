"""Keeps the ring at the end of the log, whatever happens to Postgres.

One task: connect, `open` (where does the log stand, which channel), LISTEN, read from the ring's head, then read again
at every signal and at least every poll interval. LISTEN comes before the first read, so that nothing falls between
them. A failure of any kind gives up the connection and starts over, from the head the ring has: nothing is lost and
nothing comes twice. The poll asks `open` again, which tells a dead connection and another epoch alike.

The numbers of one epoch only grow. When the log turns out to be another one, or to be shorter than what was read, its
numbers mean other events: the ring is *replaced* by a new one, by which every client sees that it must reset. A client
therefore holds on to the ring its cursor belongs to.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Final, NamedTuple

import asyncpg

from .config import Config
from .inbox import Submission, Unavailable
from .log import ERRORS, Log, Opened, Page
from .metrics import Metrics
from .position import Position
from .ring import Ring
from .signals import Signal

PAGE_EVENTS: Final = 1000
PAGE_BYTES: Final = 256 << 10
"""What is read into the ring at a time: each page waits for Postgres to be woken, so few events a page are slow."""
CHUNK_EVENTS: Final = 500
"""What is read for one client at a time, of whom there may be many, each with a chunk in memory."""
POLL_INTERVAL: Final = 15.0
"""Seconds after which the log is looked at without a signal, unless the configuration says otherwise."""
MAX_SUBMITTING: Final = 4
"""Messages of clients on their way to Postgres at a time: reading the log waits behind no more than these."""
BACKOFF_FIRST: Final = 0.2
BACKOFF_LAST: Final = 15.0

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

    def __init__(self, config: Config, signal: Signal, metrics: Metrics) -> None:
        self._config = config
        self._poll_interval = config.poll_interval or POLL_INTERVAL
        self._pooled = {"auto": None, "listen": False, "poll": True}[config.signal]
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
        self._caught_up = False
        self._attempt = 0
        self._waiting: set[Callable[[], None]] = set()
        self._readers = 0

    @property
    def ring(self) -> Ring:
        """The ring of the log as it is now."""
        return self._ring

    @property
    def position(self) -> Position:
        """Where the log stands."""
        return Position(max(self._opened.head, self._ring.head), self._opened.earliest, self._opened.epoch)

    @property
    def hindrance(self) -> str | None:
        """Why this relay should get no new clients, in words; None if it may."""
        if self._log is None:
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

    async def locate(self) -> None:
        """Ask the log itself for its `position`. Waits, without limit, until Postgres answers."""
        while True:
            log = await self._reach()
            try:
                return await self._reopen(log)
            except ERRORS:
                self._give_up(log)

    async def page(self, after: int, max_bytes: int) -> Page:
        """Events of the log that the ring may have let go of. Waits, without limit, until Postgres answers.

        The caller checks that `ring` is still the one its cursor belongs to, and that the first number fits.
        """
        while True:
            log = await self._reach()
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
        async with self._submitting:
            log = self._log
            if log is None:
                raise Unavailable("the database is away; repeat it with the same ref")
            try:
                return await log.submit(submission)
            except ERRORS as error:
                if not isinstance(error, asyncpg.PostgresError):
                    self._give_up(log)
                _logger.warning("cannot store a message", extra={"fields": {"error": type(error).__name__}})
                raise Unavailable("the database did not answer; repeat it with the same ref") from None

    async def reachable(self) -> None:
        """Wait, without limit, until Postgres answers."""
        await self._reach()

    async def present(self, instance: str, clients: int | None) -> None:
        """Say how many clients this pod has.

        Raises:
            Unavailable: Postgres is away, or did not take it.
        """
        log = self._log
        if log is None:
            raise Unavailable("the database is away")
        try:
            await log.present(instance, clients)
        except ERRORS as error:
            if not isinstance(error, asyncpg.PostgresError):
                self._give_up(log)
            raise Unavailable(type(error).__name__) from None

    async def run(self) -> None:
        """Follow the log until cancelled."""
        while True:
            try:
                log = await Log.connect(self._config.database_url, self._config.user_id, pooled=self._pooled)
                self._metrics.log_connections.inc()
                try:
                    await self._follow(log)
                finally:
                    self._give_up(log)
            except ERRORS as error:
                self._metrics.log_failures.inc()
                delay = self._backoff()
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

    async def _follow(self, log: Log) -> None:
        loop = asyncio.get_running_loop()
        floor = self._ring.head
        opened = await log.open()
        async with self._signal(log, opened.channel, self._wake.set):
            self._adopt(opened, floor)
            self._log = log
            self._reachable.set()
            _logger.info(
                "connected to Postgres",
                extra={"fields": {"head": opened.head, "ring_head": self._ring.head, "epoch": opened.epoch}},
            )
            next_poll = loop.time() + self._poll_interval
            while True:
                self._wake.clear()
                await self._catch_up(log)
                self._caught_up = True
                try:
                    async with asyncio.timeout_at(next_poll):
                        await self._wake.wait()
                except TimeoutError:
                    pass
                if loop.time() >= next_poll:
                    await self._reopen(log)
                    next_poll = loop.time() + self._poll_interval
                    self._attempt = 0  # not sooner: a connection that is lost again and again is a failing one

    async def _catch_up(self, log: Log) -> None:
        more = True
        while more:
            ring, after = self._ring, self._ring.head
            page = await self._read(_Ask(log, after, PAGE_EVENTS, PAGE_BYTES))
            if self._ring is not ring or ring.head != after:
                continue  # `locate` found, meanwhile, that the log is another one, or has lost its beginning
            if not page:
                break
            if page.first != after + 1:
                ring.skip_to(page.first - 1)
            frames = page.frames()
            ring.extend(page.first, frames, page.times())
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
            await self._reachable.wait()
        return self._log

    def _give_up(self, log: Log) -> None:
        log.abandon()  # which wakes `_follow`, whose next query then fails, as does what is read ahead
        if self._log is log:
            self._log = None
            self._reachable.clear()

    def _backoff(self) -> float:
        """Seconds to wait before the next attempt: random, so that a fleet does not come back all at once."""
        longest = min(BACKOFF_LAST, BACKOFF_FIRST * 2 ** min(self._attempt, 16))
        self._attempt += 1
        return random.uniform(longest / 4, longest)  # noqa: S311 (no secret)
