"""Socket.IO: its WebSockets, and the requests of its long polling.

A session of Engine.IO lives in one pod. A request that reaches another one is rejected, the client connects again, and
resumes at its position, which is in the client. While a session polls, its `sid` in the URLs stands for the token.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Final

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from websockets.http11 import Request

from userrealtime_core.auth import connection_identity
from userrealtime_core.protocols.dialect import Opening
from userrealtime_core.protocols.engineio import (
    BAD_REQUEST,
    CONTENT_TYPE,
    EARLY_BYTES,
    FORBIDDEN,
    UNKNOWN_SESSION,
    UNKNOWN_SESSION_TEXT,
    identity_in,
    request_error,
)
from userrealtime_core.protocols.socketio import SocketIO
from userrealtime_core.protocols.socketio_packets import open_packet, split
from userrealtime_core.unauthenticated import Unauthenticated
from userrealtime_core.wire.frames import encode_text
from userrealtime_relay.delivery.clients import RESTARTING_REASON, TOO_MANY_REASON, Clients
from userrealtime_relay.transports.body import read_client_body
from userrealtime_relay.transports.request import connect_request_of, connection_of, parameters_of
from userrealtime_relay.transports.sse import GONE
from userrealtime_relay.transports.websocket import Pinged, WebSocketEndpoint, close_label
from userrealtime_relay.transports.websocket_connection import WebSocketConnection

from .engineio import BadRequest, EngineSession
from .socket import SocketEndpoint, query_of

PATHS: Final = ("/socket.io/", "/socket.io")
SESSIONS_PER_CONNECTION: Final = 4
"""Sessions that may exist per connection of the limit: some have not authenticated, or are being closed."""


def endpoints(clients: Clients) -> tuple[Mapping[str, WebSocketEndpoint], Sequence[Route]]:
    """Return the WebSocket endpoint, by path, and the routes of the polls."""
    endpoint = EngineEndpoint(clients)
    paths = [path for suffix in PATHS for path in clients.config.paths(suffix)]
    return dict.fromkeys(paths, endpoint), [Route(path, endpoint.polling) for path in paths]


class EngineEndpoint(SocketEndpoint):
    """Serves the sessions of both transports."""

    def __init__(self, clients: Clients) -> None:
        super().__init__(clients, SocketIO)
        self.sessions: dict[str, EngineSession] = {}
        """Those that began with a poll, by their ids."""
        self.polling = Polling(self)
        self._unauthenticated = Unauthenticated(
            clients.config.max_connections, lambda: clients.metrics.limited.labels("unauthenticated").inc()
        )
        self._pinged: set[Pinged] = set()
        self._pinging: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def adoptable(self, request: Request, query: Mapping[str, str]) -> str | None:
        """Return the identity of a session that has begun at an activator; None if it cannot be taken over."""
        if self.clients.draining or self.full:
            return None
        return adopted_identity(query["sid"], request.headers.get_all(connection_identity.HEADER))

    def refusal(self, request: Request) -> tuple[HTTPStatus, str] | None:
        query = query_of(request)
        if query.get("transport") != "websocket":
            return HTTPStatus.BAD_REQUEST, "a WebSocket needs transport=websocket"
        if "sid" in query and query["sid"] not in self.sessions and self.adoptable(request, query) is None:
            return HTTPStatus.BAD_REQUEST, "this pod has no session with this sid"
        return super().refusal(request)

    async def serve(self, connection: WebSocketConnection, request: Request, pinged: set[Pinged]) -> None:
        opening = self.opening(request)
        session = self.sessions.get(opening.query.get("sid", ""))
        if session is None and "sid" in opening.query:
            session = self.begin(opening, opening.query["sid"])
        if session is None:
            session = EngineSession(secrets.token_urlsafe(18), self._unauthenticated, connection)
            session.write(encode_text(self.open_packet(session, upgrades=[])))
            await self._run(session, opening)
        elif await session.upgrade(connection):
            await session.ended.wait()
        else:
            await connection.close(1002, "This WebSocket has not taken over a session")

    def begin(self, opening: Opening, sid: str | None = None) -> EngineSession:
        """Return a new session that polls. It is served by a task of its own.

        Args:
            sid: the id, if the session has begun at an activator.
        """
        session = EngineSession(sid or secrets.token_urlsafe(18), self._unauthenticated)
        self.sessions[session.sid] = session
        task = asyncio.create_task(self._run(session, opening))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return session

    @property
    def full(self) -> bool:
        """Whether there are as many sessions as there may be."""
        return len(self.sessions) >= SESSIONS_PER_CONNECTION * self.clients.config.max_connections

    def open_packet(self, session: EngineSession, upgrades: Sequence[str]) -> str:
        """Return the first packet of a session."""
        config = self.clients.config
        return open_packet(session.sid, upgrades, config.ping_interval, config.max_message_bytes)

    async def _run(self, session: EngineSession, opening: Opening) -> None:
        """Serve a session until its end."""
        self._schedule_pings()
        try:
            closing = await self.carry(session, opening, self._pinged)
        finally:
            session.abort()
            self.sessions.pop(session.sid, None)
        if session.websocket is not None:
            code = close_label(session.websocket.protocol)
        else:
            code = GONE if closing is None else str(int(closing.code))
        self.count_close(code, closing)

    def _schedule_pings(self) -> None:
        """Start the timer of the pings, which runs while there are sessions."""
        if self._pinging is None:
            loop = asyncio.get_running_loop()
            self._pinging = loop.call_later(self.clients.config.ping_interval, self._ping)

    def _ping(self) -> None:
        self._pinging = None
        for place in list(self._pinged):
            place.ping()
        if self._pinged:
            self._schedule_pings()


class Polling:
    """The ASGI application of the polls."""

    def __init__(self, endpoint: EngineEndpoint) -> None:
        self._endpoint = endpoint
        self._clients = endpoint.clients

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        query = parameters_of(scope)
        session = self._endpoint.sessions.get(query.get("sid", ""))
        connection = connection_of(scope)
        identity = None
        if session is None and "sid" in query:
            identity = adopted_identity(query["sid"], Headers(scope=scope).getlist(connection_identity.HEADER))
        refusal = self._refusal(
            scope["method"], query, session, has_body=connection.has_body, adopted=identity is not None
        )
        if refusal is None and identity is not None:
            session = self._endpoint.begin(self._opening(scope, identity), query["sid"])
        if refusal is not None:
            response = _refuse(*refusal)
        elif session is None:
            session = self._endpoint.begin(self._opening(scope, secrets.token_hex(12)))
            response = _answer(self._endpoint.open_packet(session, upgrades=["websocket"]).encode())
        elif scope["method"] == "POST":
            response = await self._post(session, scope, receive)
        else:
            response = await self._poll(session, scope, query.get("t", ""))
        if scope["method"] == "GET" and session is not None:
            # A response that does not arrive would be a gap: the client does not ask for the same messages again.
            patience = self._clients.config.send_timeout
            await connection.finish(response(scope, receive, send), patience=patience)
            if connection.lost.is_set():
                session.abort()
        else:
            await response(scope, receive, send)

    def _refusal(
        self, method: str, query: Mapping[str, str], session: EngineSession | None, *, has_body: bool, adopted: bool
    ) -> tuple[int, str] | None:
        """Return why a request is rejected, as a code of Engine.IO and a text; None if it is not."""
        error = request_error(method, query, has_body=has_body)
        if error is not None:
            return error
        if "sid" in query and not adopted:
            if session is None:
                return UNKNOWN_SESSION, UNKNOWN_SESSION_TEXT
            if session.websocket is not None or session.ended.is_set():
                return BAD_REQUEST, "a WebSocket has taken over this session, or it has ended"
            return None
        clients = self._clients
        if clients.draining:
            return FORBIDDEN, RESTARTING_REASON
        if self._endpoint.full:
            clients.metrics.limited.labels("connections").inc()
            return FORBIDDEN, TOO_MANY_REASON
        return None

    def _opening(self, scope: Scope, identity: str) -> Opening:
        config = self._clients.config
        return Opening(
            path=scope["path"],
            query=parameters_of(scope),
            headers=dict(Headers(scope=scope)),
            offered=(),
            request=connect_request_of(scope, config),
            query_token=config.allow_query_token,
            identity=identity,
            user_id=config.user_id,
            broadcasts=self._clients.broadcast_allowance is not None,
        )

    async def _poll(self, session: EngineSession, scope: Scope, name: str) -> Response:
        config = self._clients.config
        dead_after = 2 * max(config.ping_interval, config.send_timeout)
        try:
            body = await session.poll(connection_of(scope), name, dead_after=dead_after)
        except BadRequest as error:
            return _refuse(BAD_REQUEST, str(error))
        return _answer(body, last=session.closing)

    async def _post(self, session: EngineSession, scope: Scope, receive: Receive) -> Response:
        clients, connection = self._clients, connection_of(scope)
        limit = clients.config.max_message_bytes
        if not session.is_authenticated:
            limit = min(limit, EARLY_BYTES)
            if "transfer-encoding" in Headers(scope=scope):  # each chunk costs as much as a body
                session.abort()
                return _refuse(BAD_REQUEST, "send the first message with Content-Length")
        try:
            with session.posting(connection):
                body = await read_client_body(connection, receive, clients, limit)
                if isinstance(body, Response):
                    return body
                if connection.lost.is_set():  # the body may be incomplete
                    return _refuse(BAD_REQUEST, "the connection was lost")
                await session.post(split(body))
        except BadRequest as error:
            return _refuse(BAD_REQUEST, str(error))
        return _answer(b"ok", last=session.closing)


def _answer(body: bytes, *, last: bool = False) -> Response:
    headers = {"Content-Type": CONTENT_TYPE, "Cache-Control": "no-store"}
    if last:
        headers["Connection"] = "close"  # the next request is for another relay
    return Response(body, headers=headers)


def _refuse(code: int, message: str) -> Response:
    status = HTTPStatus.SERVICE_UNAVAILABLE if code == FORBIDDEN else HTTPStatus.BAD_REQUEST
    body = json.dumps({"code": code, "message": message})
    headers = {"Content-Type": "application/json", "Cache-Control": "no-store"}
    return Response(body, status, headers=headers)


def adopted_identity(sid: str, given: Sequence[str]) -> str | None:
    """Return the identity of a session that has begun at an activator, None if this is not such a session.

    A session that ends is not adopted again by a request that comes directly: its client has to begin again.

    Args:
        given: the values of the header with the identity.
    """
    identity = identity_in(sid, time.time())
    return identity if identity is not None and [*given] == [identity] else None
