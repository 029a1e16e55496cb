"""The load clients: the same bare client for every server, which counts events without parsing them.

Each event of a benchmark contains `@@@` once, and no other data does, not even the head of a frame. Events are counted
by a search for these bytes, at gigabytes a second, so the client does not limit the result. One client of each run
keeps all data that it receives, and checks afterwards that every number is there once, in order.
"""

from __future__ import annotations

import asyncio
import base64
import math
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field

MARK = b"@@@"
CONNECT_TIMEOUT_S = 30.0
# The numbers of events: `{"n":17,"tag":"@@@"}`, in any envelope and with any escaping of the quotes.
_NUMBER = re.compile(rb'\bn\\*":\s*(\d+)')


@dataclass(frozen=True)
class Dialect:
    """How a client subscribes with one protocol."""

    path: str
    since: str = ""
    """The suffix of the path to resume. `{}` is replaced by the number after which to resume."""
    headers: dict[str, str] = field(default_factory=dict)
    upgrade: bool = True
    """Whether the connection becomes a WebSocket, rather than an HTTP response that does not end."""
    hello: tuple[str, ...] = ()
    """Text frames to send once the connection is open."""
    response: Callable[[bytes], str | None] | None = None
    """Returns the text frame that responds to what the server has sent, None until it has sent enough."""
    ready: bytes = b""
    """Part of the message that confirms the subscription. Empty if the handshake confirms it."""
    ping: bytes = b""
    """A message of the server that requires `pong` as the response."""
    pong: str = ""


def text_frame(text: str) -> bytes:
    """Return a masked text frame of up to 65,535 bytes (RFC 6455). The mask is zero, which the RFC permits."""
    data = text.encode()
    head = bytes([0x81, 0x80 | len(data)]) if len(data) < 126 else b"\x81\xfe" + len(data).to_bytes(2, "big")
    return head + bytes(4) + data


class Client(asyncio.Protocol):
    """One connection. `events` is the number of received events; with `check`, all data is kept for `numbers`."""

    def __init__(self, dialect: Dialect, port: int, *, check: bool = False, since: int | None = None) -> None:
        self.events = 0
        self.first_at = math.inf
        """The time of the first event."""
        self.latencies: list[float] = []
        self.started: dict[int, float] | None = None
        self._dialect, self._port, self._check, self._since = dialect, port, check, since
        self._transport: asyncio.Transport
        self._opened = False
        self._response = dialect.response
        self._head = bytearray()
        self._edge = b""  # perhaps the beginning of a mark
        self._tail = b""  # perhaps the beginning of an event
        self._kept: list[bytes] = []
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = loop.create_future()
        self._wanted: list[tuple[int, asyncio.Future[None]]] = []

    @classmethod
    async def connect(cls, dialect: Dialect, port: int, *, check: bool = False, since: int | None = None) -> Client:
        """Return a client that is subscribed.

        Raises:
            OSError, TimeoutError: the server does not respond as expected.
        """
        client = cls(dialect, port, check=check, since=since)
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await asyncio.get_running_loop().create_connection(lambda: client, "127.0.0.1", port)
            await client.ready
        return client

    async def received(self, count: int, silence_s: float) -> None:
        """Wait until this number of events has arrived in total.

        Raises:
            TimeoutError: some are missing, and none has arrived for `silence_s`.
        """
        if self.events >= count:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._wanted.append((count, future))
        while not future.done():
            before = self.events
            await asyncio.wait([future], timeout=silence_s)
            if not future.done() and self.events == before:
                raise TimeoutError(f"{self.events:,} of {count:,} events arrived, and then none for {silence_s:.0f} s")
        await future

    @property
    def numbers(self) -> list[int]:
        """The numbers of the events received, in order, if the client checks them."""
        return _numbers(b"".join(self._kept))

    def abort(self) -> None:
        """Abort the connection without a close frame."""
        self._transport.abort()

    # asyncio's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101
        self._transport = transport
        path = self._dialect.path
        if self._since is not None:
            path += self._dialect.since.format(self._since)
        # HTTP 1.0 has no chunks, whose heads would cut marks into pieces.
        lines = [f"GET {path} HTTP/{'1.1' if self._dialect.upgrade else '1.0'}", f"Host: 127.0.0.1:{self._port}"]
        if self._dialect.upgrade:
            lines += [
                "Upgrade: websocket",
                "Connection: Upgrade",
                f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
                "Sec-WebSocket-Version: 13",
            ]
        lines += [f"{name}: {value}" for name, value in self._dialect.headers.items()]
        transport.write("\r\n".join([*lines, "", ""]).encode())

    def data_received(self, data: bytes) -> None:
        if not self.ready.done():
            data = self._greeted(data)
        now = time.perf_counter()
        edge = len(self._edge)
        data = self._edge + data
        self._edge = data[-(len(MARK) - 1) :]
        new = data.count(MARK)
        if self._check:
            self._kept.append(data[edge:])
        if self.started is not None:
            self._time(self.started, data[edge:], now)
        if new:
            if not self.events:
                self.first_at = now
            self.events += new
            for wanted in [w for w in self._wanted if self.events >= w[0]]:
                self._wanted.remove(wanted)
                if not wanted[1].done():
                    wanted[1].set_result(None)
        elif self._dialect.ping and self._dialect.ping in data:
            self._transport.write(text_frame(self._dialect.pong))

    def connection_lost(self, error: Exception | None) -> None:
        failure = ConnectionResetError(f"the server closed the connection: {error or bytes(self._head[:200])!r}")
        for future in [self.ready, *(future for _, future in self._wanted)]:
            if not future.done():
                future.set_exception(failure)
                future.exception()  # mark it as retrieved, because no caller may wait

    def _greeted(self, data: bytes) -> bytes:
        """Read the handshake and the greeting; the remaining bytes belong to events."""
        self._head += data
        if not self._opened:
            if b"\r\n\r\n" not in self._head:
                return b""
            if not self._head.startswith(b"HTTP/1.1 101" if self._dialect.upgrade else b"HTTP/1.1 200"):
                self.connection_lost(None)
                return b""
            self._opened = True
            for text in self._dialect.hello:
                self._transport.write(text_frame(text))
        if self._response is not None:
            response = self._response(bytes(self._head))
            if response is None:
                return b""
            self._response = None
            self._transport.write(text_frame(response))
        if self._dialect.ready not in self._head:
            return b""
        rest = bytes(self._head.partition(b"\r\n\r\n")[2])
        self._head.clear()
        self.ready.set_result(None)
        return rest

    def _time(self, started: dict[int, float], data: bytes, now: float) -> None:
        # The number precedes the mark, so an event with its mark can be parsed.
        whole, found, self._tail = (self._tail + data).rpartition(MARK)
        if found:
            self.latencies += [now - started[number] for number in _numbers(whole) if number in started]


def _numbers(data: bytes) -> list[int]:
    return [int(number) for number in _NUMBER.findall(data)]
