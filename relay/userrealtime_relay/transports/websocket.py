"""WebSocket: a client carried by a connection of the `websockets` package.

Messages of the session are sent one by one; events leave as the ring has them, many frames in one write, straight to
the transport. Both are in order with what websockets itself writes (pongs, pings, the close frame), because websockets
never holds anything back: what it has to send it writes at once, in the same turn of the loop. After a close frame
nothing is written, since the state is looked at in that same turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any, Final, cast

from websockets import http11
from websockets.asyncio.server import Server, ServerConnection
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode as StandardCode
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import OPEN, Event
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from userrealtime_core.unauthenticated import Unauthenticated
from userrealtime_core.wire.connect_request import SUBPROTOCOL, CloseCode, ConnectRequest
from userrealtime_core.wire.cors import is_allowed
from userrealtime_relay.delivery.clients import (
    CLOSE_TIMEOUT,
    EVICTED_REASON,
    RESTARTING_REASON,
    UNSENT_LIMIT,
    WRITE_LIMIT,
    Client,
    Clients,
)
from userrealtime_relay.delivery.wakeup import WakeupEvent
from userrealtime_relay.wire.frames import encode_text
from userrealtime_relay.wire.session import Session

from . import request_id
from .http import MAX_REQUEST_HEAD

MAX_QUEUED_FRAMES: Final = 8
"""Frames of a client that may wait to be looked at; then its socket is not read from."""
EARLY_FRAMES: Final = 32
EARLY_BYTES: Final = 32 << 10
"""How much of what a client sends is parsed before it has authenticated; the rest waits until it has."""
EARLY_PIECE: Final = 1 << 10
"""Bytes that are parsed at a time before the client has authenticated: a frame may have 6."""
PING: Final = bytes((0x80 | Opcode.PING, 0))
SILENT: Final = (StandardCode.INTERNAL_ERROR, "No answer to a ping")
PINGS_AT_ONCE: Final = 50
"""How many clients are pinged before others get their turn."""
CLIENT_CODES: Final = (
    StandardCode.NORMAL_CLOSURE,
    StandardCode.GOING_AWAY,
    StandardCode.NO_STATUS_RCVD,
    StandardCode.ABNORMAL_CLOSURE,
)

# `Connection` has limited and parsed the head of the request. websockets parses it again, and would reject a line of
# 8 KiB: a token of the documented size, or the cookies of a large site.
http11.MAX_LINE_LENGTH = 2 * MAX_REQUEST_HEAD

_logger = logging.getLogger(__name__)
_protocol_logger = logging.getLogger("websockets.server")


class _Connection(ServerConnection):
    """websockets' connection, plus: notice of what happens to it, and bounds on the pongs that may pile up and on what
    is parsed before the client has authenticated.

    Less what weighs: a task for its pings, a logger, and a queue for those that wait to write, of whom there is one.
    """

    changed: Callable[[], None] | None = None
    _pongs = 0
    _pinged = False  # and not answered
    _authenticated = False
    _requested = False  # the opening request was read
    _early_frames = 0
    _early_bytes = 0
    _later = b""  # what is parsed once the client has authenticated

    def __init__(self, protocol: ServerProtocol, server: Server, unauthenticated: Unauthenticated) -> None:
        super().__init__(
            protocol,
            server,
            ping_interval=None,
            close_timeout=CLOSE_TIMEOUT,
            max_queue=MAX_QUEUED_FRAMES,
            write_limit=WRITE_LIMIT,
        )
        self.logger = self.protocol.logger = _protocol_logger
        cast(Any, self).drain_waiters = []
        self._unauthenticated = unauthenticated

    def evict(self) -> None:
        """Close for another unauthenticated connection, without waiting for the client."""
        if self.state is OPEN and not self.transport.get_write_buffer_size():
            self.protocol.send_close(CloseCode.TRY_LATER, EVICTED_REASON)
            self.transport.write(b"".join(self.protocol.data_to_send()))
            self.transport.close()
        else:
            self.transport.abort()

    def authenticated(self) -> None:
        """Parse all that the client sends from now on."""
        self._unauthenticated.leave(self.transport)
        self._authenticated = True
        if self._later:
            later, self._later = self._later, b""
            self._parse(later)
            if not self.recv_messages.paused:  # else websockets resumes
                self.transport.resume_reading()

    def ping(self) -> bool:  # type: ignore[override]
        """Send a ping, unless the last one is still without an answer: then it is False."""
        if self._pinged:
            return False
        self._pinged = True
        if self.state is OPEN:
            self.transport.write(PING)
        return True

    def process_event(self, event: Event) -> None:
        if isinstance(event, Frame) and event.opcode is Opcode.PONG:
            self._pinged = False
        self._early_frames += 1
        super().process_event(event)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._unauthenticated.enter(transport, self.evict)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # Linux
            connection: socket.socket = transport.get_extra_info("socket")
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_LIMIT)

    def connection_lost(self, exc: Exception | None) -> None:
        self._unauthenticated.leave(self.transport)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._authenticated or not self._requested:
            self._requested = True  # it comes whole, from uvicorn
            self._parse(data)
            return
        for begin in range(0, len(data), EARLY_PIECE):
            if self._later or self._early_frames >= EARLY_FRAMES or self._early_bytes >= EARLY_BYTES:
                self._later += data[begin:]
                self.transport.pause_reading()
                return
            piece = data[begin : begin + EARLY_PIECE]
            self._early_bytes += len(piece)
            self._parse(piece)

    def _parse(self, data: bytes) -> None:
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

    def __init__(self, clients: Clients) -> None:
        self.config = clients.config
        self.handler_tasks: set[asyncio.Task[None]] = set()
        self.paths = clients.config.paths("/ws")
        self._clients = clients
        self._carriers: set[_Carrier] = set()

    def __call__(self, **_: Any) -> ServerConnection:
        """A protocol for one connection, which uvicorn then gives the request to."""
        protocol = ServerProtocol(
            select_subprotocol=_select_subprotocol, max_size=self.config.max_message_bytes, extensions=None
        )
        return _Connection(protocol, cast(Server, self), self._clients.unauthenticated)

    def is_serving(self) -> bool:
        """Always: while draining, a client is let in to be told so, in words that a browser hands on."""
        return True

    async def handler(self, connection: ServerConnection) -> None:
        """All of one connection's life. Never raises."""
        task = cast("asyncio.Task[None]", asyncio.current_task())
        try:
            async with asyncio.timeout(self.config.auth_timeout):
                await connection.handshake(self._check_request, _add_request_id, server_header=None)
            if connection.state is OPEN:
                await self._serve(cast(_Connection, connection))
        except (ConnectionClosed, OSError, TimeoutError):
            pass  # before there was a client
        except Exception:
            _logger.exception("a connection failed")
        finally:
            connection.transport.abort()
            self.handler_tasks.discard(task)

    async def run(self) -> None:
        """Ping every client once each ping interval; those that are silent for another one are closed."""
        while True:
            await asyncio.sleep(self.config.ping_interval)
            for place, carrier in enumerate(list(self._carriers)):
                carrier.ping()
                if place % PINGS_AT_ONCE == PINGS_AT_ONCE - 1:
                    await asyncio.sleep(0)

    async def abort_all(self) -> None:
        """End what is left, at once."""
        tasks = list(self.handler_tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_TIMEOUT)

    async def _serve(self, connection: _Connection) -> None:
        clients = self._clients
        request = cast(Request, connection.request)
        session = clients.session(self._opening(request))
        # Headers are a good part of what a connection weighs, and websockets holds on to them.
        request.headers.clear()
        cast(Response, connection.response).headers.clear()
        if clients.draining:
            session.close(CloseCode.RESTARTING, RESTARTING_REASON)
        await self._carry(connection, session)
        code = _close_label(connection)
        clients.count_close(code, session.closing)
        if code == str(int(StandardCode.MESSAGE_TOO_BIG)):
            clients.metrics.limited.labels("message_bytes").inc()
        _logger.info("connection closed", extra={"fields": {"code": code, "connected": clients.connected}})

    async def _carry(self, connection: _Connection, session: Session) -> None:
        wake = WakeupEvent()
        carrier = _Carrier(connection, wake)
        client = Client(session, self._clients, carrier, wake)
        connection.changed = wake.set
        self._carriers.add(carrier)
        reader = asyncio.create_task(_read(connection, client))

        def ended(_: object) -> None:
            carrier.ended = True
            wake.set()

        reader.add_done_callback(ended)  # it ends when the connection does
        with self._clients.present(client):
            try:
                await client.run()
                if reader.done():
                    reader.result()  # raises what should not have happened
                code, reason = session.closing or (SILENT if carrier.silent else (StandardCode.NORMAL_CLOSURE, ""))
                await _close(connection, code, reason)
            except Exception:
                _logger.exception("a client failed")
                await _close(connection, StandardCode.INTERNAL_ERROR, "Internal error")
            finally:
                self._carriers.discard(carrier)
                reader.cancel()
                await asyncio.gather(reader, return_exceptions=True)

    def _check_request(self, _: ServerConnection, request: Request) -> Response | None:
        given = request.headers.get_all(request_id.HEADER)
        request_id.adopt(given[0] if len(given) == 1 else None)
        if request.path.partition("?")[0] not in self.paths:
            return _refuse(HTTPStatus.NOT_FOUND, f"there is no WebSocket here; it is at {self.paths[-1]}")
        allowed = self.config.allowed_origins  # what is no browser sends no Origin
        if not all(is_allowed(origin, allowed) for origin in request.headers.get_all("Origin")):
            return _refuse(HTTPStatus.FORBIDDEN, "pages of this Origin may not connect; it must be in ALLOWED_ORIGINS")
        # Of those without a token there are fewer: these are clients whose close takes its time.
        if len(self.handler_tasks) > 4 * self.config.max_connections:
            self._clients.metrics.limited.labels("connections").inc()
            return _refuse(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections; try again later")
        return None

    def _opening(self, request: Request) -> ConnectRequest:
        headers = request.headers
        offered = headers.get_all("Sec-WebSocket-Protocol")
        return ConnectRequest.parse(
            query=request.path.partition("?")[2],
            authorization=headers.get_all("Authorization"),
            last_event_id=headers.get_all("Last-Event-ID"),
            subprotocols=[name.strip() for value in offered for name in value.split(",")],
            query_token=self.config.allow_query_token,
        )


class _Carrier:
    """A client's WebSocket, as `Client` sees it. `ended` is set once nothing more can come from it, `silent` once it
    has not answered a ping in time."""

    def __init__(self, connection: _Connection, wake: WakeupEvent) -> None:
        self._connection = connection
        self._wake = wake
        self.ended = False
        self.silent = False

    @property
    def open(self) -> bool:
        return self._connection.state is OPEN and not self.ended and not self.silent

    def ping(self) -> None:
        if not self._connection.ping():
            self.silent = True
            self._wake.set()

    def authenticated(self) -> None:
        self._connection.authenticated()

    @property
    def paused(self) -> bool:
        return self._connection.paused

    @property
    def unsent(self) -> int:
        return self._connection.transport.get_write_buffer_size()

    def abort(self) -> None:
        self._connection.transport.abort()

    def write_messages(self, messages: Sequence[str], cursor: int, epoch: str | None) -> None:
        self._write(b"".join(map(encode_text, messages)))

    def write_events(self, frames: bytes, cursor: int, epoch: str | None) -> None:
        self._write(frames)

    def _write(self, frames: bytes) -> None:
        if self._connection.state is OPEN:
            self._connection.transport.write(frames)


async def _read(connection: _Connection, client: Client) -> None:
    """Pass on what the client says, no faster than its answers leave."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(ConnectionClosed, OSError):
        while True:
            message = await connection.recv()
            client.session.receive(message, loop.time())
            client.wake.set()
            await client.process_submissions()
            await asyncio.sleep(0)
            await connection.drain()


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


def _select_subprotocol(_: ServerProtocol, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    return Subprotocol(SUBPROTOCOL) if SUBPROTOCOL in offered else None


def _add_request_id(_connection: ServerConnection, _request: Request, response: Response) -> None:
    response.headers[request_id.HEADER] = request_id.current.get()


def _refuse(status: HTTPStatus, message: str) -> Response:
    body = json.dumps({"error": message}).encode() + b"\n"
    headers = Headers(
        [("Connection", "close"), ("Content-Length", str(len(body))), ("Content-Type", "application/json")]
    )
    return Response(status.value, status.phrase, headers, body)
