"""The clients of all transports: a client is a session and a cursor, and a *writer* that writes to its socket.

One task per client does all the sending. It waits in one place for one event, which is set by everything that may
require work: the ring, the client's messages, a deadline, a reply of Postgres, the socket being writable again, the
drain. A writer never waits: it writes into the buffer of its socket, and reports when the buffer is full.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, Final, Protocol, TypeVar, cast

from userrealtime_core.audit import RejectedTokens
from userrealtime_core.auth.tokens import KeySet, TokenVerifier
from userrealtime_core.unauthenticated import Unauthenticated
from userrealtime_core.wire.broadcast import Content, InvalidBroadcast
from userrealtime_core.wire.connect_request import CloseCode, ConnectRequest
from userrealtime_core.wire.rate_limit import TokenBucket
from userrealtime_core.wire.session import (
    BROADCASTS_DISABLED,
    TOO_MANY_BROADCASTS,
    TOO_MANY_MESSAGES,
    UNAUTHORIZED,
    CloseFrame,
    PendingLookup,
    Session,
)
from userrealtime_core.wire.submission import Full, Refused, Submission, Unavailable
from userrealtime_relay.config import Config
from userrealtime_relay.log.log import Page
from userrealtime_relay.metrics import Metrics

from .ring import Ring
from .tail import Tail
from .wakeup import WakeupEvent

CHUNK_BYTES: Final = 64 << 10
"""What a client gets at a time, from the ring or the log, unless one event is larger."""
BROADCAST_BYTES: Final = 16 << 10
"""What a client gets of broadcasts at a time: an event waits for no more than this."""
WRITE_LIMIT: Final = 32 << 10
"""Bytes in the process that wait for a client's socket; above this limit, the client gets no more."""
UNSENT_LIMIT: Final = 128 << 10
"""The same limit in the kernel, which would otherwise buffer megabytes for a client that does not read."""
CLOSE_TIMEOUT: Final = 5
"""Seconds for the closing handshake; then the connection is aborted."""
DRAIN_SPACING: Final = 0.1
"""The longest time between two closes while draining: few clients do not use the whole drain timeout."""
SILENCE_S: Final = 60.0
"""Seconds without traffic after which its return is reported at once."""
RESTARTING_REASON: Final = "Restarting: reconnect"
TOO_MANY_REASON: Final = "Too many connections"
EVICTED_REASON: Final = "Too many unauthenticated connections"

TOO_SLOW_REASON: Final = "Too slow"
_LIMITS: Final = {
    TOO_MANY_REASON: "connections",
    TOO_MANY_MESSAGES.reason: "messages",
    TOO_SLOW_REASON: "slow",
}
"""The label of the limit, by the reason of the close."""

T = TypeVar("T")


class TransportWriter(Protocol):
    """Writes to the connection of one client. Every transport has one."""

    @property
    def open(self) -> bool:
        """Whether the client can still receive something."""

    @property
    def paused(self) -> bool:
        """Whether the buffer of the socket is full."""

    @property
    def unsent(self) -> int:
        """Bytes waiting in the process for the socket."""

    def authenticated(self) -> None:
        """Note that the client has authenticated: its connection leaves the budget of unauthenticated connections."""

    def abort(self) -> None:
        """Abort the connection."""

    def write_messages(self, messages: Sequence[str], cursor: int, epoch: str | None) -> None:
        """Send messages of the session, at least one, and the position of the client after them."""

    def write_events(self, frames: bytes, cursor: int, epoch: str | None) -> None:
        """Send events, given as joined WebSocket frames. The last one has the number `cursor`, in the log `epoch`."""

    def write_broadcasts(self, frames: bytes) -> None:
        """Send broadcasts, given as joined WebSocket frames."""


class Place(Protocol):
    """What takes one place of the limit: a client, or a socket of another system's protocol, which has several."""

    @property
    def parkable(self) -> bool:
        """Whether an activator can keep the connection without the pod while there is no traffic."""

    @property
    def lag(self) -> int:
        """Events that it has not received yet."""

    @property
    def unsent(self) -> int:
        """Bytes waiting in the process for the socket."""

    def leave(self) -> None:
        """Close as soon as what is in the ring is sent."""

    def abort(self) -> None:
        """Abort the connection."""


class Clients:
    """All clients of the relay, up to its limit."""

    def __init__(self, config: Config, tail: Tail, metrics: Metrics, key_set: KeySet | None = None) -> None:
        self.config = config
        self.tail = tail
        self.metrics = metrics
        rejected = RejectedTokens()
        self.verify = TokenVerifier(
            config,
            config.user_id,
            config.token_keys,
            key_set,
            lambda reason, claims: rejected.record(reason, claims, user=config.user_id),
        )
        self.draining = False
        self.unauthenticated = Unauthenticated(
            # All clients of a relay may connect at the same time, as after its restart.
            config.max_connections,
            lambda: metrics.limited.labels("unauthenticated").inc(),
        )
        """The connections of the public port that have not authenticated."""
        per_second = config.max_broadcasts_per_second
        self.broadcast_allowance = TokenBucket(per_second, -math.inf) if per_second else None
        """The limit of the broadcasts of all clients together; None if they may not send any."""
        self.changed: Callable[[], None] = lambda: None
        """Called when a client was admitted or has left, and when traffic follows a silence."""
        self._active_at = time.monotonic()
        self._tasks: dict[Place, asyncio.Task[Any]] = {}
        self._admitted: set[Place] = set()
        metrics.connections.set_function(lambda: len(self._admitted))
        metrics.unauthenticated.set_function(lambda: len(self.unauthenticated))
        metrics.lag_events.set_function(lambda: max((client.lag for client in self._admitted), default=0))
        metrics.unsent_bytes.set_function(lambda: sum(client.unsent for client in self._admitted))

    def __iter__(self) -> Iterator[Client]:
        """Iterate over the clients of the relay's own protocol."""
        return iter([place for place in self._tasks if isinstance(place, Client)])

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def connected(self) -> int:
        """The number of admitted clients."""
        return len(self._admitted)

    @property
    def quiet_s(self) -> float:
        """Seconds since the last traffic: an event, a broadcast, a message, or a client that began at the head.

        0 while there is a client that an activator cannot keep without the pod.
        """
        if not all(place.parkable for place in self._admitted):
            return 0.0
        return time.monotonic() - self._active_at

    def note_traffic(self) -> None:
        """Note that an event, a broadcast or a message was delivered, or that a client began at the head."""
        now = time.monotonic()
        before, self._active_at = self._active_at, now
        if now - before > SILENCE_S:
            self.changed()

    async def authenticate(self, opening: ConnectRequest) -> Session:
        """Return the session of a client that sends its token with the request: authenticated, or closing."""
        session = self.session(opening)
        if session.question is PendingLookup.KEYS:
            await self.verify.refresh()
            session.retry(asyncio.get_running_loop().time())
        if not session.authenticated:
            session.close(*UNAUTHORIZED)
        return session

    def session(self, opening: ConnectRequest, verify: Callable[[str], float] | None = None) -> Session:
        """Return the session of a new client. `verify` replaces the check of its token."""
        return Session(
            opening,
            user_id=self.config.user_id,
            verify=verify or self.verify,
            auth_timeout=self.config.auth_timeout,
            now=asyncio.get_running_loop().time(),
            messages_per_second=self.config.max_messages_per_second,
            broadcasts=self.broadcast_allowance,
        )

    @contextlib.contextmanager
    def present(self, client: Place) -> Iterator[None]:
        """Register a client inside the block, which runs in the task that serves and closes it."""
        self._tasks[client] = cast("asyncio.Task[Any]", asyncio.current_task())
        try:
            yield
        finally:
            del self._tasks[client]
            if not client.parkable:
                self._active_at = time.monotonic()  # until its next poll
            self._admitted.discard(client)
            self.changed()

    async def submit(self, submission: Submission) -> int:
        """Store what a client published; see `Tail.submit`."""
        self.note_traffic()
        outcome = "unavailable"
        try:
            number = await self.tail.submit(submission)
            outcome = "stored"
        except Refused:
            outcome = "refused"
            raise
        except Full:
            outcome = "full"
            raise
        finally:
            self.metrics.submissions.labels(outcome).inc()
        return number

    def broadcast(self, content: Content, sender: str | None) -> None:
        """Send a broadcast of a client to the other clients of the user."""
        self.note_traffic()
        self.metrics.client_broadcasts.labels("sent").inc()
        self.tail.broadcast(content.message, sender)

    def try_broadcast(self, event: Any, data: Any, sender: str | None) -> str | None:
        """Send a broadcast of a client, if it is valid and within the limit. Return the reason if it is not sent."""
        allowance = self.broadcast_allowance
        if allowance is None:
            outcome, reason = "disabled", BROADCASTS_DISABLED
        elif not allowance.take(asyncio.get_running_loop().time()):
            outcome, reason = "limited", TOO_MANY_BROADCASTS
        else:
            try:
                self.broadcast(Content.parse(event, data), sender)
                return None
            except InvalidBroadcast as error:
                outcome, reason = "invalid", str(error)
        self.metrics.client_broadcasts.labels(outcome).inc()
        return reason

    def count_close(self, label: str, closing: CloseFrame | None) -> None:
        """Count the end of a client's connection, and the limit that it exceeded, if any."""
        self.metrics.closes.labels(label).inc()
        if closing is not None and closing.reason in _LIMITS:
            self.metrics.limited.labels(_LIMITS[closing.reason]).inc()

    def admit(self, client: Place) -> bool:
        """Admit an authenticated client. Return False if there are too many."""
        if len(self._admitted) >= self.config.max_connections:
            return False
        self._admitted.add(client)
        self.changed()
        self.metrics.accepted.inc()
        return True

    async def drain(self) -> None:
        """Close every client, spread over time, each after the events in the ring; reject new ones meanwhile.

        Takes at most `drain_timeout` seconds and one close; with few clients, much less.
        """
        self.draining = True
        loop = asyncio.get_running_loop()
        clients = list(self._tasks.items())
        random.shuffle(clients)
        window = min(self.config.drain_timeout, len(clients) * DRAIN_SPACING)
        for place, (client, _) in enumerate(clients):
            delay = window * (place + random.random()) / len(clients)  # noqa: S311 (no secret)
            loop.call_later(delay, client.leave)
        if clients:
            await asyncio.wait([task for _, task in clients], timeout=self.config.drain_timeout + CLOSE_TIMEOUT)

    async def abort_all(self) -> None:
        """Abort the remaining connections."""
        for place in list(self._tasks):
            place.abort()
        if self._tasks:
            await asyncio.wait(list(self._tasks.values()), timeout=CLOSE_TIMEOUT)


class Client:
    """One client: its session, and its position in the ring.

    Args:
        wake: set when there may be work.
        admitted: whether its connection was admitted before.
        broadcasts: the mark after which the client receives broadcasts; empty: from now on; None: none at all.
        sender: the name with which the client sends broadcasts, which it does not receive itself. By default a new one.
        parkable: whether an activator can keep the connection without the pod.
    """

    def __init__(
        self,
        session: Session,
        clients: Clients,
        writer: TransportWriter,
        wake: WakeupEvent,
        broadcasts: str | None = "",
        *,
        admitted: bool = False,
        sender: str | None = None,
        parkable: bool = True,
    ) -> None:
        self.session = session
        self.parkable = parkable
        self.writer = writer
        self.wake = wake
        self._clients = clients
        self._tail = clients.tail
        self._metrics = clients.metrics
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._ring: Ring | None = None  # the ring of the cursor
        self.broadcast_cursor = clients.tail.broadcasts.head if admitted else 0
        """The number of the last broadcast that the client has received or lost."""
        self._broadcasts = broadcasts
        self._sender = sender or clients.tail.broadcasts.new_sender()
        self._admitted = admitted
        self._leaving = False
        self._live = False  # waiting at the head: the age of the next event is its latency
        self._asked: tuple[asyncio.Task[Any], Callable[[Any], None]] | None = None
        self._unsent = 0  # bytes waiting for the socket when it was last seen to take some
        self._unsent_since: float | None = None  # and when that was

    @property
    def lag(self) -> int:
        """Events between the client and the head of its ring; 0 until its place is known."""
        return 0 if self._ring is None else max(0, self._ring.head - self.session.cursor)

    @property
    def wants_broadcasts(self) -> bool:
        return self._broadcasts is not None

    @property
    def unsent(self) -> int:
        return self.writer.unsent

    def abort(self) -> None:
        self.writer.abort()

    def leave(self) -> None:
        """Close as soon as what is in the ring is sent."""
        self._leaving = True
        self.wake.set()

    async def process_submissions(self) -> None:
        """Do the work for the client: send its broadcasts, store its messages, fetch keys for a new token."""
        session = self.session
        self._process_broadcasts()
        while session.submissions:
            submission = session.submissions.pop(0)
            try:
                outcome: int | Refused | Unavailable = await self._clients.submit(submission)
            except (Refused, Unavailable) as error:
                outcome = error
            session.acknowledge(submission.ref, outcome)
            self.wake.set()
        if session.renewing:
            await self._clients.verify.refresh()
            session.renew(self._loop.time())
            self.wake.set()

    def _process_broadcasts(self) -> None:
        session = self.session
        for content in session.broadcasts:
            self._clients.broadcast(content, self._sender)
        for failure in session.broadcast_failures:
            self._metrics.client_broadcasts.labels(failure).inc()
        session.broadcasts.clear()
        session.broadcast_failures.clear()

    async def run(self) -> None:
        """Serve the client until its session closes, and send the last messages; or until its writer is not open.

        If the writer opens again, this may be called again.
        """
        session = self.session
        try:
            while self.writer.open and session.closing is None:
                self.wake.clear()
                if self._advance():
                    await asyncio.sleep(0)
                elif self.writer.open:  # sending may have ended it
                    self._set_timer()
                    self._tail.call_once(self.wake.set)
                    await self.wake.wait()
            self._flush()
        finally:
            self._tail.cancel_call(self.wake.set)
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._asked is not None:
                self._asked[0].cancel()
                await asyncio.gather(self._asked[0], return_exceptions=True)
                self._asked = None

    def _advance(self) -> bool:
        """Do the next step that needs no waiting. Return False if there is none."""
        session = self.session
        if not session.authenticated and session.deadline <= self._loop.time():
            self._metrics.limited.labels("request_time").inc()
        session.tick(self._loop.time())
        if self._stuck_at() <= self._loop.time():
            session.close(CloseCode.TOO_SLOW, TOO_SLOW_REASON)
        self._flush()
        if session.closing is not None:
            return True
        if self.writer.paused:
            return False
        if self._asked is not None:
            return self._take_answer(*self._asked)
        if session.question is PendingLookup.KEYS:
            self._ask(self._find_keys(), lambda _: None)
            return False
        if not session.authenticated:
            return self._end_if_leaving()
        if session.question is not None:
            return self._find_position(session.question)
        if self._ring is not self._tail.ring:
            return self._change_ring()
        return self._send_events(self._ring)

    async def _find_keys(self) -> None:
        await self._clients.verify.refresh()
        self.session.retry(self._loop.time())
        await self.process_submissions()  # for messages that have arrived meanwhile

    def _flush(self) -> None:
        if messages := self.session.take():
            self.writer.write_messages(messages, self.session.cursor, self.session.epoch)

    def _ask(self, question: Coroutine[Any, Any, T], answer: Callable[[T], None]) -> None:
        """Start a query to Postgres or JWKS_URL. The client's task calls `answer` with the result."""
        task = asyncio.create_task(question)
        task.add_done_callback(lambda _: self.wake.set())
        self._asked = task, answer

    def _take_answer(self, task: asyncio.Task[T], answer: Callable[[T], None]) -> bool:
        if not task.done():
            return self._end_if_leaving()
        self._asked = None
        answer(task.result())
        return True

    def _end_if_leaving(self) -> bool:
        if self._leaving:
            self.session.close(CloseCode.RESTARTING, RESTARTING_REASON)
        return self._leaving

    def _find_position(self, question: PendingLookup) -> bool:
        if not self._admitted:
            self.writer.authenticated()
            if not self._clients.admit(self):
                self.session.close(CloseCode.TRY_LATER, TOO_MANY_REASON)
                return True
            self._admitted = True
            if not self.session.resumes:  # a client that comes back has no news
                self._clients.note_traffic()
            self.broadcast_cursor = self._tail.broadcasts.find(self._broadcasts or "")
        if question is PendingLookup.FRESH_POSITION or not self._tail.located:
            self._ask(self._tail.locate(), lambda _: self._locate())
            return False
        self._locate()
        return True

    def _locate(self) -> None:
        ring = self._tail.ring
        refusal = self.session.locate(self._tail.state)
        if self.session.question is None:
            self._ring = ring
            outcome: str = "head"
            if refusal is not None:
                outcome = refusal
            elif self.session.resumes:
                outcome = "ring" if ring.holds_after(self.session.cursor) else "log"
            self._metrics.starts.labels(outcome).inc()

    def _change_ring(self) -> bool:
        self._metrics.starts.labels(self.session.reset_to_new_log(self._tail.state)).inc()
        self._ring = self._tail.ring
        return True

    def _send_events(self, ring: Ring) -> bool:
        cursor = self.session.cursor
        batch = ring.read(cursor, CHUNK_BYTES)
        if batch is None:
            if not self._end_if_leaving():
                self._ask(self._tail.page(cursor, CHUNK_BYTES), lambda page: self._send_page(ring, cursor, page))
            return self._leaving
        if batch.cursor > cursor:
            if self._live:
                self._metrics.latency.observe(max(0.0, time.time() - ring.time(cursor + 1)))
            self._deliver(batch.frames, batch.cursor)
            self._live = False
        if batch.cursor < ring.head:
            return True
        self._live = True
        return self._send_broadcasts() or self._end_if_leaving()

    def _send_broadcasts(self) -> bool:
        """Send broadcasts, once the client has all events."""
        broadcasts = self._tail.broadcasts
        if self.broadcast_cursor == broadcasts.head or self._broadcasts is None:
            return False
        batch = broadcasts.read(self.broadcast_cursor, BROADCAST_BYTES, self._sender)
        if batch.frames:
            self._clients.note_traffic()
            self.writer.write_broadcasts(batch.frames)
        self.broadcast_cursor = batch.cursor
        self._metrics.delivered_broadcasts.inc(batch.number)
        self._metrics.broadcasts_dropped.labels("slow").inc(batch.lost)
        return True

    def _send_page(self, ring: Ring, cursor: int, page: Page) -> None:
        session = self.session
        if self._tail.ring is not ring or session.cursor != cursor or session.question is not None:
            return  # the cursor has changed since the read
        if page and page.first == cursor + 1:
            self._deliver(b"".join(page.frames()), page.last)
        else:
            # Retention has removed the next events since the state of the log was read.
            session.reset("too-old", self._tail.state)
            self._metrics.starts.labels("too-old").inc()

    def _deliver(self, frames: bytes, cursor: int) -> None:
        self._clients.note_traffic()
        self.writer.write_events(frames, cursor, self._tail.state.epoch)
        self._metrics.delivered_events.inc(cursor - self.session.cursor)
        self._metrics.delivered_bytes.inc(len(frames))
        self.session.cursor = cursor

    def _stuck_at(self) -> float:
        """Return when the client is too slow: a send timeout after it last read something, if data waits for it."""
        if not self.writer.paused:
            self._unsent_since = None
            return math.inf
        unsent = self.writer.unsent
        if self._unsent_since is None or unsent < self._unsent:
            self._unsent_since, self._unsent = self._loop.time(), unsent
        return self._unsent_since + self._clients.config.send_timeout

    def _set_timer(self) -> None:
        due = min(self.session.deadline, self._stuck_at())
        if self._timer is None or self._timer.when() != due:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(due, self.wake.set)
