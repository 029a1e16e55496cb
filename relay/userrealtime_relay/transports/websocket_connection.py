"""One WebSocket connection: websockets' sans-I/O `ServerProtocol` in an asyncio protocol.

It receives messages into a short queue and stops reading from the socket while the queue is full. Event frames are
written straight to the transport: what the protocol has to send (pongs, the close frame) is written in the same turn of
the loop as it is produced, and both stay in order.

Before the client has authenticated, only a limited number of its bytes and frames are parsed. The rest waits.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable
from typing import Final, cast

from websockets import http11
from websockets.frames import CloseCode as StandardCode
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import CLOSED, OPEN, SEND_EOF
from websockets.server import ServerProtocol

from userrealtime_core.unauthenticated import Unauthenticated
from userrealtime_core.wire.connect_request import CloseCode
from userrealtime_relay.delivery.clients import CLOSE_TIMEOUT, EVICTED_REASON, UNSENT_LIMIT, WRITE_LIMIT
from userrealtime_relay.delivery.wakeup import WakeupEvent

from .front import MAX_REQUEST_HEAD

MAX_QUEUED_MESSAGES: Final = 8
"""Messages of a client that may wait to be processed; then its socket is not read from."""
EARLY_FRAMES: Final = 32
EARLY_BYTES: Final = 32 << 10
"""How much of what a client sends is parsed before it has authenticated; the rest waits until it has."""
EARLY_PIECE: Final = 1 << 10
"""Bytes that are parsed at a time before the client has authenticated: a frame may have 6."""
PING: Final = bytes((0x80 | Opcode.PING, 0))

# The connection before this one has limited and checked the head of the request. websockets parses it again, and would
# reject a line of 8 KiB: a token of the documented size, or the cookies of a large site.
http11.MAX_LINE_LENGTH = 2 * MAX_REQUEST_HEAD

_protocol_logger = logging.getLogger("websockets.server")


class ConnectionEnded(Exception):
    """The connection is closing or closed; no further message comes from it."""


class WebSocketConnection(asyncio.Protocol):
    """The server's side of one connection.

    Args:
        handshake: called with the request of the client; returns the response.
        opened: called when the handshake is complete.
        unauthenticated: the budget that the connection belongs to until `authenticated` is called.
    """

    __slots__ = (
        "_authenticated",
        "_binary",
        "_closing_timer",
        "_discarding",
        "_early_bytes",
        "_early_frames",
        "_ended",
        "_fragments",
        "_handshake",
        "_later",
        "_messages",
        "_opened",
        "_pinged",
        "_pongs",
        "_readable",
        "_reading_paused",
        "_requested",
        "_unauthenticated",
        "changed",
        "paused",
        "protocol",
        "transport",
    )

    transport: asyncio.Transport

    def __init__(
        self,
        protocol: ServerProtocol,
        unauthenticated: Unauthenticated,
        handshake: Callable[[ServerProtocol, Request], Response],
        opened: Callable[[WebSocketConnection, Request], None],
    ) -> None:
        self.protocol = protocol
        self.paused = False
        """Whether the socket has enough to send."""
        self.changed: Callable[[], None] | None = None
        """Called when data was received, the socket takes more, or the connection ended."""
        self._unauthenticated = unauthenticated
        self._handshake = handshake
        self._opened = opened
        self._messages: deque[str | bytes] = deque()
        self._fragments: bytearray | None = None  # of a message whose end has not come
        self._binary = False  # whether that message is binary
        self._readable = WakeupEvent()
        self._ended = WakeupEvent()
        self._reading_paused = False  # since the queue is full
        self._closing_timer: asyncio.TimerHandle | None = None
        self._authenticated = False
        self._pinged = False  # and not answered
        self._pongs = 0  # bytes of pongs that wait for the socket
        self._early_frames = 0
        self._early_bytes = 0
        self._requested = False  # the opening request was read
        self._later = b""  # what is parsed once the client has authenticated
        self._discarding = False

    @property
    def open(self) -> bool:
        """Whether messages can be sent and received."""
        return self.protocol.state is OPEN

    @property
    def unsent(self) -> int:
        """Bytes waiting in the process for the socket."""
        return self.transport.get_write_buffer_size()

    def abort(self) -> None:
        """End the connection without a closing handshake."""
        self.transport.abort()

    async def receive(self) -> str | bytes:
        """Wait for the next message.

        Raises:
            ConnectionEnded: there is none.
        """
        while not self._messages:
            if not self.open:
                raise ConnectionEnded
            self._readable.clear()
            await self._readable.wait()
        message = self._messages.popleft()
        if self._reading_paused and len(self._messages) <= MAX_QUEUED_MESSAGES // 4:
            self._reading_paused = False
            if not self._later:
                self.transport.resume_reading()
        return message

    async def drain(self) -> None:
        """Wait until the socket takes more.

        Raises:
            ConnectionEnded: it never will.
        """
        while self.paused:
            if self.protocol.state is CLOSED:
                raise ConnectionEnded
            self._readable.clear()
            await self._readable.wait()

    def write(self, frames: bytes) -> None:
        """Send frames, given as their bytes. Ignored once the closing handshake has begun."""
        if self.open:
            self.transport.write(frames)

    def ping(self) -> bool:
        """Send a ping. Return False, and send nothing, if the last one has not been answered."""
        if self._pinged:
            return False
        self._pinged = True
        self.write(PING)
        return True

    async def close(self, code: int, reason: str) -> None:
        """Close the connection: the closing handshake, then the end, within `CLOSE_TIMEOUT` seconds."""
        if self.open:
            self.protocol.send_close(code, reason)
            self._send()
        self._messages.clear()
        if self._later:  # it may hold the client's close frame, and is not worth parsing
            self._later, self._discarding = b"", True
            self._finish()
        self._reading_paused = False
        if not self.transport.is_closing():
            self.transport.resume_reading()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._ended.wait()
        except TimeoutError:
            self.transport.abort()
            await self._ended.wait()

    def authenticated(self) -> None:
        """Parse all that the client sends from now on."""
        self._unauthenticated.leave(self.transport)
        self._authenticated = True
        if self._later:
            later, self._later = self._later, b""
            self._parse(later)
            if not self._reading_paused:
                self.transport.resume_reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(WRITE_LIMIT)
        self._unauthenticated.enter(transport, self._evict)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # Linux
            connection: socket.socket = transport.get_extra_info("socket")
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_LIMIT)

    def data_received(self, data: bytes) -> None:
        if self._discarding:
            return
        if self._authenticated or not self._requested:
            self._requested = True  # it comes whole, from the connection before this one
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

    def eof_received(self) -> None:
        self.protocol.receive_eof()
        self._send()
        self._notify()

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        self._pongs = 0
        self._notify()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unauthenticated.leave(self.transport)
        self.protocol.receive_eof()
        if self._closing_timer is not None:
            self._closing_timer.cancel()
        self._ended.set()
        self._notify()

    def _parse(self, data: bytes) -> None:
        before = self.transport.get_write_buffer_size()
        self.protocol.receive_data(data)
        events = self.protocol.events_received()
        self._send()
        for event in events:
            if isinstance(event, Frame):
                self._process_frame(event)
            elif isinstance(event, Request):
                self._respond(event)
        if self.paused:
            self._pongs += self.transport.get_write_buffer_size() - before
            if self._pongs > WRITE_LIMIT:  # a client that pings and does not read
                self.transport.abort()
        if len(self._messages) >= MAX_QUEUED_MESSAGES and not self._reading_paused and self.open:
            self._reading_paused = True
            self.transport.pause_reading()
        self._notify()

    def _respond(self, request: Request) -> None:
        response = self._handshake(self.protocol, request)
        self.protocol.send_response(response)
        self._send()
        if self.open:
            self._opened(self, request)

    def _process_frame(self, frame: Frame) -> None:
        self._early_frames += 1
        if frame.opcode is Opcode.PONG:
            self._pinged = False
        elif frame.opcode in (Opcode.TEXT, Opcode.BINARY):
            if frame.fin:
                self._add_message(frame.data, binary=frame.opcode is Opcode.BINARY)
            else:
                self._fragments, self._binary = bytearray(frame.data), frame.opcode is Opcode.BINARY
        elif frame.opcode is Opcode.CONT and self._fragments is not None:
            self._fragments += frame.data
            if frame.fin:
                data, self._fragments = bytes(self._fragments), None
                self._add_message(data, binary=self._binary)

    def _add_message(self, data: bytes | bytearray | memoryview, *, binary: bool) -> None:
        if binary:
            self._messages.append(bytes(data))
            return
        try:
            self._messages.append(str(data, "utf-8"))
        except UnicodeDecodeError as error:
            if self.open:
                self.protocol.fail(StandardCode.INVALID_DATA, f"{error.reason} at position {error.start}")
                self._send()

    def _send(self) -> None:
        """Write what the protocol has to send. At the end of its data, wait for the client to close the connection."""
        for data in self.protocol.data_to_send():
            if data == SEND_EOF:
                self._finish()
            else:
                self.transport.write(data)

    def _finish(self) -> None:
        # Half-closed, and read on: closing a socket with unread data would reset the connection, and the client might
        # not receive the close frame.
        if self._closing_timer is None and not self.transport.is_closing():
            self.transport.write_eof()
            self._closing_timer = asyncio.get_running_loop().call_later(CLOSE_TIMEOUT, self.transport.abort)

    def _evict(self) -> None:
        """Close for another unauthenticated connection, without waiting for the client."""
        if self.open and not self.transport.get_write_buffer_size():
            self.protocol.send_close(CloseCode.TRY_LATER, EVICTED_REASON)
            self._send()
            self.transport.close()
        else:
            self.transport.abort()

    def _notify(self) -> None:
        self._readable.set()
        if self.changed is not None:
            self.changed()
