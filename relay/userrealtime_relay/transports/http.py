"""HTTP, carried by uvicorn's protocol on asyncio's server.

uvicorn's own `Server` is left out: it would take the process's signals, and wake ten times a second in every pod, for
a Date header. What uvicorn leaves open is closed here: how many connections may be about to ask something, and how
long they may take.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

MAX_REQUEST_HEAD: Final = 16 << 10
"""Bytes of a request's line and headers; over it, 400."""
BACKLOG: Final = 512


class _Protocol(H11Protocol):
    """One connection; after an upgrade, another protocol takes over its transport."""

    def __init__(self, *arguments: Any, limit: int, request_timeout: float, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._limit = limit
        self._request_timeout = request_timeout
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._limit:
            transport.abort()
        self._expect_request()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._timer is not None:
            self._timer.cancel()

    def _expect_request(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(self._request_timeout, self._expire)

    def _expire(self) -> None:
        upgraded = self.transport.get_protocol() is not self
        if not upgraded and (self.cycle is None or self.cycle.response_complete):
            self.transport.abort()


async def listen(
    app: ASGIApp,
    host: str,
    port: int,
    *,
    websocket: Any = "none",
    limit: int,
    request_timeout: float,
) -> asyncio.Server:
    """Serve an application on one port.

    Args:
        websocket: a factory of asyncio protocols, as uvicorn's `ws`, that takes over requests to upgrade.
        limit: connections that may wait for their request or response at a time; more are dropped.
        request_timeout: seconds for a request's head to arrive.

    Raises:
        OSError: the port cannot be had.
    """
    config = uvicorn.Config(
        cast(Any, app),
        http=_Protocol,
        ws=websocket,
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,  # a URL may hold what is not for a log
        proxy_headers=False,
        server_header=False,
        date_header=False,
        h11_max_incomplete_event_size=MAX_REQUEST_HEAD,
    )
    config.load()
    state = ServerState()

    def protocol() -> _Protocol:
        return _Protocol(config, state, {}, limit=limit, request_timeout=request_timeout)

    return await asyncio.get_running_loop().create_server(protocol, host, port, backlog=BACKLOG)
