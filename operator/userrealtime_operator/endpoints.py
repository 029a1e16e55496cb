"""What the operator and the activator answer over HTTP to the cluster: `/metrics` for Prometheus, and probes."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping

from aiohttp import web

from .metrics import CONTENT_TYPE

Probe = Callable[[], str | None]
"""Says what hinders, in words; None where nothing does."""


@contextlib.asynccontextmanager
async def serve(host: str, port: int, expose: Callable[[], bytes], probes: Mapping[str, Probe]) -> AsyncIterator[None]:
    """Answer while the block runs. `probes` are by their paths.

    Raises:
        OSError: the port cannot be had.
    """

    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(body=expose(), headers={"Content-Type": CONTENT_TYPE})

    async def probe(request: web.Request) -> web.Response:
        hindrance = probes[request.path]()
        return web.Response(text="ok") if hindrance is None else web.Response(status=503, text=hindrance)

    app = web.Application()
    app.add_routes([web.get("/metrics", metrics), *(web.get(path, probe) for path in probes)])
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        yield
    finally:
        await runner.cleanup()
