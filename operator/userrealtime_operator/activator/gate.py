"""The activator's public port: one connection, one request, carried to the pod it wakes.

    read the request -> whose is it? -> is the token good? -> wake -> pass the request on -> carry bytes both ways

Nobody is woken before the token is found good, by the relay's own code. A WebSocket whose token comes in its first
message is answered here; what it sends is kept as the bytes that came, and the pod gets them as if they came to it.
Each stage has a time limit, each connection one bounded buffer each way, and there are only so many connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from websockets.frames import Frame, Opcode
from websockets.http11 import Request as Handshake
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from userrealtime_relay.auth import KeysWanted, TokenVerifier, Unauthorized
from userrealtime_relay.session import SUBPROTOCOL, Code

from .directory import Directory, Target
from .request import BadRequest, Reader, Request
from .wakes import Address, WakeFailed, Wakes

CHUNK_BYTES: Final = 64 << 10
MAX_HELD_BYTES: Final = 128 << 10
"""Of what a WebSocket sends before the pod is there; over it, the connection is closed."""
HANDSHAKE_TIMEOUT_S: Final = 10
CLOSE_TIMEOUT_S: Final = 2
RETRY_AFTER_S: Final = (5, 15)
"""Between which a client is told to wait: random, so that clients do not come back all at once."""
_UNAUTHORIZED: Final = "Unauthorized"
_ASLEEP: Final = "The user's pod does not come; try again later"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much the activator takes on. Times are in seconds."""

    connections: int = 10_000
    user_connections: int = 1_000
    request_s: float = 10
    """For a request to arrive, and then for a first message with a token."""
    idle_s: float = 300
    """For which a carried connection may be silent both ways; a relay pings more often."""
    query_token: bool = False


class _Refused(Exception):
    """The answer to a connection that is not carried: a status, or for what is a WebSocket already, a close code."""

    def __init__(self, status: HTTPStatus, why: str, code: Code | None = None, outcome: str = "refused") -> None:
        super().__init__(why)
        self.status = status
        self.code = code
        self.outcome = outcome


class Gate:
    """All connections of the activator.

    Args:
        verifier: gives what checks a user's tokens; raises OSError if the user's keys cannot be had now.
    """

    def __init__(
        self,
        directory: Directory,
        wakes: Wakes,
        verifier: Callable[[Target], Awaitable[TokenVerifier]],
        limits: Limits,
    ) -> None:
        self._directory = directory
        self._wakes = wakes
        self._verifier = verifier
        self._limits = limits
        self._tasks: set[asyncio.Task[Any]] = set()
        self._held: Counter[Target] = Counter()
        self._server: asyncio.Server
        self.outcomes: Counter[str] = Counter()
        """How many connections were carried, stranger, unauthorized, refused, failed, crowded, gone or drained."""

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
        await self._wakes.close()
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=CLOSE_TIMEOUT_S)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  (asyncio runs this in a task of its own)
        self._tasks.add(task)
        try:
            await self._answer(_Connection(reader, writer))
        except asyncio.CancelledError:
            self.outcomes["drained"] += 1  # and no more: asyncio's streams take a cancelled task for a fault
        except Exception:
            self.outcomes["failed"] += 1
            _logger.exception("a connection failed")
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _answer(self, connection: _Connection) -> None:
        try:
            outcome = await self._carry(connection)
        except _Refused as refused:
            self.outcomes[refused.outcome] += 1
            await connection.refuse(refused)
        except (OSError, EOFError, TimeoutError):
            self.outcomes["gone"] += 1  # the peer, or it says nothing
        else:
            self.outcomes[outcome] += 1

    async def _carry(self, connection: _Connection) -> str:
        if len(self._tasks) > self._limits.connections:
            raise _Refused(HTTPStatus.SERVICE_UNAVAILABLE, "Too many connections", Code.TRY_LATER, "crowded")
        async with asyncio.timeout(self._limits.request_s):
            request = await connection.request()
        target = self._directory.find(request.host, request.path)
        if target is None:
            raise _Refused(HTTPStatus.NOT_FOUND, "not found", outcome="stranger")
        refusal = request.refusal(target.base_path)
        if refusal is not None:
            raise _Refused(*refusal)
        if request.is_websocket and not request.path.endswith("/ws"):
            raise _Refused(HTTPStatus.NOT_FOUND, "there is no WebSocket here")
        if self._held[target] >= self._limits.user_connections:
            raise _Refused(HTTPStatus.SERVICE_UNAVAILABLE, "Too many connections", Code.TRY_LATER, "crowded")
        self._held[target] += 1
        try:
            await self._admit(connection, request, target)
            return await self._pass_on(connection, request, target)
        finally:
            self._held[target] -= 1
            if not self._held[target]:
                del self._held[target]

    async def _admit(self, connection: _Connection, request: Request, target: Target) -> None:
        """Returns if the client's token is good."""
        token = request.opening(query_token=self._limits.query_token).token
        if request.is_websocket and token is None:
            await connection.accept(request)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._limits.request_s):
                    token = await connection.first_token()
        if token is None:
            raise _Refused(HTTPStatus.UNAUTHORIZED, _UNAUTHORIZED, Code.POLICY_VIOLATION, "unauthorized")
        try:
            verify = await self._verifier(target)
            try:
                verify(token)
            except KeysWanted:
                await verify.refresh()
                verify(token)
        except Unauthorized:
            if request.is_websocket and connection.websocket is None:
                await connection.accept(request)  # a browser hands on a close code, but no status
            raise _Refused(HTTPStatus.UNAUTHORIZED, _UNAUTHORIZED, Code.POLICY_VIOLATION, "unauthorized") from None
        except (KeysWanted, OSError):
            raise await self._failure(connection, request, "The token cannot be checked now") from None

    async def _failure(self, connection: _Connection, request: Request, why: str) -> _Refused:
        if request.is_websocket and connection.websocket is None:
            await connection.accept(request)
        return _Refused(HTTPStatus.SERVICE_UNAVAILABLE, why, Code.TRY_LATER, "failed")

    async def _pass_on(self, connection: _Connection, request: Request, target: Target) -> str:
        begin = time.monotonic()
        try:
            address = await connection.unless_gone(self._wakes.arrive(target))
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                pod_reader, pod_writer = await asyncio.open_connection(*address, limit=CHUNK_BYTES)
        except (WakeFailed, OSError, TimeoutError) as error:
            fields = {"user": str(target.user), "why": str(error) or type(error).__name__}
            _logger.warning("a wake failed", extra={"fields": fields})
            raise await self._failure(connection, request, _ASLEEP) from None
        seconds = round(time.monotonic() - begin, 3)
        _logger.info("carrying", extra={"fields": {"user": str(target.user), "waited_s": seconds}})
        try:
            await self._exchange(connection, request, pod_reader, pod_writer)
        finally:
            pod_writer.close()
        return "carried"

    async def _exchange(
        self,
        connection: _Connection,
        request: Request,
        pod_reader: asyncio.StreamReader,
        pod_writer: asyncio.StreamWriter,
    ) -> None:
        # Without extensions, so that both handshakes agree on the frames that follow.
        pod_writer.write(request.written(without=[b"sec-websocket-extensions"]))
        await pod_writer.drain()
        if not request.is_websocket:
            await connection.carry(pod_reader, None, self._limits.idle_s)
            return
        async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
            head = await pod_reader.readuntil(b"\r\n\r\n")
        switched = head.startswith(b"HTTP/1.1 101 ")
        if connection.websocket is None:
            await connection.send(head)
        elif not switched:
            raise _Refused(HTTPStatus.BAD_GATEWAY, "The user's pod does not take this connection", Code.TRY_LATER)
        if switched:
            pod_writer.write(connection.kept)
            await connection.carry(pod_reader, pod_writer, self._limits.idle_s)
        else:
            # Not a word of what the client sends: it would be another request.
            await connection.carry(pod_reader, None, CLOSE_TIMEOUT_S)


class _Connection:
    """A client's connection. `kept` is what it sent after its request, for the pod."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.kept = b""
        self.websocket: ServerProtocol | None = None
        """Set once its handshake was answered here."""

    async def request(self) -> Request:
        """Raises BadRequest as _Refused, and EOFError if the connection ends without a byte."""
        reader = Reader()
        began = False
        while True:
            data = await self._reader.read(CHUNK_BYTES)
            if not data and not began:
                raise EOFError
            began = True
            try:
                request = reader.feed(data)
            except BadRequest as error:
                raise _Refused(error.status, str(error)) from None
            if request is not None:
                self.kept = reader.rest if request.is_websocket else b""
                return request

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def accept(self, request: Request) -> None:
        """Answer a WebSocket's handshake.

        Raises:
            _Refused: it is not a right one.
        """
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
        self.websocket.receive_data(self.kept)
        text = b""
        while True:
            for event in self.websocket.events_received():
                if not isinstance(event, Frame) or event.opcode is Opcode.CLOSE:
                    raise EOFError
                if event.opcode in (Opcode.TEXT, Opcode.CONT):
                    text += bytes(event.data)
                    if event.fin:
                        return _token(text)
                elif event.opcode is Opcode.BINARY:
                    return None
            self.websocket.receive_data(await self._keep())

    async def _keep(self) -> bytes:
        data = await self._reader.read(CHUNK_BYTES)
        if not data:
            raise EOFError
        self.kept += data
        if len(self.kept) > MAX_HELD_BYTES:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "Too much before the pod is there", Code.TRY_LATER)
        return data

    async def unless_gone(self, waiting: Awaitable[Address]) -> Address:
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

            async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter | None) -> None:
                while data := await reader.read(CHUNK_BYTES):
                    if writer is not None:
                        writer.write(data)
                        await writer.drain()
                        idle.reschedule(loop.time() + idle_s)

            down = asyncio.create_task(copy(pod_reader, self._writer))
            up = asyncio.create_task(copy(self._reader, pod_writer))
            try:
                done, _ = await asyncio.wait([down, up], return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                for task in (down, up):
                    task.cancel()
                await asyncio.gather(down, up, return_exceptions=True)

    async def refuse(self, refused: _Refused) -> None:
        """Answer, and give the peer a moment to read it."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                if self.websocket is not None:
                    self.websocket.send_close(refused.code or Code.TRY_LATER, str(refused))
                    await self.send(b"".join(self.websocket.data_to_send()))
                    self._writer.write_eof()
                else:
                    await self.send(_response(refused))
                    self._writer.write_eof()
                while await self._reader.read(CHUNK_BYTES):
                    pass


def _response(refused: _Refused) -> bytes:
    body = json.dumps({"error": str(refused)}).encode()
    status = refused.status
    lines = [f"HTTP/1.1 {status.value} {status.phrase}", "Content-Type: application/json", "Cache-Control: no-store"]
    lines += [f"Content-Length: {len(body)}", "Connection: close"]
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
