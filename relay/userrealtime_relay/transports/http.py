"""HTTP, carried by uvicorn's protocol on asyncio's server.

uvicorn's own `Server` is left out: it would take the process's signals, and wake ten times a second in every pod, for
a Date header. What uvicorn leaves open is closed here: how many connections may be about to ask something, and how
long they may take.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from .client import UNSENT_LIMIT, WRITE_LIMIT

MAX_REQUEST_HEAD: Final = 16 << 10
"""Bytes of a request's line and headers; over twice as many, always 400."""
BACKLOG: Final = 512
KEEP_ALIVE: Final = 5
"""Seconds that a connection may be idle after a response; a new one costs a client little."""


class Connection(H11Protocol):
    """One connection; after an upgrade, another protocol takes over its transport.

    An application finds it in `scope["state"]["connection"]`. One that answers for long may `hold` it.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        state: ServerState,
        *,
        limit: int,
        request_timeout: float,
        limited: Callable[[str], None],
    ) -> None:
        super().__init__(config, state, {"connection": self})
        self._limit = limit
        self._limited = limited
        self._request_timeout = request_timeout
        self._timer: asyncio.TimerHandle | None = None
        self._changed: Callable[[], None] | None = None
        self.lost = asyncio.Event()

    def hold(self, changed: Callable[[], None], *, dead_after: float) -> None:
        """Until the response is complete, this is no longer one of those that ask, whose number is limited.

        Args:
            changed: called when the socket takes more, and when the connection is lost.
            dead_after: seconds after which a peer that acknowledges nothing is given up.
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
        """Await the end of a response; cut the connection if it takes more than `patience` seconds."""
        try:
            async with asyncio.timeout(patience):
                await ending
        except TimeoutError:
            await self.cut()

    async def cut(self) -> None:
        """End the connection, and wait until it has ended."""
        self.transport.abort()
        await self.lost.wait()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._notify()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._limit:
            self._limited("connections")
            transport.abort()
        self._expect_request()

    def data_received(self, data: bytes) -> None:
        # In pieces: h11 measures a head only while it is not complete, and one read may bring far more.
        for begin in range(0, len(data), MAX_REQUEST_HEAD):
            if self.transport.is_closing():
                return
            protocol = self.transport.get_protocol()
            if protocol is not self:
                cast(asyncio.Protocol, protocol).data_received(data[begin:])
                return
            super().data_received(data[begin : begin + MAX_REQUEST_HEAD])

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        super().handle_websocket_upgrade(event)
        # The connection is another protocol's now, with what the client did not wait to send. What this one holds goes
        # at once, not when cycles are looked for.
        early, _ = self.conn.trailing_data
        if early:
            cast(asyncio.Protocol, self.transport.get_protocol()).data_received(early)
        cast(dict[str, Any], self.scope).clear()  # whose state leads back here
        self.app_state = {}
        if self._timer is not None:
            self._timer.cancel()

    def send_400_response(self, msg: str) -> None:
        if self.cycle is None or self.cycle.response_complete:
            super().send_400_response(msg)
        else:
            self.transport.abort()  # the body of a request that is being answered: there is no room for another answer

    def on_response_complete(self) -> None:
        self._changed = None
        if not self.lost.is_set():
            self.connections.add(self)
        super().on_response_complete()
        self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()
        super().connection_lost(exc)
        self._notify()
        if self._timer is not None:
            self._timer.cancel()

    def _expect_request(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(self._request_timeout, self._expire)

    def _notify(self) -> None:
        if self._changed is not None:
            self._changed()

    def _expire(self) -> None:
        upgraded = self.transport.get_protocol() is not self
        if not upgraded and (self.cycle is None or self.cycle.response_complete):
            self._limited("request_time")
            self.transport.abort()


class Listener:
    """A port that is served."""

    def __init__(self, server: asyncio.Server, connections: set[Any]) -> None:
        self._server = server
        self._connections = connections

    @property
    def port(self) -> int:
        """The number of the port, which the system has chosen if 0 was asked for."""
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def close(self) -> None:
        """Take no more connections, and cut those that ask; those that are held are their holders' to end."""
        self._server.close()
        for connection in list(self._connections):
            connection.transport.abort()


async def listen(
    app: ASGIApp,
    host: str,
    port: int,
    *,
    websocket: Any = "none",
    limit: int,
    request_timeout: float,
    limited: Callable[[str], None],
) -> Listener:
    """Serve an application on one port.

    Args:
        websocket: a factory of asyncio protocols, as uvicorn's `ws`, that takes over requests to upgrade.
        limit: connections that may wait for their request or response at a time; more are dropped.
        request_timeout: seconds for a request's head to arrive.
        limited: told of each connection that is dropped for one of the two, "connections" or "request_time".

    Raises:
        OSError: the port cannot be had.
    """
    config = uvicorn.Config(
        cast(Any, app),
        http=Connection,
        ws=websocket,
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,  # a URL may hold what is not for a log
        proxy_headers=False,
        server_header=False,
        date_header=False,
        h11_max_incomplete_event_size=MAX_REQUEST_HEAD,
        limit_concurrency=None,  # it would count streams, which have limits of their own; `limit` counts who asks
        timeout_keep_alive=KEEP_ALIVE,
        backlog=BACKLOG,
    )
    config.load()
    state = ServerState()

    def protocol() -> Connection:
        return Connection(config, state, limit=limit, request_timeout=request_timeout, limited=limited)

    server = await asyncio.get_running_loop().create_server(protocol, host, port, backlog=BACKLOG)
    return Listener(server, state.connections)
