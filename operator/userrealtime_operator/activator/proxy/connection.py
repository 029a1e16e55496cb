"""A client's connection, until its bytes are forwarded to a pod: one request, and the activator's own responses.

The handshake of a WebSocket whose token comes in the first message is accepted here.
The bytes that follow are buffered unchanged, and the pod receives them as if they had been sent to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Any, Final, TypeVar

from websockets import http11
from websockets.frames import Frame, Opcode
from websockets.http11 import Request as Handshake
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from userrealtime_core.wire.connect_request import SUBPROTOCOL

from .dialogue import Dialogue
from .frames import FrameTracker
from .request import MAX_HEAD_BYTES, BadRequest, Request, RequestReader
from .responses import Headers, Rejected, close_frame, http_response, restarting

# `RequestReader` has limited the head of the request. websockets parses it again, and would reject a line of 8 KiB.
http11.MAX_LINE_LENGTH = 2 * MAX_HEAD_BYTES

CHUNK_BYTES: Final = 64 << 10
MAX_BUFFERED_BYTES: Final = 128 << 10
"""Bytes of a WebSocket that are buffered for the pod. If there are more, the connection is closed."""
EARLY_FRAMES: Final = 32
EARLY_BYTES: Final = 32 << 10
"""How much of a WebSocket is parsed to find the message with the token."""
FRAMES_BYTES: Final = 1 << 10
BODY_BYTES: Final = 4 << 10
"""Bytes of frames and of a body that are parsed at a time. A frame or a chunk can have as few as 6 bytes."""
CLOSE_TIMEOUT_S: Final = 2
T = TypeVar("T")


class ClientReader(asyncio.StreamReader):
    """A stream whose bytes a function can receive, without a task that reads them."""

    sink: Callable[[bytes], None] | None = None
    """Called with all bytes that arrive from now on, and with b"" at the end."""

    def feed_data(self, data: Any) -> None:
        if self.sink is None:
            super().feed_data(data)
        else:
            self.sink(bytes(data))

    def feed_eof(self) -> None:
        super().feed_eof()
        if self.sink is not None:
            self.sink(b"")

    def set_exception(self, exc: BaseException) -> None:
        super().set_exception(exc)  # type: ignore[arg-type,unused-ignore]
        if self.sink is not None:
            self.sink(b"")

    async def read_available(self) -> bytes:
        """Return what has arrived and was not read."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0):
                return await self.read(2 * CHUNK_BYTES + MAX_BUFFERED_BYTES)
        return b""


class ClientConnection:
    """One client's connection. Only one with a `ClientReader` can be parked."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.cors_headers: Headers = ()
        """The CORS headers of every response."""
        self.buffered = b""
        """The bytes that followed the request, for the pod."""
        self.upgraded = False
        """Whether the activator has accepted the handshake of a WebSocket."""
        self.pod_frames: FrameTracker | None = None
        """Set once the pod's frames are forwarded."""
        self.end_response: Callable[[Rejected], bytes] | None = None
        """Set while the activator has begun a response without an end: returns the end."""
        self.dialogue: Dialogue | None = None
        """Set while the activator speaks another system's protocol, and after it has."""
        self._request_reader: RequestReader | None = RequestReader()
        self._early_parser: ServerProtocol | None = None
        """Parses the first frames of a WebSocket whose handshake was accepted."""
        self._request: Request | None = None
        self._response_started = False

    @property
    def peer(self) -> object:
        """The address of the other end of the connection."""
        return self.writer.get_extra_info("peername")

    async def read_request(self) -> Request:
        """Read the head of the request, and return the request without its body.

        Raises:
            Rejected: the request is invalid.
            EOFError: the connection ended without a byte.
        """
        assert self._request_reader is not None  # noqa: S101 (until the connection is parked)
        received = False
        while True:
            data = await self.reader.read(CHUNK_BYTES)
            if not data and not received:
                raise EOFError
            received = True
            try:
                request = self._request_reader.read_head(data)
            except BadRequest as error:
                raise Rejected(error.status, str(error)) from None
            if request is not None:
                self.buffered = self._request_reader.rest if request.is_websocket else b""
                self._request = request
                return request

    async def read_body(self) -> None:
        """Read the body of the request, in turns with other connections.

        Raises:
            Rejected: the body is invalid or too large.
        """
        assert self._request is not None  # noqa: S101 (read_request has returned)
        assert self._request_reader is not None  # noqa: S101 (until the connection is parked)
        try:
            body = self._request_reader.read_body()
            while body is None:
                body = self._request_reader.read_body(await self.reader.read(BODY_BYTES))
                await asyncio.sleep(0)
        except BadRequest as error:
            raise Rejected(error.status, str(error)) from None
        self._request.body = body

    async def accept_websocket(self) -> None:
        """Accept the handshake if the request is a WebSocket's and the handshake was not accepted yet.

        Raises:
            Rejected: the handshake is invalid.
        """
        request = self._request
        if self.upgraded or request is None or not request.is_websocket:
            return

        def select(_: ServerProtocol, offered: Sequence[Subprotocol]) -> Subprotocol | None:
            return self._select_subprotocol(offered)

        websocket = ServerProtocol(select_subprotocol=select, max_size=CHUNK_BYTES, extensions=None)
        websocket.receive_data(request.serialize(without=[b"sec-websocket-extensions"]))
        for event in websocket.events_received():
            if isinstance(event, Handshake):
                websocket.send_response(websocket.accept(event))
                await self.send(b"".join(websocket.data_to_send()))
        if websocket.handshake_exc is not None:
            raise Rejected(HTTPStatus.BAD_REQUEST, "not a WebSocket handshake")
        self.upgraded = True
        self._early_parser = websocket

    async def read_first_token(self) -> str | None:
        """Return the token of the first message, None if that is not an `auth` message with a token.

        Raises:
            EOFError: the client closed the connection.
        """
        async for opcode, message in self.early_messages():
            return _token(message) if opcode is Opcode.TEXT else None
        return None

    async def early_messages(self) -> AsyncGenerator[tuple[Opcode, bytes]]:
        """Yield the first messages of a WebSocket, within a limit. They stay in the buffer, for the pod.

        Raises:
            EOFError: the client closed the connection.
        """
        assert self._early_parser is not None  # noqa: S101 (accept_websocket has returned)
        opcode, message = Opcode.TEXT, b""
        frames = 0
        async for piece in self._early_pieces():
            self._early_parser.receive_data(piece)
            for event in self._early_parser.events_received():
                frames += 1
                if not isinstance(event, Frame) or event.opcode is Opcode.CLOSE:
                    raise EOFError
                if event.opcode in (Opcode.TEXT, Opcode.BINARY):
                    opcode, message = event.opcode, b""
                elif event.opcode is not Opcode.CONT:
                    continue
                message += bytes(event.data)
                if event.fin:
                    yield opcode, message
            if frames > EARLY_FRAMES:
                return

    async def while_connected(self, awaitable: Awaitable[T]) -> T:
        """Return the result of an awaitable, and buffer what the client sends meanwhile.

        Raises:
            EOFError: the client closed the connection; the awaitable is cancelled.
            Rejected: the client sent more than is buffered.
        """
        result = asyncio.ensure_future(awaitable)
        closed = asyncio.create_task(self._buffer_until_closed())
        try:
            await asyncio.wait([result, closed], return_when=asyncio.FIRST_COMPLETED)
            if closed.done() and not result.done():
                closed.result()
            return await result
        finally:
            for task in (result, closed):
                task.cancel()
            await asyncio.gather(result, closed, return_exceptions=True)

    async def divert(self, sink: Callable[[bytes], None]) -> None:
        """Have a function receive what has followed the request, and what follows. It receives b"" at the end."""
        assert isinstance(self.reader, ClientReader)  # noqa: S101 (of every connection of the public port)
        self._request_reader = self._early_parser = None  # they need as much memory as all the rest
        pieces: list[bytes] = []
        self.reader.sink = pieces.append
        data = self.buffered + await self.reader.read_available()
        self.buffered = b""
        self.reader.sink = sink
        if self.reader.at_eof() and b"" not in pieces:
            pieces.append(b"")
        for piece in (data, *pieces) if data else pieces:
            sink(piece)

    def undivert(self, rest: bytes) -> None:
        """Buffer again what the client sends, after `rest`."""
        assert isinstance(self.reader, ClientReader)  # noqa: S101 (as above)
        self.reader.sink = None
        self.buffered = rest + self.buffered

    async def send(self, data: bytes) -> None:
        """Send bytes, and wait while the client does not read."""
        self.writer.write(data)
        await self.writer.drain()

    async def start_response(self, data: bytes) -> None:
        """Send the beginning of the pod's response. From here on, the activator cannot send an error response."""
        self._response_started = True
        self.end_response = None
        await self.send(data)

    def begin_response(self, data: bytes, end: Callable[[Rejected], bytes]) -> None:
        """Send the beginning of a response of the activator, which the pod continues.

        Args:
            end: returns the end of the response if the pod does not continue it.
        """
        self._response_started = True
        self.end_response = end
        self.writer.write(data)

    async def reject(self, rejected: Rejected) -> None:
        """Send a rejection, and give the client time to read it before the connection is closed."""
        self._response_started = True
        await self._send_last(self._rejection(rejected))

    def evict(self, rejected: Rejected) -> bool:
        """Send a rejection without waiting for the client. Returns False if another response had started."""
        if self._response_started or self._request is None or self.writer.transport.get_write_buffer_size():
            self.writer.transport.abort()
            return not self._response_started
        self.writer.write(self._rejection(rejected))
        return True

    async def drain(self) -> None:
        """Ask the client to reconnect, if a complete message can still be sent to it.

        That is a rejection before the pod has responded, and a close frame between two frames of the pod.
        """
        begun_by_pod = self._response_started and self.end_response is None
        if self._request is None or (begun_by_pod and self.pod_frames is None):
            return
        with contextlib.suppress(Rejected, OSError):
            if self.pod_frames is None:
                await self.accept_websocket()
                await self.reject(restarting())
            elif not self.pod_frames.missing and not self.pod_frames.closed:
                end = close_frame if self.dialogue is None else self.dialogue.end
                await self._send_last(end(restarting()))

    def _rejection(self, rejected: Rejected) -> bytes:
        if self.end_response is not None:
            return self.end_response(rejected)
        if self.dialogue is not None and self.upgraded:
            return self.dialogue.end(rejected)
        return close_frame(rejected) if self.upgraded else http_response(rejected, self.cors_headers)

    def _select_subprotocol(self, offered: Sequence[Subprotocol]) -> Subprotocol | None:
        chosen = SUBPROTOCOL if SUBPROTOCOL in offered else None
        if self.dialogue is not None:
            chosen = self.dialogue.subprotocol(offered)
        return None if chosen is None else Subprotocol(chosen)

    async def _send_last(self, data: bytes) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self.send(data)
                self.writer.write_eof()
                while await self.reader.read(CHUNK_BYTES):
                    pass

    async def _early_pieces(self) -> AsyncIterator[bytes]:
        """Yield the bytes after the request, up to `EARLY_BYTES`. They stay in the buffer."""
        begin = 0
        while begin < EARLY_BYTES:
            if begin == len(self.buffered):
                await self._buffer_more()
            piece = self.buffered[begin : begin + FRAMES_BYTES]
            begin += len(piece)
            yield piece

    async def _buffer_more(self) -> None:
        data = await self.reader.read(CHUNK_BYTES)
        if not data:
            raise EOFError
        self.buffered += data
        if len(self.buffered) > MAX_BUFFERED_BYTES:
            raise Rejected(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "Too much data before the pod is available")

    async def _buffer_until_closed(self) -> None:
        while True:
            await self._buffer_more()


def _token(text: bytes) -> str | None:
    try:
        fields = json.loads(text.decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict) or fields.get("type") != "auth":
        return None
    token = fields.get("token")
    return token if isinstance(token, str) else None
