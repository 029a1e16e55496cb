"""WebSocket: a session and a cursor on a connection of the `websockets` package.

Messages of the session are sent one by one; events leave as the ring has them, many frames in one write, straight to
the transport. Both are in order with what websockets itself writes (pongs, pings, the close frame), because websockets
never holds anything back: what it has to send it writes at once, in the same turn of the loop. After a close frame
nothing is written, since the state is looked at in that same turn.

One task a client does all the sending. It waits in one place, for one event, which everything sets that may give it
something to do: the ring, the client's messages, a deadline, a page of the log, the socket being writable again, drain.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import random
import socket
import time
from collections.abc import Callable, Coroutine, Sequence
from http import HTTPStatus
from typing import Any, Final, TypeVar, cast

from websockets.asyncio.server import Server, ServerConnection
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response
from websockets.protocol import OPEN
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from userrealtime_relay.auth import TokenVerifier
from userrealtime_relay.config import Config
from userrealtime_relay.frame import encode_event, encode_text
from userrealtime_relay.log import Event
from userrealtime_relay.metrics import Metrics
from userrealtime_relay.ring import Ring
from userrealtime_relay.session import SUBPROTOCOL, Code, Opening, Question, Session
from userrealtime_relay.tail import Tail

CHUNK_BYTES: Final = 64 << 10
"""What a client is given at a time, of the ring or of the log, unless one event is bigger."""
WRITE_LIMIT: Final = 32 << 10
"""Bytes waiting in the process for a client's socket, from which on it is given no more."""
UNSENT_LIMIT: Final = 128 << 10
"""The same in the kernel, which would else take megabytes for a client that does not read."""
CLOSE_TIMEOUT: Final = 5
"""Seconds for the closing handshake; then the connection is cut."""
MAX_QUEUED_FRAMES: Final = 8
"""Frames of a client that may wait to be looked at; then its socket is not read from."""
DRAIN_SPACING: Final = 0.1
"""Seconds between two closes while draining, at the most: a thousand clients take the time allowed, one takes none."""
RESTARTING_REASON: Final = "Restarting: reconnect"
CLIENT_CODES: Final = (
    CloseCode.NORMAL_CLOSURE,
    CloseCode.GOING_AWAY,
    CloseCode.NO_STATUS_RCVD,
    CloseCode.ABNORMAL_CLOSURE,
)

T = TypeVar("T")

_logger = logging.getLogger(__name__)


class _Connection(ServerConnection):
    """websockets' connection, plus: word of what happens to it, and a bound on what answering pings may pile up."""

    changed: Callable[[], None] | None = None
    _pongs = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # Linux
            connection: socket.socket = transport.get_extra_info("socket")
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_LIMIT)

    def data_received(self, data: bytes) -> None:
        before = self.transport.get_write_buffer_size()
        super().data_received(data)
        if self.paused:
            self._pongs += self.transport.get_write_buffer_size() - before
            if self._pongs > WRITE_LIMIT:  # a client that pings and does not read
                self.transport.abort()
        self._notify()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._pongs = 0
        self._notify()

    def _notify(self) -> None:
        if self.changed is not None:
            self.changed()


class WebSockets:
    """All WebSockets of the relay.

    It is the factory that uvicorn asks for the protocol of an upgraded connection, and what websockets' connections
    take for their server: they start `handler`, keep `handler_tasks`, and ask `is_serving`.
    """

    def __init__(self, config: Config, tail: Tail, metrics: Metrics) -> None:
        self.config = config
        self.tail = tail
        self.metrics = metrics
        self.handler_tasks: set[asyncio.Task[None]] = set()
        self.paths = ("/ws", f"{config.base_path}/ws") if config.base_path else ("/ws",)
        self.verify = TokenVerifier(config)
        self.clients: dict[Client, asyncio.Task[None]] = {}
        self._admitted: set[Client] = set()
        self._draining = False
        metrics.connections.set_function(lambda: len(self._admitted))

    def __call__(self, **_: Any) -> ServerConnection:
        """A protocol for one connection, which uvicorn then gives the request to."""
        protocol = ServerProtocol(
            select_subprotocol=_select_subprotocol, max_size=self.config.max_message_bytes, extensions=None
        )
        return _Connection(
            protocol,
            cast(Server, self),
            ping_interval=self.config.ping_interval,
            ping_timeout=self.config.ping_interval,
            close_timeout=CLOSE_TIMEOUT,
            max_queue=MAX_QUEUED_FRAMES,
            write_limit=WRITE_LIMIT,
        )

    def is_serving(self) -> bool:
        """Always: while draining, a client is let in to be told so, in words that a browser hands on."""
        return True

    async def handler(self, connection: ServerConnection) -> None:
        """All of one connection's life. Never raises."""
        task = cast("asyncio.Task[None]", asyncio.current_task())
        try:
            async with asyncio.timeout(self.config.auth_timeout):
                await connection.handshake(self._check_request, server_header=None)
            if connection.state is OPEN:
                await self._serve(cast(_Connection, connection), task)
        except (ConnectionClosed, OSError, TimeoutError):
            pass  # before there was a client
        except Exception:
            _logger.exception("a connection failed")
        finally:
            connection.transport.abort()
            self.handler_tasks.discard(task)

    def admit(self, client: Client) -> bool:
        """Whether an authenticated client gets one of the places."""
        if len(self._admitted) >= self.config.max_connections:
            return False
        self._admitted.add(client)
        self.metrics.accepted.inc()
        return True

    async def drain(self) -> None:
        """Close every client, spread over time, each once it has what is in the ring; refuse new ones meanwhile.

        Lasts at most `drain_timeout` seconds and a closing handshake, and with few clients much less.
        """
        self._draining = True
        loop = asyncio.get_running_loop()
        clients = list(self.clients.items())
        random.shuffle(clients)
        window = min(self.config.drain_timeout, len(clients) * DRAIN_SPACING)
        for place, (client, _) in enumerate(clients):
            delay = window * (place + random.random()) / len(clients)  # noqa: S311 (no secret)
            loop.call_later(delay, client.leave)
        if clients:
            await asyncio.wait([task for _, task in clients], timeout=self.config.drain_timeout + CLOSE_TIMEOUT)

    async def cut(self) -> None:
        """End what is left, at once."""
        tasks = list(self.handler_tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_TIMEOUT)

    async def _serve(self, connection: _Connection, task: asyncio.Task[None]) -> None:
        waiting = len(self.clients) - len(self._admitted)
        if self._draining:
            await _close(connection, Code.RESTARTING, RESTARTING_REASON)
        elif waiting >= self.config.max_connections:
            await _close(connection, Code.TRY_LATER, "Too many connections")
        else:
            session = Session(
                _opening(cast(Request, connection.request)),
                user_id=self.config.user_id,
                verify=self.verify,
                auth_timeout=self.config.auth_timeout,
                now=asyncio.get_running_loop().time(),
            )
            client = Client(connection, session, self)
            self.clients[client] = task
            try:
                await client.run()
            finally:
                del self.clients[client]
                self._admitted.discard(client)
        code = _close_label(connection)
        self.metrics.closes.labels(code).inc()
        _logger.info("connection closed", extra={"fields": {"code": code, "connected": len(self._admitted)}})

    def _check_request(self, _: ServerConnection, request: Request) -> Response | None:
        if request.path.partition("?")[0] not in self.paths:
            return _refuse(HTTPStatus.NOT_FOUND, f"there is no WebSocket here; it is at {self.paths[-1]}")
        if len(self.handler_tasks) > 3 * self.config.max_connections:
            return _refuse(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections; try again later")
        return None


class Client:
    """One client: its session, and its place in the ring."""

    def __init__(self, connection: _Connection, session: Session, hub: WebSockets) -> None:
        self._connection = connection
        self.session = session
        self._hub = hub
        self._tail = hub.tail
        self._metrics = hub.metrics
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._ring: Ring | None = None  # the one that the cursor belongs to
        self._admitted = False
        self._leaving = False
        self._live = False  # waiting at the head, so that the next event's age is its latency
        self._asked: tuple[asyncio.Task[Any], Callable[[Any], None]] | None = None
        self._unsent = 0  # bytes waiting for the socket when it was last seen to take some
        self._unsent_since: float | None = None  # and when that was

    def leave(self) -> None:
        """Close with 1012 as soon as what is in the ring is sent."""
        self._leaving = True
        self._wake.set()

    async def run(self) -> None:
        """Serve the client until the connection is closed."""
        connection, session = self._connection, self.session
        connection.changed = self._wake.set
        connection.start_keepalive()
        reader = asyncio.create_task(self._read())
        reader.add_done_callback(lambda _: self._wake.set())  # it ends when the connection does
        try:
            while connection.state is OPEN and session.closing is None and not reader.done():
                self._wake.clear()
                if self._advance():
                    await asyncio.sleep(0)
                else:
                    self._set_timer()
                    self._tail.call_once(self._wake.set)
                    await self._wake.wait()
            if reader.done():
                reader.result()  # raises what should not have happened
            self._flush()
            code, reason = session.closing or (CloseCode.NORMAL_CLOSURE, "")
            await _close(connection, code, reason)
        except Exception:
            _logger.exception("a client failed")
            await _close(connection, CloseCode.INTERNAL_ERROR, "Internal error")
        finally:
            self._tail.forget(self._wake.set)
            if self._timer is not None:
                self._timer.cancel()
            tasks = [reader] if self._asked is None else [reader, self._asked[0]]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self) -> None:
        """Pass on what the client says, no faster than its answers leave."""
        with contextlib.suppress(ConnectionClosed, OSError):
            while True:
                message = await self._connection.recv()
                self.session.receive(message, self._loop.time())
                self._wake.set()
                await asyncio.sleep(0)
                await self._connection.drain()

    def _advance(self) -> bool:
        """Do the next thing that can be done without waiting. False if there is none."""
        session, connection = self.session, self._connection
        session.tick(self._loop.time())
        if self._stuck_at() <= self._loop.time():
            session.shut(Code.TOO_SLOW, "Too slow")
        self._flush()
        if session.closing is not None:
            return True
        if connection.paused:
            return False
        if self._asked is not None:
            return self._take_answer(*self._asked)
        if session.question is Question.KEYS:
            self._ask(self._hub.verify.refresh(), lambda _: session.retry(self._loop.time()))
            return False
        if not session.authenticated:
            return self._end_if_leaving()
        if session.question is not None:
            return self._find_position(session.question)
        if self._ring is not self._tail.ring:
            return self._change_ring()
        return self._send_events(self._ring)

    def _flush(self) -> None:
        for message in self.session.take():
            self._write(encode_text(message))

    def _write(self, frames: bytes) -> None:
        if self._connection.state is OPEN:
            self._connection.transport.write(frames)

    def _ask(self, question: Coroutine[Any, Any, T], answer: Callable[[T], None]) -> None:
        """Ask Postgres or JWKS_URL, and go on with `answer`, in the client's own task, when it has answered."""
        task = asyncio.create_task(question)
        task.add_done_callback(lambda _: self._wake.set())
        self._asked = task, answer

    def _take_answer(self, task: asyncio.Task[T], answer: Callable[[T], None]) -> bool:
        if not task.done():
            return self._end_if_leaving()
        self._asked = None
        answer(task.result())
        return True

    def _end_if_leaving(self) -> bool:
        if self._leaving:
            self.session.shut(Code.RESTARTING, RESTARTING_REASON)
        return self._leaving

    def _find_position(self, question: Question) -> bool:
        if not self._admitted:
            if not self._hub.admit(self):
                self.session.shut(Code.TRY_LATER, "Too many connections")
                return True
            self._admitted = True
        if question is Question.FRESH_POSITION or not self._tail.located:
            self._ask(self._tail.locate(), lambda _: self._locate())
            return False
        self._locate()
        return True

    def _locate(self) -> None:
        ring = self._tail.ring
        refusal = self.session.locate(self._tail.position)
        if self.session.question is None:
            self._ring = ring
            outcome: str = "head"
            if refusal is not None:
                outcome = refusal
            elif self.session.resumes:
                outcome = "ring" if ring.holds_after(self.session.cursor) else "log"
            self._metrics.starts.labels(outcome).inc()

    def _change_ring(self) -> bool:
        self._metrics.starts.labels(self.session.lose(self._tail.position)).inc()
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
        return self._end_if_leaving()

    def _send_page(self, ring: Ring, cursor: int, page: Sequence[Event]) -> None:
        session = self.session
        if self._tail.ring is not ring or session.cursor != cursor or session.question is not None:
            return  # it was read for a cursor that is no more
        if page and page[0].number == cursor + 1:
            self._deliver(b"".join(encode_event(*event) for event in page), page[-1].number)
        else:
            # The log has let go of what comes next, since it was last asked for its earliest number.
            session.reset("too-old", self._tail.position)
            self._metrics.starts.labels("too-old").inc()

    def _deliver(self, frames: bytes, cursor: int) -> None:
        self._write(frames)
        self._metrics.delivered_events.inc(cursor - self.session.cursor)
        self._metrics.delivered_bytes.inc(len(frames))
        self.session.cursor = cursor

    def _stuck_at(self) -> float:
        """When the client is too slow: a send timeout after it last took something, if data waits for it."""
        if not self._connection.paused:
            self._unsent_since = None
            return math.inf
        unsent = self._connection.transport.get_write_buffer_size()
        if self._unsent_since is None or unsent < self._unsent:
            self._unsent_since, self._unsent = self._loop.time(), unsent
        return self._unsent_since + self._hub.config.send_timeout

    def _set_timer(self) -> None:
        due = min(self.session.deadline, self._stuck_at())
        if self._timer is None or self._timer.when() != due:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(due, self._wake.set)


async def _close(connection: ServerConnection, code: int, reason: str) -> None:
    """The closing handshake, within `CLOSE_TIMEOUT` seconds; then the connection is cut."""
    try:
        # websockets limits the wait for the peer's answer, but not that for room to write the question.
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await connection.close(code, reason)
    except TimeoutError:
        connection.transport.abort()
        await connection.wait_closed()


def _close_label(connection: ServerConnection) -> str:
    """The close code for the metrics. What a client makes up is not told apart, so that the labels stay few."""
    protocol = connection.protocol
    if protocol.close_sent is not None and not protocol.close_rcvd_then_sent:
        return str(int(protocol.close_sent.code))
    code = connection.close_code
    return str(int(code)) if code in CLIENT_CODES else "other"


def _opening(request: Request) -> Opening:
    headers = request.headers
    return Opening.parse(
        query=request.path.partition("?")[2],
        authorization=headers.get_all("Authorization"),
        last_event_id=headers.get_all("Last-Event-ID"),
        subprotocols=[name.strip() for value in headers.get_all("Sec-WebSocket-Protocol") for name in value.split(",")],
    )


def _select_subprotocol(_: ServerProtocol, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    return Subprotocol(SUBPROTOCOL) if SUBPROTOCOL in offered else None


def _refuse(status: HTTPStatus, message: str) -> Response:
    body = json.dumps({"error": message}).encode() + b"\n"
    headers = Headers(
        [("Connection", "close"), ("Content-Length", str(len(body))), ("Content-Type", "application/json")]
    )
    return Response(status.value, status.phrase, headers, body)
