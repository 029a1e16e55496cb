"""The HTTP server of the operator and the activator for the cluster: `/metrics` for Prometheus, and probes.

Every pod that reaches these ports can open connections, without a token.
Therefore a port has a limited number of connections, each for a limited time and for one request.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from typing import Final

from aiohttp import web

from userrealtime_core import probes
from userrealtime_core.metrics import CONTENT_TYPE
from userrealtime_core.unauthenticated import Unauthenticated

LIFETIME_S: Final = 10.0
"""Seconds for a request to arrive and for its response to be read."""


@contextlib.asynccontextmanager
async def serve(
    host: str, port: int, expose: Callable[[], bytes], not_ready_reason: Callable[[], str | None]
) -> AsyncIterator[int]:
    """Serve `/health`, `/ready` and `/metrics` while the block runs, and yield the port.

    Args:
        expose: returns the text of the metrics.
        not_ready_reason: returns why the process should get no work; None if it may.

    Raises:
        OSError: the port is unavailable.
    """

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=expose(), headers={"Content-Type": CONTENT_TYPE})

    async def health(_: web.Request) -> web.Response:
        return _json(*probes.health())

    async def ready(_: web.Request) -> web.Response:
        return _json(*probes.ready(not_ready_reason()))

    app = web.Application()
    app.add_routes([web.get(probes.METRICS, metrics), web.get(probes.HEALTH, health), web.get(probes.READY, ready)])
    async with listen(app, host, port) as number:
        yield number


def _json(status: HTTPStatus, body: bytes) -> web.Response:
    return web.Response(status=status, body=body, content_type="application/json")


@contextlib.asynccontextmanager
async def listen(
    app: web.Application, host: str, port: int, *, connections: int = probes.CONNECTIONS, lifetime_s: float = LIFETIME_S
) -> AsyncIterator[int]:
    """Serve an application to the cluster while the block runs, and yield the port.

    Raises:
        OSError: the port is unavailable.
    """

    async def close(_: web.Request, response: web.StreamResponse) -> None:
        response.force_close()
        response.headers["Connection"] = "close"  # the headers are complete when this is called

    app.on_response_prepare.append(close)
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1)
    await runner.setup()
    try:
        handler = runner.server
        assert handler is not None  # noqa: S101  (set up)
        budget = Unauthenticated(connections)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Connection(handler(), budget, lifetime_s), host, port)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
    finally:
        await runner.cleanup()


class _Connection(asyncio.Protocol):
    """aiohttp's protocol for one connection, with a limited lifetime."""

    def __init__(self, protocol: asyncio.Protocol, budget: Unauthenticated, lifetime_s: float) -> None:
        self._protocol = protocol
        self._budget = budget
        self._lifetime_s = lifetime_s

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  (of a TCP server)
        self._timer = asyncio.get_running_loop().call_later(self._lifetime_s, transport.abort)
        self._protocol.connection_made(transport)
        self._budget.enter(self, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        self._budget.leave(self)
        self._protocol.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._protocol.data_received(data)

    def eof_received(self) -> bool | None:
        return self._protocol.eof_received()

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()
