"""WebSocket: clients whose writer is a `WebSocketConnection`.

Messages of the session are sent one by one. Events leave as the ring has them: many frames in one write.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final, Protocol

from websockets.datastructures import Headers
from websockets.frames import CloseCode as StandardCode
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol

from userrealtime_core import audit
from userrealtime_core.wire.connect_request import SUBPROTOCOL, CloseCode, ConnectRequest
from userrealtime_core.wire.cors import is_allowed
from userrealtime_core.wire.frames import encode_text
from userrealtime_core.wire.session import Session
from userrealtime_relay.delivery.clients import CLOSE_TIMEOUT, RESTARTING_REASON, Client, Clients
from userrealtime_relay.delivery.wakeup import WakeupEvent

from . import request_id
from .websocket_connection import ConnectionEnded, WebSocketConnection

SILENT: Final = (StandardCode.INTERNAL_ERROR, "No answer to a ping")
PINGS_AT_ONCE: Final = 50
"""How many clients are pinged before others get their turn."""
CLIENT_CODES: Final = (
    StandardCode.NORMAL_CLOSURE,
    StandardCode.GOING_AWAY,
    StandardCode.NO_STATUS_RCVD,
    StandardCode.ABNORMAL_CLOSURE,
)

_logger = logging.getLogger(__name__)
_protocol_logger = logging.getLogger("websockets.server")


class Pinged(Protocol):
    """Something that is pinged once each ping interval."""

    def ping(self) -> None:
        """Send a ping, and end the connection if the last one has not been answered."""


class WebSocketEndpoint(Protocol):
    """Serves the WebSockets at one path in the protocol of another system."""

    def refusal(self, request: Request) -> tuple[HTTPStatus, str] | None:
        """Return why a handshake is rejected, None if it is accepted."""

    def subprotocol(self, offered: Sequence[str]) -> str | None:
        """Return the subprotocol of a connection, one of those that the client offers, or None."""

    async def serve(self, connection: WebSocketConnection, request: Request, pinged: set[Pinged]) -> None:
        """Serve one connection until its end. It is a member of `pinged` meanwhile."""


class WebSockets:
    """All WebSockets of the relay. uvicorn calls it to get the protocol of a connection that is upgraded.

    Args:
        endpoints: those in the protocols of other systems, by path. The last segment of a path may be `*`, for any one.
    """

    def __init__(self, clients: Clients, endpoints: Mapping[str, WebSocketEndpoint] | None = None) -> None:
        self.config = clients.config
        self.tasks: set[asyncio.Task[None]] = set()
        """One for each connection whose handshake is complete."""
        self.paths = clients.config.paths("/ws")
        self._clients = clients
        self._endpoints = endpoints or {}
        self._pinged: set[Pinged] = set()

    def __call__(self, **_: Any) -> WebSocketConnection:
        """Return the protocol for one connection. uvicorn passes the request to it."""
        protocol = ServerProtocol(max_size=self.config.max_message_bytes, logger=_protocol_logger)
        return WebSocketConnection(protocol, self._clients.unauthenticated, self._respond, self._start)

    async def run(self) -> None:
        """Ping every client once each ping interval; a client that has not answered within another one is closed."""
        while True:
            await asyncio.sleep(self.config.ping_interval)
            for place, writer in enumerate(list(self._pinged)):
                writer.ping()
                if place % PINGS_AT_ONCE == PINGS_AT_ONCE - 1:
                    await asyncio.sleep(0)

    async def abort_all(self) -> None:
        """End the remaining connections without a closing handshake."""
        tasks = list(self.tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_TIMEOUT)

    def _respond(self, protocol: ServerProtocol, request: Request) -> Response:
        given = request.headers.get_all(request_id.HEADER)
        request_id.adopt(given[0] if len(given) == 1 else None)
        response = self._refusal(request) or protocol.accept(request)
        if response.status_code == HTTPStatus.SWITCHING_PROTOCOLS:
            endpoint, offered = self._endpoint(request), subprotocols(request)
            own = SUBPROTOCOL if SUBPROTOCOL in offered else None
            chosen = own if endpoint is None else endpoint.subprotocol(offered)
            if chosen is not None:
                response.headers["Sec-WebSocket-Protocol"] = chosen
        response.headers[request_id.HEADER] = request_id.current.get()
        return response

    def _refusal(self, request: Request) -> Response | None:
        endpoint = self._endpoint(request)
        if endpoint is None and request.path.partition("?")[0] not in self.paths:
            return _refuse(HTTPStatus.NOT_FOUND, f"there is no WebSocket here; it is at {self.paths[-1]}")
        allowed = self.config.allowed_origins  # clients other than browsers send no Origin
        if not all(is_allowed(origin, allowed) for origin in request.headers.get_all("Origin")):
            return _refuse(HTTPStatus.FORBIDDEN, "pages of this Origin may not connect; it must be in ALLOWED_ORIGINS")
        # More than the clients that may be connected: some connections are being closed.
        if len(self.tasks) > 4 * self.config.max_connections:
            self._clients.metrics.limited.labels("connections").inc()
            return _refuse(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections; try again later")
        if endpoint is not None and (rejected := endpoint.refusal(request)) is not None:
            return _refuse(*rejected)
        return None

    def _endpoint(self, request: Request) -> WebSocketEndpoint | None:
        if not self._endpoints:
            return None
        path = request.path.partition("?")[0]
        return self._endpoints.get(path) or self._endpoints.get(f"{path.rpartition('/')[0]}/*")

    def _start(self, connection: WebSocketConnection, request: Request) -> None:
        forwarded_for = request.headers.get_all("X-Forwarded-For")
        audit.set_client(connection.transport.get_extra_info("peername"), ", ".join(forwarded_for))
        task = asyncio.create_task(self._handle(connection, request))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _handle(self, connection: WebSocketConnection, request: Request) -> None:
        """Serve one connection until its end. Raises nothing."""
        endpoint = self._endpoint(request)
        try:
            if endpoint is None:
                await self._serve(connection, connect_request(request, query_token=self.config.allow_query_token))
            else:
                await endpoint.serve(connection, request, self._pinged)
        except Exception:
            _logger.exception("a connection failed")
        finally:
            connection.transport.abort()

    async def _serve(self, connection: WebSocketConnection, request: ConnectRequest) -> None:
        clients = self._clients
        session = clients.session(request)
        if clients.draining:  # accepted all the same: browsers report a close code, but not why a handshake failed
            session.close(CloseCode.RESTARTING, RESTARTING_REASON)
        await self._run_client(connection, session)
        code = close_label(connection.protocol)
        clients.count_close(code, session.closing)
        if code == str(int(StandardCode.MESSAGE_TOO_BIG)):
            clients.metrics.limited.labels("message_bytes").inc()
        _logger.info("connection closed", extra={"fields": {"code": code, "connected": clients.connected}})

    async def _run_client(self, connection: WebSocketConnection, session: Session) -> None:
        wake = WakeupEvent()
        writer = _Writer(connection, wake)
        client = Client(session, self._clients, writer, wake)
        connection.changed = wake.set
        self._pinged.add(writer)
        reader = asyncio.create_task(_read(connection, client))

        def ended(_: object) -> None:
            writer.ended = True
            wake.set()

        reader.add_done_callback(ended)  # it ends when the connection does
        with self._clients.present(client):
            try:
                await client.run()
                if reader.done():
                    reader.result()  # raises an unexpected error
                code, reason = session.closing or (SILENT if writer.silent else (StandardCode.NORMAL_CLOSURE, ""))
                await connection.close(code, reason)
            except Exception:
                _logger.exception("a client failed")
                await connection.close(StandardCode.INTERNAL_ERROR, "Internal error")
            finally:
                connection.changed = None
                self._pinged.discard(writer)
                reader.cancel()
                await asyncio.gather(reader, return_exceptions=True)


class _Writer:
    """The writer of a client's WebSocket. `ended` is set when no more messages can come, `silent` when the client has
    not answered a ping in time."""

    def __init__(self, connection: WebSocketConnection, wake: WakeupEvent) -> None:
        self._connection = connection
        self._wake = wake
        self.ended = False
        self.silent = False

    @property
    def open(self) -> bool:
        return self._connection.open and not self.ended and not self.silent

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
        return self._connection.unsent

    def abort(self) -> None:
        self._connection.abort()

    def write_messages(self, messages: Sequence[str], cursor: int, epoch: str | None) -> None:
        self._connection.write(b"".join(map(encode_text, messages)))

    def write_events(self, frames: bytes, cursor: int, epoch: str | None) -> None:
        self._connection.write(frames)

    def write_broadcasts(self, frames: bytes) -> None:
        self._connection.write(frames)


async def _read(connection: WebSocketConnection, client: Client) -> None:
    """Pass the client's messages to its session, no faster than the answers leave."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(ConnectionEnded):
        while True:
            message = await connection.receive()
            client.session.receive(message, loop.time())
            client.wake.set()
            await client.process_submissions()
            await asyncio.sleep(0)
            await connection.drain()


def close_label(protocol: ServerProtocol) -> str:
    """The close code for the metrics. All codes that a client chooses freely share one label."""
    if protocol.close_sent is not None and not protocol.close_rcvd_then_sent:
        return str(int(protocol.close_sent.code))
    code = protocol.close_code
    return str(int(code)) if code in CLIENT_CODES else "other"


def connect_request(request: Request, *, query_token: bool) -> ConnectRequest:
    """Return the token and the position in a handshake."""
    headers = request.headers
    return ConnectRequest.parse(
        query=request.path.partition("?")[2],
        authorization=headers.get_all("Authorization"),
        last_event_id=headers.get_all("Last-Event-ID"),
        subprotocols=subprotocols(request),
        query_token=query_token,
    )


def subprotocols(request: Request) -> list[str]:
    """Return the subprotocols that a client offers."""
    return [name.strip() for value in request.headers.get_all("Sec-WebSocket-Protocol") for name in value.split(",")]


def _refuse(status: HTTPStatus, message: str) -> Response:
    body = json.dumps({"error": message}).encode() + b"\n"
    headers = Headers(
        [("Connection", "close"), ("Content-Length", str(len(body))), ("Content-Type", "application/json")]
    )
    return Response(status.value, status.phrase, headers, body)
