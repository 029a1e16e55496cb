"""Keeps the ring at the end of the log, whatever happens to Postgres.

One task connects, opens the log (its state and its channel), listens, reads from the ring's head, and then reads again
at every notification and at least once every poll interval. It listens before the first read, so that no event falls
between the two. Any failure discards the connection and starts over from the head of the ring: no event is lost and
none comes twice. The poll opens the log again, which detects a dead connection and another epoch.

With a broker, signals come over another connection and contain the position of the log, so that a signal of a known
position needs no read. The tail then closes a connection that has been idle. It opens one when a signal reports an
unknown position, when a client needs the log, or when no signal has arrived for a poll interval.

The numbers of one epoch only grow. When the log turns out to be another one, or shorter than what was read, its numbers
mean other events: a new ring replaces the old one, and every client that still holds the old one resets.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

import asyncpg

from userrealtime_core.reconnect import Reconnect
from userrealtime_core.wire.broadcast import Sender, parse, split_sender, with_sender
from userrealtime_core.wire.position import LogPosition, LogState
from userrealtime_core.wire.submission import Full, Submission, Unavailable
from userrealtime_relay.config import Config
from userrealtime_relay.log.connection import LogConnection
from userrealtime_relay.log.log import ERRORS, Log, Page
from userrealtime_relay.metrics import Metrics
from userrealtime_relay.notify import Notifier

from .broadcasts import Broadcasts
from .ring import Ring

PAGE_EVENTS: Final = 1000
PAGE_BYTES: Final = 256 << 10
"""The size of a page that is read into the ring. Each page takes a round trip, so small pages would be slow."""
CHUNK_EVENTS: Final = 500
"""The size of a page that is read for one client. Many clients may each have a page in memory."""
POLL_INTERVAL: Final = 15.0
"""Seconds after which the log is read without a signal, unless the configuration differs."""
MAX_SUBMITTING: Final = 4
"""Messages of clients that are stored at the same time. Reads of the log wait for no more than these."""
FULL_INTERVAL: Final = 1.0
"""Seconds for which a full inbox is not tried again: the database counts the waiting messages at each attempt."""
RESUME_JITTER_S: Final = 2.0
"""Seconds over which relays without a connection read the log when the broker is back."""
STRETCH: Final = 5
"""Poll intervals within which the log is read in any case. Signals postpone the next poll, but no further than this."""
ATTEND_AFTER: Final = 90.0
"""Seconds after which a relay reports again, before it reads, that it runs: a report counts for 180 seconds."""

MAX_OUTGOING: Final = 256
"""Broadcasts of clients that wait for the connection. Later ones reach the clients of this pod only."""
FORWARD_BATCH: Final = 32
"""Broadcasts of clients that are sent in one query. A read of the log waits for no more than this query."""
UNKNOWN_SENDER: Final = "-"
"""The sender of a broadcast whose client has chosen no name. No client has this name."""

_logger = logging.getLogger(__name__)


class _PageRequest(NamedTuple):
    """Which page of a log to read."""

    log: Log
    after: int
    max_events: int
    max_bytes: int

    async def read(self) -> Page:
        return await self.log.page(self.after, max_events=self.max_events, max_bytes=self.max_bytes)


class _ReadAhead:
    """A page that is read before it is requested. At most one is kept."""

    def __init__(self, request: _PageRequest) -> None:
        self.request = request
        self.task = asyncio.create_task(request.read())
        # If the page is requested, the reader gets the failure.
        self.task.add_done_callback(lambda task: task.cancelled() or task.exception())


class Tail:
    """Follows one user's log. Call `run` in one task; the other methods may be called from any task of its loop."""

    def __init__(self, config: Config, notifier: Notifier, metrics: Metrics) -> None:
        self._config = config
        self._poll_interval = config.poll_interval or POLL_INTERVAL
        self._pooled = {"listen": False, "poll": True}.get(config.signal)
        self._has_broker = config.broker_url is not None
        self._notifier = notifier
        self._metrics = metrics
        self._connection = LogConnection(config.idle_after if self._has_broker else None, metrics)
        self._reconnect = Reconnect(ERRORS, _logger, "no connection to Postgres, retrying")
        self._ahead: _ReadAhead | None = None
        self._ring = self._new_ring(0)
        self._state = LogState(0, 1, None)
        self.broadcasts = Broadcasts()
        """The newest broadcasts."""
        self._broadcast_channel: str | None = None
        self._broadcasts_known = asyncio.Event()
        self._outgoing: deque[str] = deque()  # broadcasts of clients for the other pods
        self._some_outgoing = asyncio.Event()
        self.located = False
        """Whether the log was opened before. Until then, `ring` and `state` mean nothing."""
        self._submitting = asyncio.Semaphore(MAX_SUBMITTING)
        self._notified = asyncio.Event()
        self._caught_up = False
        self._signalled_at = self._polled_at = self._attended_at = -math.inf  # on the loop's clock
        self._poll_after = 0.0
        self._full_until = 0.0
        self._waiting: set[Callable[[], None]] = set()
        self._readers = 0
        self._signalled_head = 0  # the head that the last signal of a broker reported, if it was unknown

    @property
    def ring(self) -> Ring:
        """The ring of the present log."""
        return self._ring

    @property
    def state(self) -> LogState:
        """The last known state of the log."""
        return LogState(max(self._state.head, self._ring.head), self._state.earliest, self._state.epoch)

    @property
    def not_ready_reason(self) -> str | None:
        """The reason why this relay should get no new clients; None if it may."""
        if self._connection.lost:
            return "not connected to Postgres"
        if not self._caught_up:
            return "reading the log"
        return None

    @property
    def resting(self) -> bool:
        """Whether there is no connection to Postgres because none is needed."""
        return self._connection.resting

    def call_once(self, wake: Callable[[], None]) -> None:
        """Call `wake` at the next change of the ring or the state, once."""
        self._waiting.add(wake)

    def cancel_call(self, wake: Callable[[], None]) -> None:
        """Undo `call_once`, if it has not happened."""
        self._waiting.discard(wake)

    def on_signal(self, position: LogPosition | None) -> None:
        """Process a signal of the broker: the position of the log, or None if signals may have been missed."""
        loop = asyncio.get_running_loop()
        if position is None and self._connection.log is None:
            # All relays notice the return of the broker at the same moment. Most of them soon receive a signal with a
            # position that they know. A connection that is being made reads the log anyway.
            if self._connection.idle:
                delay = random.uniform(0, RESUME_JITTER_S)  # noqa: S311 (no secret)
                loop.call_later(delay, self._connect_unless_signalled, loop.time())
            return
        if position is not None:
            # A signal may be old or forged, so it causes no more than a read.
            if self._state.epoch == position.epoch and self._ring.head > position.head:
                return
            self._signalled_at = loop.time()
            if self._state.epoch == position.epoch and self._ring.head == position.head:
                return
            self._signalled_head = position.head
        self._notified.set()
        if self._connection.log is None:
            self._connection.needed.set()

    def _connect_unless_signalled(self, since: float) -> None:
        if self._signalled_at < since:
            self._connection.needed.set()

    def on_broadcast(self, message: str | bytes) -> None:
        """Process a broadcast: the text that clients receive."""
        text = parse(message)
        if text is None:
            self._metrics.broadcasts_dropped.labels("invalid").inc()
            return
        self._metrics.broadcasts.inc()
        message, sender = split_sender(text)
        if sender is not None and sender.pod == self.broadcasts.name:
            return  # the clients of this pod received it when it was sent
        self.broadcasts.add(message, None if sender is None else sender.client)
        self._changed()

    def broadcast(self, text: str, sender: str | None) -> None:
        """Deliver a broadcast of a client to the other clients of the user."""
        self.broadcasts.add(text, sender)
        self._changed()
        if not self._config.broadcast_to_pods:
            return
        if len(self._outgoing) >= MAX_OUTGOING:
            self._metrics.broadcasts_dropped.labels("database").inc()
            return
        self._outgoing.append(with_sender(text, Sender(self.broadcasts.name, sender or UNKNOWN_SENDER)))
        self._some_outgoing.set()

    async def forward_broadcasts(self) -> None:
        """Send the broadcasts of clients to the other pods of the user, until cancelled."""
        while True:
            await self._some_outgoing.wait()
            batch = [self._outgoing.popleft() for _ in range(min(FORWARD_BATCH, len(self._outgoing)))]
            if not self._outgoing:
                self._some_outgoing.clear()
            accepted = 0
            try:
                async with self._connection.acquire_soon() as log:
                    try:
                        accepted = await log.forward_broadcasts(batch)
                    except ERRORS as error:
                        if not isinstance(error, asyncpg.PostgresError):
                            self._connection.discard(log)
            except Unavailable:
                pass
            self._metrics.broadcasts_dropped.labels("database").inc(len(batch) - accepted)

    async def broadcast_channel(self) -> str | None:
        """Return the channel of the user's broadcasts. Waits, without limit, until Postgres has been reached once.

        None if the role of this relay may not receive broadcasts.
        """
        await self._broadcasts_known.wait()
        return self._broadcast_channel

    async def locate(self) -> None:
        """Refresh `state` from the log. Waits, without limit, until Postgres answers."""
        while True:
            async with self._connection.acquire() as log:
                try:
                    return await self._reopen(log)
                except ERRORS:
                    self._connection.discard(log)

    async def page(self, after: int, max_bytes: int) -> Page:
        """Read events that the ring may not hold any more. Waits, without limit, until Postgres answers.

        The caller checks that `ring` is still the one its cursor belongs to, and that the first number fits.
        """
        while True:
            async with self._connection.acquire() as log:
                try:
                    return await self._read(_PageRequest(log, after, CHUNK_EVENTS, max_bytes))
                except ERRORS:
                    self._connection.discard(log)

    async def submit(self, submission: Submission) -> int:
        """Store a message for the application; return its id.

        Raises:
            Unavailable: Postgres is unreachable or did not answer; the message may have been stored.
            Refused: the message cannot be stored.
            Full: the user's quota of the inbox is used up.
        """
        clock = asyncio.get_running_loop().time
        if clock() < self._full_until:
            raise Full
        async with self._submitting, self._connection.acquire_soon() as log:
            try:
                return await log.submit(submission)
            except Full:
                self._full_until = clock() + FULL_INTERVAL
                raise
            except ERRORS as error:
                if not isinstance(error, asyncpg.PostgresError):
                    self._connection.discard(log)
                _logger.warning("could not store a message", extra={"fields": {"error": type(error).__name__}})
                raise Unavailable("the database did not answer; repeat the message with the same ref") from None

    async def reachable(self) -> None:
        """Wait, without limit, until Postgres is connected or the connection was closed only because it was idle."""
        if not self._connection.idle:
            await self._connection.wait()

    async def present(self, instance: str, clients: int | None, quiet_s: float) -> None:
        """Report how many clients this pod has, and for how many seconds it had no traffic.

        Raises:
            Unavailable: Postgres is unreachable or has rejected the report.
        """
        async with self._connection.acquire_soon(using=False) as log:
            try:
                await log.present(instance, clients, quiet_s, listens=self._listens(log))
                self._attended_at = asyncio.get_running_loop().time()
            except ERRORS as error:
                if not isinstance(error, asyncpg.PostgresError):
                    self._connection.discard(log)
                raise Unavailable(type(error).__name__) from None

    async def run(self) -> None:
        """Follow the log until cancelled."""
        await self._reconnect.run(self._session, self._failed)

    async def _session(self) -> None:
        """Follow the log over one connection, until it fails or has been idle."""
        await self._wait_until_needed()
        config = self._config
        log = await Log.connect(
            config.database_url, config.user_id, pooled=self._pooled, listening=not self._has_broker
        )
        self._metrics.log_connections.inc()
        if self._has_broker:
            self._pooled = log.pooled  # found out once, not for every connection
        try:
            await self._follow(log)
            self._connection.idle = True
            self._connection.detach(log)
            await log.close()
        finally:
            self._connection.discard(log)

    def _failed(self) -> None:
        self._connection.idle = False
        if self._has_broker:
            self._pooled = None
        self._metrics.log_failures.inc()

    async def _wait_until_needed(self) -> None:
        """Wait until a connection is needed, if the last one was closed because it was idle."""
        while self._connection.resting:
            try:
                async with asyncio.timeout_at(self._next_poll()):
                    await self._connection.needed.wait()
            except TimeoutError:
                if asyncio.get_running_loop().time() >= self._next_poll():  # no signal has postponed it
                    return

    def _next_poll(self) -> float:
        """When the log is read without a signal. A signal of a known position postpones it, up to a limit."""
        return min(
            max(self._signalled_at, self._polled_at) + self._poll_after, self._polled_at + STRETCH * self._poll_after
        )

    def _polled(self) -> None:
        self._polled_at = asyncio.get_running_loop().time()
        # Random, so that a fleet does not poll at the same moment.
        self._poll_after = self._poll_interval * random.uniform(0.8, 1)  # noqa: S311 (no secret)

    async def _follow(self, log: Log) -> None:
        """Keep the ring at the log's end, over this connection. Returns when the connection has been idle."""
        loop = asyncio.get_running_loop()
        floor = self._ring.head
        subscribed = False
        await self._attend(log)
        state, channel = await log.open()
        async with self._notifier(log, channel, self._notified.set):
            self._adopt(state, floor)
            self._connection.attach(log)
            _logger.log(
                logging.DEBUG if self._connection.idle else logging.INFO,
                "connected to Postgres",
                extra={"fields": {"head": state.head, "ring_head": self._ring.head, "epoch": state.epoch}},
            )
            self._polled()
            while True:
                self._notified.clear()
                await self._catch_up(log)
                self._caught_up = True
                if not subscribed:
                    subscribed = True
                    await self._subscribe(log)
                try:
                    async with asyncio.timeout_at(min(self._next_poll(), self._connection.close_at())):
                        await self._notified.wait()
                    continue
                except TimeoutError:
                    pass
                if loop.time() >= self._next_poll():
                    await self._reopen(log)
                    self._polled()
                    # Not earlier: a connection that is lost again and again counts as failing.
                    self._reconnect.succeeded()
                if loop.time() >= self._connection.close_at() and not self._notified.is_set():
                    self._reconnect.succeeded()
                    return

    async def _attend(self, log: Log) -> None:
        """Report that this relay runs, before the log is read: signals are sent to running relays only."""
        now = asyncio.get_running_loop().time()
        if now >= self._attended_at + ATTEND_AFTER:
            await log.attend(self._config.instance, listens=self._listens(log))
            self._attended_at = now

    async def _subscribe(self, log: Log) -> None:
        """Receive the broadcasts of the user, over this connection if it listens, or else over the broker."""
        if self._has_broker and self._broadcasts_known.is_set():
            return
        self._broadcast_channel = await log.broadcast_channel()
        self._broadcasts_known.set()
        if self._broadcast_channel is not None and self._listens(log):
            await log.listen_broadcasts(self._broadcast_channel, self.on_broadcast)

    def _listens(self, log: Log) -> bool:
        return self._config.signal == "listen" or (self._config.signal == "auto" and not log.pooled)

    async def _catch_up(self, log: Log) -> None:
        more = True
        while more:
            ring, after = self._ring, self._ring.head
            page = await log.event(after + 1) if self._signalled_head == after + 1 else None
            if not page:  # retention may have removed it, and later ones may exist
                page = await self._read(_PageRequest(log, after, PAGE_EVENTS, PAGE_BYTES))
            if self._ring is not ring or ring.head != after:
                continue  # meanwhile `locate` has found another log, or a later first event
            if not page:
                break
            if page.first != after + 1:
                ring.skip_to(page.first - 1)
            frames = page.frames()
            ring.extend(page.first, frames, page.times())
            self._connection.used()
            self._changed()
            # A frame is longer than its data, so a page that was cut short is always recognized.
            more = len(page) == PAGE_EVENTS or sum(map(len, frames)) >= PAGE_BYTES
        if self._state.epoch is None and self._ring.head > 0:
            await self._reopen(log)  # the first event of a user creates the log and its epoch

    async def _read(self, request: _PageRequest) -> Page:
        """Read a page of the log. If there is only one reader, the next page is requested before this one is used."""
        ahead, self._ahead = self._ahead, None
        self._readers += 1
        try:
            page = await ahead.task if ahead is not None and ahead.request == request else None
            if not page:  # an empty page may have been filled since
                page = await request.read()
            if len(page) == request.max_events and self._readers == 1:
                self._ahead = _ReadAhead(request._replace(after=page.last))
                await asyncio.sleep(0)  # sends the query before the caller begins its work
            return page
        finally:
            self._readers -= 1

    async def _reopen(self, log: Log) -> None:
        floor = self._ring.head
        state, _ = await log.open()
        self._adopt(state, floor)

    def _adopt(self, state: LogState, floor: int) -> None:
        """Take over the state of the log. `floor` is the ring's head from before the log was read."""
        before, self._state = self._state, state
        if not self.located:
            self.located = True
            self._ring = self._new_ring(state.head)
        elif state.head < floor or (before.epoch is not None and state.epoch != before.epoch):
            _logger.warning(
                "the log was replaced or has lost events; all clients are reset",
                extra={
                    "fields": {"old_head": floor, "old_epoch": before.epoch, "head": state.head, "epoch": state.epoch}
                },
            )
            self._ring = self._new_ring(state.head)
        elif state.earliest - 1 > self._ring.head:
            self._ring.skip_to(state.earliest - 1)
        if state.head > self._ring.head:
            self._notified.set()
        self._changed()

    def _new_ring(self, head: int) -> Ring:
        self._ahead = None  # it may belong to the former log
        return Ring(head, max_events=self._config.ring_events, max_bytes=self._config.ring_bytes)

    def _changed(self) -> None:
        waiting, self._waiting = self._waiting, set()
        for wake in waiting:
            wake()
