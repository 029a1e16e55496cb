"""HTTP by uvicorn's protocol on asyncio's server.

uvicorn's `Server` is not used: it would take over the signals of the process, and wake ten times a second in every pod
for a Date header. This module adds limits that uvicorn lacks: of the unauthenticated connections, of the time in which
a request must arrive, and of the work that its body causes.

The body of a request is parsed only when the application requests it, after it has checked the token. The response to a
request whose body was not read completely is the last one of its connection.

uvicorn has no public interface for this: `Connection` overrides methods of its `H11Protocol` and uses its attributes.
`tests/relay/test_contracts.py` names them, and pyproject.toml has an upper bound for uvicorn.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final, cast

import h11
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from userrealtime_core.unauthenticated import Unauthenticated
from userrealtime_relay.delivery.clients import UNSENT_LIMIT, WRITE_LIMIT
from userrealtime_relay.process.listener import Listener

from .front import BACKLOG, MAX_REQUEST_HEAD

KEEP_ALIVE: Final = 5
"""Seconds that a connection may be idle after a response; a new one costs a client little."""
MAX_CHUNKS: Final = 1024
"""Pieces in which a body may arrive. h11 needs about 33 µs for each chunk, be it a single byte."""
LINGER_S: Final = 2
"""Seconds for which the rest of an unread body is dropped, after the response to it."""
LINGER_BYTES: Final = 1 << 20
"""Bytes of such a rest that are dropped; then the connection is aborted."""


class _Requests(h11.Connection):
    """h11's server side. It leaves a body unparsed until it is requested, and limits the number of its chunks."""

    def __init__(self, max_chunks: int) -> None:
        super().__init__(h11.SERVER, MAX_REQUEST_HEAD)
        self.body_missing = False
        """Whether the current request has a body whose end was not read."""
        self.body_wanted = False
        self.chunks_exceeded = False
        self._max_chunks = max_chunks
        self._chunks = 0

    def next_event(self) -> Any:
        if self.body_missing and not self.body_wanted:
            return h11.NEED_DATA
        event = super().next_event()
        if isinstance(event, h11.Request):
            self.body_missing = _has_body(event)
            self.body_wanted = False
            self._chunks = 0
        elif isinstance(event, h11.Data):
            self._chunks += 1
            if self._chunks > self._max_chunks:
                self.chunks_exceeded = True
                raise h11.RemoteProtocolError("the body comes in too many pieces")
        elif isinstance(event, h11.EndOfMessage):
            self.body_missing = False
        return event

    def send(self, event: Any) -> bytes | None:  # type: ignore[override]
        if isinstance(event, h11.Response) and self.body_missing:
            event = h11.Response(
                status_code=event.status_code,
                headers=[*event.headers, (b"connection", b"close")],
                reason=event.reason,
            )
        return cast("bytes | None", super().send(event))


def _has_body(request: h11.Request) -> bool:
    for name, value in request.headers:
        if name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0")):
            return True
    return False


class Connection(H11Protocol):
    """One connection; after an upgrade, another protocol takes over its transport.

    An application finds it in `scope["state"]["connection"]`, and calls `hold` for a long response.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        state: ServerState,
        *,
        unauthenticated: Unauthenticated,
        request_timeout: float,
        waited_s: float,
        limited: Callable[[str], None],
        max_chunks: int,
    ) -> None:
        super().__init__(config, state, {"connection": self})
        self.conn = self._requests = _Requests(max_chunks)
        self._unauthenticated = unauthenticated
        self._discarded: int | None = None  # bytes, once the rest of a body is dropped
        self._limited = limited
        self._request_timeout = request_timeout
        self._waited_s = waited_s
        self._timer: asyncio.TimerHandle | None = None
        self._changed: Callable[[], None] | None = None
        self.lost = asyncio.Event()

    def _get_upgrade(self) -> bytes | None:
        # uvicorn's own method reads only the last of several Connection headers.
        values = [value for name, value in self.headers if name == b"connection"]
        if b"upgrade" not in [token.strip().lower() for value in values for token in value.split(b",")]:
            return None
        return next((value.strip().lower() for name, value in self.headers if name == b"upgrade"), None)

    @property
    def has_body(self) -> bool:
        """Whether the current request has a body that was not read to its end."""
        return self._requests.body_missing

    def read_body(self) -> None:
        """Let the body of the current request be parsed, for the application to `receive`."""
        self._requests.body_wanted = True
        self.handle_events()

    async def discard_body(self) -> None:
        """Drop the rest of an unread body without parsing it, so the client can read the response.

        If the connection were closed with unread data, the kernel would reset it, and the response could be lost.
        """
        self._discarded = 0
        self.flow.resume_reading()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                await self.lost.wait()

    def authenticated(self) -> None:
        """Remove the connection from the unauthenticated ones, until the response is complete."""
        self._unauthenticated.leave(self.transport)

    def hold(self, changed: Callable[[], None], *, dead_after: float) -> None:
        """Until the response is complete, notify its application of the state of the socket.

        Args:
            changed: called when the socket takes more, and when the connection is lost.
            dead_after: seconds after which a peer without any acknowledgement counts as lost.
        """
        if self.lost.is_set():
            return
        self._changed = changed
        self.connections.discard(self)
        self.transport.set_write_buffer_limits(WRITE_LIMIT)
        connection: socket.socket = self.transport.get_extra_info("socket")
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # Linux
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_LIMIT)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(dead_after * 1000))

    @property
    def paused(self) -> bool:
        """Whether the socket has enough to send."""
        return self.flow.write_paused

    @property
    def unsent(self) -> int:
        """Bytes waiting in the process for the socket."""
        return self.transport.get_write_buffer_size()

    def write(self, data: bytes) -> None:
        """Send a piece of a response whose head was sent. Never waits; nothing once the connection is lost."""
        if not self.lost.is_set():
            self.transport.write(self.conn.send(h11.Data(data=data)) or b"")

    async def finish(self, ending: Awaitable[None], *, patience: float) -> None:
        """Await the end of a response; abort the connection if it takes more than `patience` seconds."""
        try:
            async with asyncio.timeout(patience):
                await ending
        except TimeoutError:
            await self.abort()

    async def abort(self) -> None:
        """Abort the connection, and wait for its end."""
        self.transport.abort()
        await self.lost.wait()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._notify()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._unauthenticated.enter(transport, transport.abort)
        self._expect_request()

    def data_received(self, data: bytes) -> None:
        if self._discarded is not None:
            self._discarded += len(data)
            if self._discarded > LINGER_BYTES:
                self.transport.abort()
            return
        # In pieces: h11 measures a head only while it is not complete, and one read may bring far more.
        for begin in range(0, len(data), MAX_REQUEST_HEAD):
            if self.transport.is_closing():
                return
            protocol = self.transport.get_protocol()
            if protocol is not self:
                cast(asyncio.Protocol, protocol).data_received(data[begin:])
                return
            super().data_received(data[begin : begin + MAX_REQUEST_HEAD])
        if self._requests.body_missing and not self._requests.body_wanted:
            self.flow.pause_reading()  # `receive` and `discard_body` resume

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        super().handle_websocket_upgrade(event)
        # Another protocol owns the connection now, with the data that the client has already sent. The memory of this
        # one is released here, and not by the garbage collector later.
        early, _ = self.conn.trailing_data
        if early:
            cast(asyncio.Protocol, self.transport.get_protocol()).data_received(early)
        cast(dict[str, Any], self.scope).clear()  # its state refers to this object
        self.app_state = {}
        if self._timer is not None:
            self._timer.cancel()

    def send_400_response(self, msg: str) -> None:
        if self._requests.chunks_exceeded:
            self._limited("chunks")
        if self.cycle is None or self.cycle.response_complete:
            super().send_400_response(msg)
        else:
            self.transport.abort()  # the request has a response already

    def on_response_complete(self) -> None:
        self._changed = None
        if not self.lost.is_set():
            self.connections.add(self)
            if self.transport not in self._unauthenticated:
                self._unauthenticated.enter(self.transport, self.transport.abort)
        super().on_response_complete()
        self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()
        self._unauthenticated.leave(self.transport)
        super().connection_lost(exc)
        self._notify()
        if self._timer is not None:
            self._timer.cancel()

    def _expect_request(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(self._request_timeout - self._waited_s, self._expire)
        self._waited_s = 0.0

    def _notify(self) -> None:
        if self._changed is not None:
            self._changed()

    def _expire(self) -> None:
        upgraded = self.transport.get_protocol() is not self
        if not upgraded and (self.cycle is None or self.cycle.response_complete):
            self._limited("request_time")
            self.transport.abort()


class HttpServer:
    """Makes the protocols of a port's connections.

    Args:
        websocket: a factory of asyncio protocols, as uvicorn's `ws`, that takes over requests to upgrade.
        unauthenticated: the budget of the port's connections, from their beginning until `Connection.authenticated`.
        request_timeout: seconds for a request's head to arrive.
        limited: called with the name of the limit, "request_time" or "chunks", for each connection that exceeds it.
        max_chunks: pieces in which the body of a request may arrive.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        websocket: Any = "none",
        unauthenticated: Unauthenticated,
        request_timeout: float,
        limited: Callable[[str], None] = lambda _: None,
        max_chunks: int = MAX_CHUNKS,
    ) -> None:
        self._unauthenticated = unauthenticated
        self._request_timeout = request_timeout
        self._limited = limited
        self._max_chunks = max_chunks
        self._state = ServerState()
        self._config = uvicorn.Config(
            cast(Any, functools.partial(_answer, app)),
            http=Connection,
            ws=websocket,
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,  # a URL may contain a token
            proxy_headers=False,
            server_header=False,
            date_header=False,
            h11_max_incomplete_event_size=MAX_REQUEST_HEAD,
            limit_concurrency=None,  # it would count streams, which have other limits
            timeout_keep_alive=KEEP_ALIVE,
            backlog=BACKLOG,
        )
        self._config.load()

    def __call__(self, waited_s: float = 0.0) -> Connection:
        """Return the protocol of a connection that was made so many seconds ago."""
        return Connection(
            self._config,
            self._state,
            unauthenticated=self._unauthenticated,
            request_timeout=self._request_timeout,
            waited_s=waited_s,
            limited=self._limited,
            max_chunks=self._max_chunks,
        )

    def transports(self) -> Iterator[asyncio.Transport]:
        """Return the transports of its connections, except those on `hold`, which the applications end."""
        return (cast(Any, connection).transport for connection in self._state.connections)

    async def listen(self, host: str, port: int) -> Listener:
        """Serve one port.

        Raises:
            OSError: the port is in use.
        """
        server = await asyncio.get_running_loop().create_server(self, host, port, backlog=BACKLOG)
        return Listener(server, self.transports)


async def _answer(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Call the application. The rest of a body that it does not read is dropped before the connection is closed."""
    connection: Connection = scope["state"]["connection"]

    async def send_and_drop(message: Message) -> None:
        last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if last and connection.has_body:
            await send({**message, "more_body": True})
            await connection.discard_body()
            message = {"type": "http.response.body"}
        await send(message)

    await app(scope, receive, send_and_drop if connection.has_body else send)
