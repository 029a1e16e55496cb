"""What the operator answers over HTTP: `/metrics` for Prometheus and `/readyz` for the kubelet."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

from aiohttp import web

from .metrics import CONTENT_TYPE


@contextlib.asynccontextmanager
async def serve(host: str, port: int, expose: Callable[[], bytes], ready: Callable[[], bool]) -> AsyncIterator[None]:
    """Answer while the block runs."""

    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(body=expose(), headers={"Content-Type": CONTENT_TYPE})

    async def readyz(_request: web.Request) -> web.Response:
        return web.Response(text="ok") if ready() else web.Response(status=503, text="the caches are not full yet")

    app = web.Application()
    app.add_routes([web.get("/metrics", metrics), web.get("/readyz", readyz)])
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        yield
    finally:
        await runner.cleanup()
