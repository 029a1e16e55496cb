"""The public port: decides by the first request of a connection whether it is a WebSocket.

A WebSocket needs no HTTP server, and most pods get nothing else. The HTTP server and its libraries need a fifth of the
CPU of a relay's imports, and 2.5 MiB of memory, so they are imported with the first request that needs them. They also
answer every handshake that is not plain.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from typing import Final, Protocol, cast

from userrealtime_core.unauthenticated import Unauthenticated
from userrealtime_relay.process.listener import Listener

MAX_REQUEST_HEAD: Final = 16 << 10
"""Bytes of the request line and the headers. More than twice as many always get 400."""
BACKLOG: Final = 512
_METHOD: Final = b"GET "
_END: Final = re.compile(rb"\n\r?\n")
_HEAD: Final = re.compile(
    rb"GET [!-~]+ HTTP/1\.1\r\n(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~\x80-\xff]*\r\n)+\r\n"  # RFC 9112, without folding
)


class HttpServer(Protocol):
    """Serves the requests that are no plain WebSockets."""

    def __call__(self, waited_s: float) -> asyncio.Protocol:
        """Return the protocol of a connection that was made so many seconds ago."""

    def transports(self) -> Iterator[asyncio.Transport]:
        """Return the transports of its connections, except those that the applications end."""


def is_plain_handshake(head: bytes) -> bool:
    """Return whether the head of a request is a WebSocket handshake that every HTTP server would read in the same way.

    Args:
        head: the bytes until the empty line, which is included.
    """
    if not _HEAD.fullmatch(head):
        return False
    values: dict[bytes, list[bytes]] = {}
    for line in head.split(b"\r\n")[1:-2]:
        name, _, value = line.partition(b":")
        values.setdefault(name.lower(), []).append(value.strip().lower())
    tokens = {token.strip() for value in values.get(b"connection", ()) for token in value.split(b",")}
    return (
        len(values.get(b"host", ())) == 1
        and values.get(b"upgrade") == [b"websocket"]
        and b"upgrade" in tokens
        and not values.keys() & {b"content-length", b"transfer-encoding"}
    )


class Front:
    """The connections of the port that have not sent the head of their first request.

    Args:
        websocket: returns the protocol of a WebSocket, which gets the request.
        http: imports and returns the server of all other requests. It is called once.
        unauthenticated: the budget of the port's connections until they have authenticated.
        request_timeout: seconds for a request's head to arrive.
        limited: called with "request_time" for each connection that exceeds it.
    """

    def __init__(
        self,
        websocket: Callable[[], asyncio.Protocol],
        http: Callable[[], HttpServer],
        unauthenticated: Unauthenticated,
        request_timeout: float,
        limited: Callable[[str], None],
    ) -> None:
        self.websocket = websocket
        self.unauthenticated = unauthenticated
        self.request_timeout = request_timeout
        self.limited = limited
        self.undecided: set[_Connection] = set()
        self._import_http = http
        self._http: HttpServer | None = None

    async def listen(self, host: str, port: int) -> Listener:
        """Serve one port.

        Raises:
            OSError: the port is in use.
        """
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Connection(self), host, port, backlog=BACKLOG)
        return Listener(server, self._transports)

    def http(self, waited_s: float) -> asyncio.Protocol:
        """Return the protocol of a connection that was made so many seconds ago, and is no plain WebSocket."""
        if self._http is None:
            self._http = self._import_http()
        return self._http(waited_s)

    def _transports(self) -> Iterator[asyncio.Transport]:
        for connection in self.undecided:
            yield connection.transport
        if self._http is not None:
            yield from self._http.transports()


class _Connection(asyncio.Protocol):
    """A connection until the head of its first request. Then another protocol takes over its transport."""

    __slots__ = ("_began", "_front", "_received", "_timer", "transport")

    transport: asyncio.Transport

    def __init__(self, front: Front) -> None:
        self._front = front
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        front, loop = self._front, asyncio.get_running_loop()
        front.undecided.add(self)
        front.unauthenticated.enter(transport, self.transport.abort)
        self._began = loop.time()
        self._timer = loop.call_later(front.request_timeout, self._expire)

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        self._front.unauthenticated.leave(self.transport)

    def data_received(self, data: bytes) -> None:
        searched = max(0, len(self._received) - 2)
        received = self._received = self._received + data
        end = _END.search(received, searched, MAX_REQUEST_HEAD)
        if end is not None and is_plain_handshake(received[: end.end()]):
            self._hand_over(self._front.websocket(), received[: end.end()], received[end.end() :])
        elif end is not None or len(received) >= MAX_REQUEST_HEAD or not _METHOD.startswith(received[: len(_METHOD)]):
            self._hand_over(self._front.http(asyncio.get_running_loop().time() - self._began), received)

    def _hand_over(self, protocol: asyncio.Protocol, *pieces: bytes) -> None:
        self._leave()
        self.transport.set_protocol(protocol)
        protocol.connection_made(self.transport)
        for piece in pieces:
            if piece and not self.transport.is_closing():
                cast(asyncio.Protocol, self.transport.get_protocol()).data_received(piece)

    def _leave(self) -> None:
        self._timer.cancel()
        self._front.undecided.discard(self)

    def _expire(self) -> None:
        self._front.limited("request_time")
        self.transport.abort()
