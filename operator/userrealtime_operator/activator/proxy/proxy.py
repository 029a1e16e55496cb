"""The activator's public port: one connection, one request, carried to the pod it wakes.

    read the head -> find the user -> check the token -> read the body -> wake -> pass the request on -> carry bytes

Nobody is woken before the token is found good, by the relay's own code. A WebSocket whose token comes in its first
message is answered here; what it sends is kept as the bytes that came, and the pod gets them as if they came to it.
Each stage has a time limit, each connection one bounded buffer each way, and there are only so many connections.
Those that have not authenticated are counted apart, and the oldest of them is closed when there are too many: so they
take the place of no client with a valid token.

While draining, whoever waits is told to come again, and so is a carried WebSocket, between two frames of the pod's; any
other answer under way is cut, and its client goes on from the last event that it has whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, Protocol, TypeVar

from websockets import http11
from websockets.frames import Close, Frame, Opcode
from websockets.http11 import Request as Handshake
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from userrealtime_core.auth.errors import KeySetStale, Unauthorized
from userrealtime_core.unauthenticated import Unauthenticated
from userrealtime_core.wire.connect_request import SUBPROTOCOL, CloseCode
from userrealtime_operator.activator.metrics import Metrics
from userrealtime_operator.activator.routes import Route, RouteTable
from userrealtime_operator.activator.wakes import WakeFailed, Wakes

from .frames import Frames
from .origins import Headers, Origins
from .request import MAX_HEAD_BYTES, BadRequest, Reader, Request

# `Reader` has limited the head of the request. websockets parses it again, and would reject a line of 8 KiB.
http11.MAX_LINE_LENGTH = 2 * MAX_HEAD_BYTES

CHUNK_BYTES: Final = 64 << 10
MAX_HELD_BYTES: Final = 128 << 10
"""Of what a WebSocket sends before the pod is there; over it, the connection is closed."""
EARLY_FRAMES: Final = 32
EARLY_BYTES: Final = 32 << 10
"""How much of a WebSocket is parsed in search of the message with the token."""
FRAMES_BYTES: Final = 1 << 10
BODY_BYTES: Final = 4 << 10
"""Of frames and of a body, what is parsed at a time: a frame or a chunk may have 6 bytes."""
HANDSHAKE_TIMEOUT_S: Final = 10
CLOSE_TIMEOUT_S: Final = 2
ATTEMPTS: Final = 3
"""At passing a request on, while pods end before they answer."""
RETRY_AFTER_S: Final = (5, 15)
"""Between which a client is told to wait: random, so that clients do not come back all at once."""
_UNAUTHORIZED: Final = "Unauthorized"
_CROWDED: Final = "Too many connections"
_EVICTED: Final = "Too many unauthenticated connections"
_ASLEEP: Final = "The user's pod does not come; try again later"
_RESTARTING: Final = "Restarting"
T = TypeVar("T")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much the activator takes on. Times are in seconds."""

    connections: int = 10_000
    """Of clients with a valid token."""
    user_connections: int = 1_000
    """The same, of one user."""
    unauthenticated: int = 1_000
    """Connections whose token is not checked yet; the oldest is closed for a new one."""
    request_s: float = 10
    """For the head of a request to arrive, then for a first message with a token, and then for a body."""
    idle_s: float = 300
    """For which a carried connection may be silent both ways; a relay pings more often."""
    query_token: bool = False


class Tokens(Protocol):
    """What tells good tokens."""

    async def check(self, route: Route, token: str) -> None:
        """Returns if a user's token is good. Raises Unauthorized, or KeySetStale if that cannot be told now."""


class _PodGone(Exception):
    """The pod did not answer. `may_repeat`: whether nothing can have been done that must not be done twice."""

    def __init__(self, why: str, may_repeat: bool) -> None:
        super().__init__(why)
        self.may_repeat = may_repeat


class _Refused(Exception):
    """The answer to a connection that is not carried: a status, or for what is a WebSocket already, a close code."""

    def __init__(
        self,
        status: HTTPStatus,
        why: str,
        code: CloseCode | None = None,
        outcome: str = "refused",
        headers: Headers | None = None,
    ) -> None:
        super().__init__(why)
        self.status = status
        self.code = code
        self.outcome = outcome
        self.headers = headers
        """In the place of those that any answer to the client's page has."""


class Gate:
    """All connections of the activator."""

    def __init__(
        self,
        routes: RouteTable,
        wakes: Wakes,
        tokens: Tokens,
        limits: Limits,
        origins: Origins,
        metrics: Metrics,
    ) -> None:
        self._routes = routes
        self._wakes = wakes
        self._tokens = tokens
        self._limits = limits
        self._origins = origins
        self._metrics = metrics
        self._tasks: set[asyncio.Task[Any]] = set()
        self._unauthenticated = Unauthenticated(limits.unauthenticated)
        self._authenticated = 0
        self._held: Counter[Route] = Counter()
        self._server: asyncio.Server
        metrics.connections.set_function(lambda: len(self._tasks))
        metrics.unauthenticated.set_function(lambda: len(self._unauthenticated))

    @property
    def connections(self) -> int:
        """How many there are now."""
        return len(self._tasks)

    @property
    def port(self) -> int:
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def listen(self, host: str, port: int) -> None:
        """Begin to take connections. Raises OSError if the port cannot be had."""
        self._server = await asyncio.start_server(self._serve, host, port, limit=CHUNK_BYTES, backlog=512)

    async def drain(self, over_s: float) -> None:
        """Take no more connections, and end those there are spread over so many seconds."""
        self._server.close()
        tasks = list(self._tasks)
        random.shuffle(tasks)
        for task in tasks:
            task.cancel()
            await asyncio.sleep(over_s / len(tasks))
        for task in self._tasks.difference(tasks):
            task.cancel()  # came in just before
        await self._wakes.close()
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=2 * CLOSE_TIMEOUT_S + 1)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  (asyncio runs this in a task of its own)
        self._tasks.add(task)
        connection = _Connection(reader, writer, self._metrics)
        try:
            try:
                await self._answer(connection)
            except asyncio.CancelledError:
                task.uncancel()  # asyncio's streams take a cancelled task for a fault
                self._count("drained")
                await connection.leave()
        except Exception:
            self._count("failed")
            _logger.exception("a connection failed")
        finally:
            self._tasks.discard(task)
            writer.close()

    def _count(self, outcome: str) -> None:
        self._metrics.outcomes.labels(outcome).inc()

    async def _answer(self, connection: _Connection) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(None) as stay:
                self._unauthenticated.enter(connection, lambda: stay.reschedule(loop.time()))
                try:
                    await self._respond(connection)
                finally:
                    self._unauthenticated.leave(connection)
        except TimeoutError:
            if connection.evict(_Refused(HTTPStatus.SERVICE_UNAVAILABLE, _EVICTED, CloseCode.TRY_LATER)):
                self._count("evicted")

    async def _respond(self, connection: _Connection) -> None:
        try:
            outcome = await self._carry(connection)
        except _Refused as refused:
            self._count(refused.outcome)
            await connection.refuse(refused)
        except (OSError, EOFError, TimeoutError):
            self._count("gone")  # the peer, or it says nothing
        else:
            self._count(outcome)

    async def _carry(self, connection: _Connection) -> str:
        async with asyncio.timeout(self._limits.request_s):
            request = await connection.read()
        connection.headers = self._origins.headers(request)
        route = self._routes.find(request.host, request.path)
        if route is None:
            raise _Refused(HTTPStatus.NOT_FOUND, "not found", outcome="stranger")
        if self._origins.is_preflight(request):
            may = self._origins.preflight(request)
            if may is None:
                raise _Refused(HTTPStatus.BAD_REQUEST, "a page may not send this")
            raise _Refused(HTTPStatus.OK, "", outcome="preflight", headers=may)
        refusal = request.refusal(route.base_path)
        if refusal is not None:
            raise _Refused(*refusal)
        if request.is_websocket and not request.path.endswith("/ws"):
            raise _Refused(HTTPStatus.NOT_FOUND, "there is no WebSocket here")
        if request.is_websocket and not self._origins.admit(request):
            raise _Refused(HTTPStatus.FORBIDDEN, "pages of this Origin may not connect; it must be in ALLOWED_ORIGINS")
        await self._admit(connection, request, route)
        self._unauthenticated.leave(connection)
        limits = self._limits
        if self._authenticated >= limits.connections or self._held[route] >= limits.user_connections:
            raise _Refused(HTTPStatus.SERVICE_UNAVAILABLE, _CROWDED, CloseCode.TRY_LATER, "crowded")
        self._authenticated += 1
        self._held[route] += 1
        try:
            if request.has_body:
                async with asyncio.timeout(limits.request_s):
                    await connection.read_body()
            return await self._pass_on(connection, request, route)
        finally:
            self._held[route] -= 1
            if not self._held[route]:
                del self._held[route]

    async def _admit(self, connection: _Connection, request: Request, route: Route) -> None:
        """Returns if the client's token is good."""
        token = request.opening(query_token=self._limits.query_token).token
        if request.is_websocket and token is None:
            await connection.accept_if_websocket()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._limits.request_s):
                    token = await connection.first_token()
        if token is None:
            raise _Refused(HTTPStatus.UNAUTHORIZED, _UNAUTHORIZED, CloseCode.POLICY_VIOLATION, "unauthorized")
        try:
            await self._tokens.check(route, token)
        except Unauthorized:
            await connection.accept_if_websocket()
            raise _Refused(HTTPStatus.UNAUTHORIZED, _UNAUTHORIZED, CloseCode.POLICY_VIOLATION, "unauthorized") from None
        except KeySetStale:
            raise await self._failure(connection, "The token cannot be checked now") from None

    async def _failure(self, connection: _Connection, why: str) -> _Refused:
        await connection.accept_if_websocket()
        return _Refused(HTTPStatus.SERVICE_UNAVAILABLE, why, CloseCode.TRY_LATER, "failed")

    async def _pass_on(self, connection: _Connection, request: Request, route: Route) -> str:
        began = time.monotonic()
        for attempts_left in reversed(range(ATTEMPTS)):
            try:
                return await self._try(connection, request, route, began)
            except (WakeFailed, _PodGone) as error:
                if attempts_left and isinstance(error, _PodGone) and error.may_repeat:
                    continue
                fields = {"user": str(route.user), "why": str(error)}
                _logger.warning("a wake failed", extra={"fields": fields})
                raise await self._failure(connection, _ASLEEP) from None
        raise AssertionError  # the last attempt has returned or raised

    async def _try(self, connection: _Connection, request: Request, route: Route, began: float) -> str:
        address = await connection.unless_gone(self._wakes.arrive(route))
        pod_reader, pod_writer = await _open(*address)
        try:
            answer = await connection.unless_gone(self._ask(request, pod_reader, pod_writer))
            seconds = round(time.monotonic() - began, 3)
            _logger.info("carrying", extra={"fields": {"user": str(route.user), "waited_s": seconds}})
            await self._exchange(connection, request, answer, pod_reader, pod_writer)
        finally:
            pod_writer.close()
        return "carried"

    async def _ask(self, request: Request, pod_reader: asyncio.StreamReader, pod_writer: asyncio.StreamWriter) -> bytes:
        """The first bytes of the pod's answer: for a WebSocket, its head."""
        limit_s = HANDSHAKE_TIMEOUT_S if request.is_websocket else self._limits.idle_s
        try:
            async with asyncio.timeout(limit_s):
                # Without extensions, so that both handshakes agree on the frames that follow.
                pod_writer.write(request.written(without=[b"sec-websocket-extensions"]))
                await pod_writer.drain()
                if request.is_websocket:
                    return await pod_reader.readuntil(b"\r\n\r\n")
                answer = await pod_reader.read(CHUNK_BYTES)
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError) as error:
            raise _PodGone(f"the pod does not answer: {type(error).__name__}", request.is_repeatable) from None
        if not answer:
            raise _PodGone("the pod ended before it answered", request.is_repeatable)
        return answer

    async def _exchange(
        self,
        connection: _Connection,
        request: Request,
        answer: bytes,
        pod_reader: asyncio.StreamReader,
        pod_writer: asyncio.StreamWriter,
    ) -> None:
        if not request.is_websocket:
            await connection.begin(answer)
            await connection.carry(pod_reader, None, self._limits.idle_s)
            return
        switched = answer.startswith(b"HTTP/1.1 101 ")
        if connection.websocket is None:
            await connection.begin(answer)
        elif not switched:
            raise _Refused(HTTPStatus.BAD_GATEWAY, "The user's pod does not take this connection", CloseCode.TRY_LATER)
        if switched:
            connection.frames = Frames()
            pod_writer.write(connection.kept)
            await connection.carry(pod_reader, pod_writer, self._limits.idle_s)
        else:
            # Not a word of what the client sends: it would be another request.
            await connection.carry(pod_reader, None, CLOSE_TIMEOUT_S)


async def _open(host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    try:
        async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
            return await asyncio.open_connection(host, port, limit=CHUNK_BYTES)
    except (OSError, TimeoutError) as error:
        raise _PodGone(f"the pod cannot be reached: {type(error).__name__}", may_repeat=True) from None


class _Connection:
    """A client's connection. `kept` is what it sent after its request, for the pod."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, metrics: Metrics) -> None:
        self._reader = reader
        self._writer = writer
        self._to_pod = metrics.carried.labels("pod")
        self._to_client = metrics.carried.labels("client")
        self._request_reader = Reader()
        self._request: Request | None = None
        self._begun = False
        """Whether the answer is under way."""
        self.kept = b""
        self.headers: Headers = ()
        """What any answer says to the client's page."""
        self.websocket: ServerProtocol | None = None
        """Set once its handshake was answered here."""
        self.frames: Frames | None = None
        """What the pod sends, once it speaks WebSocket."""

    async def read(self) -> Request:
        """The request, without its body.

        Raises:
            _Refused: it is none.
            EOFError: the connection ended without a byte.
        """
        reader = self._request_reader
        began = False
        while True:
            data = await self._reader.read(CHUNK_BYTES)
            if not data and not began:
                raise EOFError
            began = True
            try:
                request = reader.read_head(data)
            except BadRequest as error:
                raise _Refused(error.status, str(error)) from None
            if request is not None:
                self.kept = reader.rest if request.is_websocket else b""
                self._request = request
                return request

    async def read_body(self) -> None:
        """Read the body of the request, in turns with other connections.

        Raises:
            _Refused: it is none, or too large.
        """
        assert self._request is not None  # noqa: S101  (read)
        try:
            body = self._request_reader.read_body()
            while body is None:
                body = self._request_reader.read_body(await self._reader.read(BODY_BYTES))
                await asyncio.sleep(0)
        except BadRequest as error:
            raise _Refused(error.status, str(error)) from None
        self._request.body = body

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def begin(self, answer: bytes) -> None:
        """Send the beginning of the pod's answer."""
        self._begun = True
        self._to_client.inc(len(answer))
        await self.send(answer)

    async def accept_if_websocket(self) -> None:
        """Answer a WebSocket's handshake, if that was not done: a browser hands on a close code, but no status.

        Raises:
            _Refused: it is not a right one.
        """
        request = self._request
        if self.websocket is not None or request is None or not request.is_websocket:
            return
        websocket = ServerProtocol(select_subprotocol=_select_subprotocol, max_size=CHUNK_BYTES, extensions=None)
        websocket.receive_data(request.written(without=[b"sec-websocket-extensions"]))
        for event in websocket.events_received():
            if isinstance(event, Handshake):
                websocket.send_response(websocket.accept(event))
                await self.send(b"".join(websocket.data_to_send()))
        if websocket.handshake_exc is not None:
            raise _Refused(HTTPStatus.BAD_REQUEST, "not a WebSocket handshake")
        self.websocket = websocket

    async def first_token(self) -> str | None:
        """The token of the first message, if it is an `auth` message that has one."""
        assert self.websocket is not None  # noqa: S101  (accepted)
        text = b""
        frames = 0
        async for piece in self._pieces():
            self.websocket.receive_data(piece)
            for event in self.websocket.events_received():
                frames += 1
                if not isinstance(event, Frame) or event.opcode is Opcode.CLOSE:
                    raise EOFError
                if event.opcode in (Opcode.TEXT, Opcode.CONT):
                    text += bytes(event.data)
                    if event.fin:
                        return _token(text)
                elif event.opcode is Opcode.BINARY:
                    return None
            if frames > EARLY_FRAMES:
                return None
        return None

    async def _pieces(self) -> AsyncIterator[bytes]:
        """What the client sends after its request, up to `EARLY_BYTES`; all of it is kept."""
        begin = 0
        while begin < EARLY_BYTES:
            if begin == len(self.kept):
                await self._keep()
            piece = self.kept[begin : begin + FRAMES_BYTES]
            begin += len(piece)
            yield piece

    async def _keep(self) -> bytes:
        data = await self._reader.read(CHUNK_BYTES)
        if not data:
            raise EOFError
        self.kept += data
        if len(self.kept) > MAX_HELD_BYTES:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "Too much before the pod is there", CloseCode.TRY_LATER)
        return data

    async def unless_gone(self, waiting: Awaitable[T]) -> T:
        """The result of what is awaited; EOFError if the client goes meanwhile. What it sends is kept."""
        wait = asyncio.ensure_future(waiting)
        watch = asyncio.create_task(self._watch())
        try:
            await asyncio.wait([wait, watch], return_when=asyncio.FIRST_COMPLETED)
            if watch.done() and not wait.done():
                watch.result()
            return await wait
        finally:
            for task in (wait, watch):
                task.cancel()
            await asyncio.gather(wait, watch, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            await self._keep()

    async def carry(
        self, pod_reader: asyncio.StreamReader, pod_writer: asyncio.StreamWriter | None, idle_s: float
    ) -> None:
        """Carry bytes until one side ends, or both are silent.

        Without `pod_writer`, what the client sends is dropped.
        """
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(idle_s) as idle:

            async def to_client() -> None:
                while data := await pod_reader.read(CHUNK_BYTES):
                    self._hand_on(data)
                    await self._writer.drain()
                    idle.reschedule(loop.time() + idle_s)

            async def to_pod() -> None:
                while data := await self._reader.read(CHUNK_BYTES):
                    if pod_writer is not None:
                        self._to_pod.inc(len(data))
                        pod_writer.write(data)
                        await pod_writer.drain()
                        idle.reschedule(loop.time() + idle_s)

            tasks = [asyncio.create_task(to_client()), asyncio.create_task(to_pod())]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            except asyncio.CancelledError:
                await _end(tasks)
                await self._finish_frame(pod_reader)
                raise
            finally:
                await _end(tasks)

    def _hand_on(self, data: bytes) -> None:
        if self.frames is not None:
            self.frames.feed(data)
        self._to_client.inc(len(data))
        self._writer.write(data)

    async def _finish_frame(self, pod_reader: asyncio.StreamReader) -> None:
        """Carry what is left of the frame that the pod has begun."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                while self.frames is not None and self.frames.missing:
                    data = await pod_reader.read(self.frames.missing)
                    if not data:
                        return
                    self._hand_on(data)
                    await self._writer.drain()

    async def leave(self) -> None:
        """Tell the client to come again, as far as that can be said where its connection is."""
        if self._request is None or (self._begun and self.frames is None):
            return  # nothing was asked, or an answer is under way
        with contextlib.suppress(_Refused, OSError):
            if self.frames is None:
                await self.accept_if_websocket()
                refused = _Refused(HTTPStatus.SERVICE_UNAVAILABLE, _RESTARTING, CloseCode.RESTARTING)
                await self.refuse(refused)
            elif not self.frames.missing and not self.frames.closed:
                close = Frame(Opcode.CLOSE, Close(CloseCode.RESTARTING, _RESTARTING).serialize())
                await self._say_last(close.serialize(mask=False))

    def evict(self, refused: _Refused) -> bool:
        """Close for another unauthenticated connection, without waiting for the client. False if it was answered."""
        if self._begun or self._request is None or self._writer.transport.get_write_buffer_size():
            self._writer.transport.abort()
            return not self._begun
        if self.websocket is not None:
            self.websocket.send_close(refused.code or CloseCode.TRY_LATER, str(refused))
            self._writer.write(b"".join(self.websocket.data_to_send()))
        else:
            self._writer.write(_response(refused, self.headers))
        return True

    async def refuse(self, refused: _Refused) -> None:
        """Answer, and give the peer a moment to read it."""
        self._begun = True
        if self.websocket is not None:
            self.websocket.send_close(refused.code or CloseCode.TRY_LATER, str(refused))
            await self._say_last(b"".join(self.websocket.data_to_send()))
        else:
            await self._say_last(_response(refused, self.headers))

    async def _say_last(self, data: bytes) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self.send(data)
                self._writer.write_eof()
                while await self._reader.read(CHUNK_BYTES):
                    pass


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _response(refused: _Refused, usual: Headers) -> bytes:
    body = json.dumps({"error": str(refused)}).encode() if str(refused) else b""
    status = refused.status
    lines = [f"HTTP/1.1 {status.value} {status.phrase}", "Content-Type: application/json", "Cache-Control: no-store"]
    lines += [f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in (usual if refused.headers is None else refused.headers)]
    if status is HTTPStatus.UNAUTHORIZED:
        lines.append("WWW-Authenticate: Bearer")
    if status is HTTPStatus.SERVICE_UNAVAILABLE:
        lines.append(f"Retry-After: {random.randint(*RETRY_AFTER_S)}")  # noqa: S311  (no secret)
    return "\r\n".join([*lines, "", ""]).encode() + body


def _token(text: bytes) -> str | None:
    try:
        fields = json.loads(text.decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict) or fields.get("type") != "auth":
        return None
    token = fields.get("token")
    return token if isinstance(token, str) else None


def _select_subprotocol(_: ServerProtocol, offered: Any) -> Subprotocol | None:
    return Subprotocol(SUBPROTOCOL) if SUBPROTOCOL in offered else None
