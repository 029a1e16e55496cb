"""The steps between a connection and the wake of its user: route, origin, token, limits, body.

`Admission.admit` lists them in order. Each step returns or raises `Rejected`, and the cheap ones come first.
Until the token is accepted, the connection counts as unauthenticated, and no body is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import NamedTuple, Protocol

from websockets.frames import Opcode

from userrealtime_core import audit
from userrealtime_core.auth import connection_identity
from userrealtime_core.auth.errors import KeySetStale, Unauthorized
from userrealtime_core.protocols.dialect import KEYS_UNAVAILABLE, Credential, Opening, Signature
from userrealtime_core.unauthenticated import Unauthenticated
from userrealtime_core.wire.session import UNAUTHORIZED
from userrealtime_operator.activator.routes import Route, RouteTable
from userrealtime_operator.kube.types import NamespacedName

from .connection import EARLY_BYTES, ClientConnection
from .dialogue import Dialogue, dialect_of
from .origins import Origins
from .polls import Polls
from .request import Request
from .responses import Rejected, overloaded, unauthorized, unavailable, unknown_host


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one activator. Times are in seconds."""

    connections: int = 10_000
    """Connections of clients with a valid token."""
    user_connections: int = 1_000
    """The same, of one user."""
    unauthenticated: int = 1_000
    """Connections whose token was not accepted yet. The oldest is closed for a new one."""
    request_s: float = 10
    """The time for the head of a request, for a first message with a token, and for a body."""
    idle_s: float = 300
    """How long both directions of a forwarded connection may be silent. A relay sends pings more often."""
    query_token: bool = False
    """Whether a token in the query is accepted."""


class TokenChecker(Protocol):
    """Checks tokens, and signatures in place of tokens."""

    async def check(self, route: Route, token: str) -> None:
        """Return if a token is valid for a user.

        Raises:
            Unauthorized: the token is invalid.
            KeySetStale: the keys cannot be read at the moment.
        """

    async def check_signature(self, route: Route, content: str, signature: str) -> None:
        """Return if a signature is of one of the user's keys. Raises the same errors."""

    def cached_keys(self, route: Route) -> Sequence[str]:
        """Return the keys of a user that were used for the last check."""


class Admitted(NamedTuple):
    """A request with a valid token, and the user whom it is for."""

    request: Request
    route: Route


class Admission:
    """Admits the requests that may wake a user."""

    def __init__(
        self,
        routes: RouteTable,
        origins: Origins,
        tokens: TokenChecker,
        limits: Limits,
        is_parked: Callable[[NamespacedName], bool] = lambda _: False,
        ping_interval_s: float = 20,
    ) -> None:
        self._routes = routes
        self._origins = origins
        self._tokens = tokens
        self._limits = limits
        self._is_parked = is_parked
        self._ping_interval_s = ping_interval_s
        self.polls = Polls()
        """The sessions of long polling of Socket.IO."""
        self._unauthenticated = Unauthenticated(limits.unauthenticated)
        self._authenticated = 0
        self._per_user: Counter[Route] = Counter()

    @property
    def request_s(self) -> float:
        """The time in which a connection without a token must send one."""
        return self._limits.request_s

    @property
    def unauthenticated(self) -> int:
        """The number of connections whose token was not accepted yet."""
        return len(self._unauthenticated)

    @contextlib.asynccontextmanager
    async def evictable(self, connection: ClientConnection) -> AsyncIterator[None]:
        """Count a connection as unauthenticated until `admit` has accepted its token.

        Raises:
            TimeoutError: the connection was the oldest one, and has to be closed for a new one.
        """
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(None) as eviction:
            self._unauthenticated.enter(connection, lambda: eviction.reschedule(loop.time()))
            try:
                yield
            finally:
                self._unauthenticated.leave(connection)

    @contextlib.asynccontextmanager
    async def admit(self, connection: ClientConnection) -> AsyncIterator[Admitted]:
        """Check a connection's request, and count the connection against the limits while the block runs.

        Raises:
            Rejected: the connection is not forwarded.
            TimeoutError: the client did not send its request in time.
            EOFError: the client closed the connection.
        """
        request = await self._read_head(connection)
        connection.cors_headers = self._origins.response_headers(request)
        route = self._find_route(request)
        self._answer_preflight(request)
        self._check_endpoint(request, route)
        self._check_origin(request)
        if request.protocol(route.base_path) == "socketio":
            from . import polling  # late: few users have it

            if polling.is_poll(request):
                async with self._admit_poll(connection, request, route) as admitted:
                    yield admitted
                return
        await self._check_token(connection, request, route)
        self._unauthenticated.leave(connection)
        with self._slot(route):
            await self._read_body(connection, request)
            yield Admitted(request, route)

    async def _read_head(self, connection: ClientConnection) -> Request:
        async with asyncio.timeout(self._limits.request_s):
            return await connection.read_request()

    def _find_route(self, request: Request) -> Route:
        route = self._routes.find(request.host, request.path)
        if route is None:
            raise unknown_host()
        return route

    def _answer_preflight(self, request: Request) -> None:
        if not self._origins.is_preflight(request):
            return
        headers = self._origins.preflight_headers(request)
        if headers is None:
            raise Rejected(HTTPStatus.BAD_REQUEST, "this origin, method or header is not allowed")
        raise Rejected(HTTPStatus.OK, "", outcome="preflight", headers=headers)

    def _check_endpoint(self, request: Request, route: Route) -> None:
        """Reject what the relay would reject without checking the token."""
        protocols = self._routes.protocols(route.user)
        error = request.endpoint_error(route.base_path, protocols, parked=self._is_parked(route.user))
        if error is not None:
            raise Rejected(*error)

    def _check_origin(self, request: Request) -> None:
        if request.is_websocket and not self._origins.allows(request):
            raise Rejected(HTTPStatus.FORBIDDEN, "pages of this origin may not connect; add it to ALLOWED_ORIGINS")

    async def _check_token(self, connection: ClientConnection, request: Request, route: Route) -> None:
        protocol = request.protocol(route.base_path) if request.is_websocket else None
        if protocol is not None:
            await self._converse(connection, request, route, protocol)
            return
        token = request.opening(query_token=self._limits.query_token).token
        if token is None and request.is_websocket:
            await connection.accept_websocket()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._limits.request_s):
                    token = await connection.read_first_token()
        if token is None:
            raise unauthorized()
        self._set_audited_client(connection, request)
        try:
            await self._tokens.check(route, token)
        except Unauthorized:
            await connection.accept_websocket()
            raise unauthorized() from None
        except KeySetStale:
            await connection.accept_websocket()
            raise unavailable("The keys of tokens are temporarily unavailable; retry later") from None

    def _set_audited_client(self, connection: ClientConnection, request: Request) -> None:
        audit.set_client(connection.peer, ", ".join(request.values(b"x-forwarded-for")))

    async def _converse(self, connection: ClientConnection, request: Request, route: Route, protocol: str) -> None:
        """Speak the protocol of another system until a credential of the client is accepted."""
        dialect = dialect_of(protocol)
        refusal = dialect.refusal(request.parameters)
        if refusal is not None:
            raise Rejected(*refusal)
        opening = self._opening(request, route)
        connection.dialogue = dialogue = Dialogue(opening, dialect, self._greeting(protocol))
        self._set_audited_client(connection, request)
        try:
            async with asyncio.timeout(self._limits.request_s):
                await connection.accept_websocket()
                await self._authenticate(connection, dialogue, route)
        except TimeoutError:
            raise unauthorized() from None
        request.identity = connection_identity.encode(opening.identity, self._tokens.cached_keys(route))

    @contextlib.asynccontextmanager
    async def _admit_poll(
        self, connection: ClientConnection, request: Request, route: Route
    ) -> AsyncIterator[Admitted]:
        """Admit a request of a session of long polling. Only one with a valid token may wake the user."""
        from . import polling

        cors, polls = connection.cors_headers, self.polls
        polling.check(request, cors)
        sid = request.parameters.get("sid")
        if sid is None:
            raise polling.handshake(secrets.token_hex(12), time.time(), self._ping_interval_s, cors)
        request.may_wake = False
        request.identity = polling.identity_of(request, time.time())
        authenticated = polls.is_authenticated(sid)
        if request.has_body and not authenticated:
            polling.check_early_body(request)
            await self._read_body(connection, request)
            authenticated = bool(request.identity) and await self._check_first_messages(connection, request, route, sid)
            request.may_wake = authenticated
        if not authenticated:
            yield Admitted(request, route)
            return
        self._unauthenticated.leave(connection)
        with self._slot(route):
            if not request.body:
                await self._read_body(connection, request)
            yield Admitted(request, route)

    async def _check_first_messages(
        self, connection: ClientConnection, request: Request, route: Route, sid: str
    ) -> bool:
        """Return whether the messages of a session that begins have a valid credential.

        Raises:
            Rejected: they have another one.
        """
        from . import polling

        try:
            messages = polling.FirstMessages(self._opening(request, route), request.body)
        except ValueError:
            raise polling.invalid_body(connection.cors_headers) from None
        self._set_audited_client(connection, request)
        while (credential := messages.credential()) is not None:
            if await self._accepts(route, messages.dialogue, credential):
                self.polls.authenticate(sid)
                return True
        last = messages.last_packets()
        if last is None:
            return False
        self.polls.reject(sid, last)
        raise polling.accepted(connection.cors_headers)

    async def _authenticate(self, connection: ClientConnection, dialogue: Dialogue, route: Route) -> None:
        """Continue a dialogue until a credential is accepted."""
        messages = connection.early_messages()
        dialogue.begin(time.time())
        while True:
            while dialogue.question is not None:
                if await self._accepts(route, dialogue, dialogue.question.credential):
                    return
            if dialogue.closing is not None:
                raise unauthorized()
            await connection.send(dialogue.take())
            message = await anext(messages, None)
            if message is None:  # more than is processed before a credential
                raise unauthorized()
            dialogue.receive(_decoded(*message))

    async def _accepts(self, route: Route, dialogue: Dialogue, credential: Credential) -> bool:
        """Return whether a credential is valid. If it is not, the dialogue continues."""
        try:
            if isinstance(credential, Signature):
                await self._tokens.check_signature(route, *credential)
            else:
                await self._tokens.check(route, credential)
        except Unauthorized as error:
            dialogue.reject(UNAUTHORIZED, expired=str(error) == "expired")
        except KeySetStale:
            dialogue.reject(KEYS_UNAVAILABLE)
        else:
            return True
        return False

    def _opening(self, request: Request, route: Route) -> Opening:
        """Return what a dialect receives of a request."""
        return Opening(
            path=request.path,
            query=request.parameters,
            headers=request.headers,
            offered=request.offered_subprotocols,
            request=request.opening(query_token=self._limits.query_token),
            query_token=self._limits.query_token,
            identity=secrets.token_hex(12),
            user_id=route.user_id,
        )

    def _greeting(self, protocol: str) -> str:
        """Return the first message of a protocol whose dialect has none."""
        if protocol != "socketio":
            return ""
        from userrealtime_core.protocols.socketio_packets import open_packet  # late, as its dialect

        return open_packet(secrets.token_urlsafe(18), [], self._ping_interval_s, EARLY_BYTES)

    @contextlib.contextmanager
    def _slot(self, route: Route) -> Iterator[None]:
        """Count an authenticated connection while the block runs."""
        limits = self._limits
        if self._authenticated >= limits.connections or self._per_user[route] >= limits.user_connections:
            raise overloaded()
        self._authenticated += 1
        self._per_user[route] += 1
        try:
            yield
        finally:
            self._authenticated -= 1
            self._per_user[route] -= 1
            if not self._per_user[route]:
                del self._per_user[route]

    async def _read_body(self, connection: ClientConnection, request: Request) -> None:
        if request.has_body:
            async with asyncio.timeout(self._limits.request_s):
                await connection.read_body()


def _decoded(opcode: Opcode, message: bytes) -> str | bytes:
    """Return a message of a WebSocket as its type."""
    if opcode is Opcode.BINARY:
        return message
    try:
        return message.decode()
    except UnicodeDecodeError:
        raise unauthorized() from None
