"""The process: two ports, one tail, and an orderly end.

SIGTERM or SIGINT: `/ready` turns 503 at once, new clients are told to reconnect, those there are closed spread over
the drain timeout, then the process ends with 0. A second signal ends it on the spot.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from .config import Config
from .metrics import CONTENT_TYPE, Metrics
from .signals.listen import listen as notify
from .tail import Tail
from .transports.http import listen
from .transports.websocket import WebSockets

PROBE_CONNECTIONS: Final = 64
PROBE_TIMEOUT: Final = 5

_logger = logging.getLogger(__name__)


async def serve(config: Config) -> None:
    """Serve until a signal says to stop; returns when all clients are gone.

    Raises:
        OSError: a port cannot be had.
    """
    metrics = Metrics()
    tail = Tail(config, notify, metrics)
    websockets = WebSockets(config, tail, metrics)
    stopping = asyncio.Event()
    metrics.ring_events.set_function(lambda: len(tail.ring))
    metrics.ring_bytes.set_function(lambda: tail.ring.bytes)

    def hindrance() -> str | None:
        return "draining" if stopping.is_set() else tail.hindrance

    metrics.ready.set_function(lambda: hindrance() is None)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop, stopping, number)
    private = await listen(
        _private(metrics, hindrance),
        config.host,
        config.health_port,
        limit=PROBE_CONNECTIONS,
        request_timeout=PROBE_TIMEOUT,
    )
    public = await listen(
        _public(websockets.paths),
        config.host,
        config.ws_port,
        websocket=websockets,
        limit=config.max_connections,
        request_timeout=config.auth_timeout,
    )
    _logger.info("listening", extra={"fields": {"ws_port": _port(public), "health_port": _port(private)}})
    following = asyncio.create_task(tail.run())
    stop = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait([following, stop], return_when=asyncio.FIRST_COMPLETED)
        if following.done():
            following.result()  # which raises: it never returns
        _logger.info("draining")
        await websockets.drain()
    finally:
        public.close()
        private.close()
        for task in (following, stop):
            task.cancel()
        await websockets.cut()
        await asyncio.gather(following, stop, return_exceptions=True)
        _logger.info("stopped")


def _stop(stopping: asyncio.Event, number: int) -> None:
    if stopping.is_set():
        os._exit(128 + number)
    stopping.set()


def _private(metrics: Metrics, hindrance: Callable[[], str | None]) -> Router:
    """What the cluster asks: is the process alive, may it get clients, how is it doing."""

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(_: Request) -> Response:
        reason = hindrance()
        if reason is None:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "not ready", "reason": reason}, HTTPStatus.SERVICE_UNAVAILABLE)

    async def expose(_: Request) -> Response:
        return Response(metrics.expose(), media_type=CONTENT_TYPE)

    return Router([Route("/health", health), Route("/ready", ready), Route("/metrics", expose)], default=_not_found)


def _public(websocket_paths: Sequence[str]) -> Router:
    """What a plain HTTP request finds on the port of the WebSockets."""

    async def upgrade(_: Request) -> Response:
        return JSONResponse(
            {"error": "this is a WebSocket: connect with a WebSocket client"},
            HTTPStatus.UPGRADE_REQUIRED,
            headers={"Upgrade": "websocket", "Connection": "Upgrade"},
        )

    return Router([Route(path, upgrade) for path in websocket_paths], default=_not_found)


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    await JSONResponse({"error": "not found"}, HTTPStatus.NOT_FOUND)(scope, receive, send)


def _port(server: asyncio.Server) -> int:
    port: int = server.sockets[0].getsockname()[1]
    return port
