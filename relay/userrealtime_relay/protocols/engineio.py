"""A session of Engine.IO: a carrier of messages over long polling, over a WebSocket, or from the first to the second.

While it polls, what the client has not fetched is kept here: no more than a client gets at a time, since a channel
writes nothing while the carrier is paused. Whatever may have been lost on the way ends the session, and the client
connects again: a response that was cut off, and a request that a proxy repeats.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from userrealtime_core.protocols.socketio_packets import CLOSE, NOOP, PING, PONG, PROBE, PROBED, SEPARATOR, UPGRADE
from userrealtime_core.unauthenticated import Unauthenticated
from userrealtime_core.wire.frames import encode_payload, encode_text, payloads
from userrealtime_relay.delivery.clients import CLOSE_TIMEOUT, WRITE_LIMIT
from userrealtime_relay.delivery.wakeup import WakeupEvent
from userrealtime_relay.transports.http import Connection
from userrealtime_relay.transports.websocket_connection import ConnectionEnded, WebSocketConnection

UPGRADE_TIMEOUT_S: Final = 10
"""Seconds from the handshake of a second WebSocket until it carries the session."""

_PING_FRAME: Final = encode_text(PING)


class BadRequest(Exception):
    """A request that ends its session. The text is for the developer of the application."""


class EngineSession:
    """One session. It is a `Carrier`.

    Args:
        sid: identifies it in the URLs of its requests, and is as secret as a token.
        unauthenticated: the budget of sessions that it belongs to, while it polls, until `authenticated` is called.
    """

    def __init__(
        self, sid: str, unauthenticated: Unauthenticated, websocket: WebSocketConnection | None = None
    ) -> None:
        self.sid = sid
        self.websocket = websocket
        """None while the session polls."""
        self.changed: Callable[[], None] | None = None
        self.is_authenticated = False
        self.ended = asyncio.Event()
        self.upgrading = False
        """Whether a WebSocket is about to take over: polls are answered at once."""
        self._unauthenticated = unauthenticated
        self._incoming: deque[str | bytes] = deque()
        self._outgoing: list[bytes] = []
        self._size = 0  # bytes of them
        self._closing = False
        self._probed = False  # a WebSocket wants to take over
        self._pinged = False  # and not answered
        self._poll: Connection | None = None  # of the request that waits for messages
        self._last_poll = ""
        self._post: Connection | None = None  # of the request whose messages are being read
        self._posting = False
        self._passed = 0  # requests with messages
        self._readable = WakeupEvent()  # for the reader
        self._pollable = WakeupEvent()  # for a poll
        self._processed = WakeupEvent()  # for a request with messages
        self._fetched = WakeupEvent()  # for the end of the session
        if websocket is not None:
            websocket.changed = self._notify
        else:
            unauthenticated.enter(self, self.abort)

    # For the socket: a `Carrier`.

    @property
    def open(self) -> bool:
        if self.websocket is not None:
            return self.websocket.open
        return not self.closing

    @property
    def closing(self) -> bool:
        """Whether no further request is expected."""
        return self._closing or self.ended.is_set()

    @property
    def paused(self) -> bool:
        return self._size > WRITE_LIMIT if self.websocket is None else self.websocket.paused

    @property
    def unsent(self) -> int:
        return self._size if self.websocket is None else self.websocket.unsent

    def authenticated(self) -> None:
        self.is_authenticated = True
        self._unauthenticated.leave(self)
        if self.websocket is not None:
            self.websocket.authenticated()

    def write(self, frames: bytes) -> None:
        """Send texts, given as frames of a WebSocket."""
        if self.websocket is not None:
            self.websocket.write(frames)
        elif self.open:
            for text in map(bytes, payloads(frames)):
                self._outgoing.append(text)
                self._size += len(text)
            self._pollable.set()

    def ping(self) -> bool:
        """Send a ping. Return False, and send nothing, if the last one has not been answered."""
        if self._pinged:
            return False
        self._pinged = True
        self.write(_PING_FRAME)
        return True

    async def receive(self) -> str | bytes:
        """Wait for the next packet that is not one of the transport.

        Raises:
            ConnectionEnded: there is none.
        """
        while True:
            if self._incoming:
                packet = self._incoming.popleft()
                self._processed.set()
            elif self.ended.is_set():
                raise ConnectionEnded
            elif self.websocket is not None:
                packet = await self.websocket.receive()
            else:
                self._readable.clear()
                await self._readable.wait()
                continue
            if packet == PONG and self._pinged:
                self._pinged = False
            elif packet == CLOSE:
                self._closing = True
                raise ConnectionEnded
            else:
                return packet

    async def drain(self) -> None:
        """Wait until the client takes more.

        Raises:
            ConnectionEnded: it never will.
        """
        while self.websocket is None and self.paused:
            if self.ended.is_set():
                raise ConnectionEnded
            self._readable.clear()
            await self._readable.wait()
        if self.websocket is not None:
            await self.websocket.drain()

    async def close(self, code: int, reason: str) -> None:
        """End the session. A client that polls has `CLOSE_TIMEOUT` seconds to fetch the rest."""
        if self.websocket is not None:
            await self.websocket.close(code, reason)
        elif self.open:
            self._closing = True
            self._outgoing.append(CLOSE.encode())
            self._pollable.set()
            self._processed.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    while self._outgoing and not self.ended.is_set():
                        self._fetched.clear()
                        await self._fetched.wait()
        self._end()

    def abort(self) -> None:
        """End the session immediately."""
        if self.websocket is not None:
            self.websocket.abort()
        self._end()

    # For the requests.

    async def poll(self, connection: Connection, name: str, *, dead_after: float) -> bytes:
        """Return the body of the response to a poll, as soon as there is something to send.

        Args:
            name: a random text of the client, different for each of its polls; empty if it sends none.
            dead_after: seconds after which a peer without any acknowledgement counts as lost.

        Raises:
            BadRequest: another poll waits, or this one was answered before.
        """
        if self._poll is not None or (name and name == self._last_poll):
            self.abort()
            raise BadRequest("a session has one poll at a time, and none is repeated")
        self._poll, self._last_poll = connection, name
        connection.authenticated()  # it is counted with the session, which has no other one
        connection.hold(self._pollable.set, dead_after=dead_after)
        try:
            while not self._pollable_now and not connection.lost.is_set():
                self._pollable.clear()
                await self._pollable.wait()
        finally:
            self._poll = None
            if connection.lost.is_set():
                self.abort()
        return SEPARATOR.join(self._take()) or NOOP.encode()

    @property
    def _pollable_now(self) -> bool:
        """Whether a poll can be answered."""
        return bool(self._outgoing) or self.upgrading or self.websocket is not None or self.ended.is_set()

    @contextlib.contextmanager
    def posting(self, connection: Connection) -> Iterator[None]:
        """Process a request with messages inside the block. The session ends if they are not passed to `post`.

        If the session ends before, the connection of the request is aborted: nothing else would count it.

        Raises:
            BadRequest: another one is being processed, or the body is no list of packets.
        """
        if self._posting:
            self.abort()
            raise BadRequest("a session has one request with messages at a time")
        if self.is_authenticated:
            connection.authenticated()  # it is counted with the session
        self._posting, self._post = True, connection
        passed = self._passed
        try:
            yield
        except ValueError:
            raise BadRequest("the body is no list of packets") from None
        finally:
            self._posting, self._post = False, None
            if self._passed == passed:
                self.abort()

    async def post(self, packets: Sequence[str | bytes]) -> None:
        """Pass packets to the socket, and wait until it has begun to process the last one."""
        self._passed += 1
        self._post = None
        self._incoming.extend(packets)
        self._readable.set()
        while self._incoming and not self.closing:
            self._processed.clear()
            await self._processed.wait()

    async def upgrade(self, websocket: WebSocketConnection) -> bool:
        """Let a WebSocket take over. Return False if it fails, and the session continues to poll."""
        if self._probed or self.websocket is not None:
            return False
        self._probed = True
        try:
            async with asyncio.timeout(UPGRADE_TIMEOUT_S):
                if await websocket.receive() != PROBE:
                    return False
                self.upgrading = True
                websocket.write(encode_text(PROBED))
                # The client waits until its poll was answered, and then sends UPGRADE.
                self._pollable.set()
                if await websocket.receive() != UPGRADE:
                    return False
        except (TimeoutError, ConnectionEnded):
            return False
        finally:
            self.upgrading = self._probed = False
        if not self.open:
            return False
        self.websocket = websocket
        websocket.changed = self._notify
        if self.is_authenticated:
            websocket.authenticated()
        self._unauthenticated.leave(self)
        websocket.write(b"".join(map(encode_payload, self._take())))
        self._pollable.set()
        self._notify()
        return True

    def _take(self) -> list[bytes]:
        taken, self._outgoing, self._size = self._outgoing, [], 0
        self._fetched.set()
        self._notify()
        return taken

    def _end(self) -> None:
        self._unauthenticated.leave(self)
        self.ended.set()
        if self._post is not None:
            self._post.transport.abort()
        for event in (self._pollable, self._processed, self._fetched):
            event.set()
        self._notify()

    def _notify(self) -> None:
        self._readable.set()
        if self.changed is not None:
            self.changed()
