"""What the cluster asks of a process: is it alive, may it get work, how is it doing."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from userrealtime_relay.metrics import CONTENT_TYPE

CONNECTIONS: Final = 64
"""At a time, on the port of these."""
TIMEOUT: Final = 5
"""Seconds for a request to arrive."""


def routes(not_ready_reason: Callable[[], str | None], metrics: Callable[[], bytes]) -> list[Route]:
    """`/health`, `/ready` and `/metrics`. `not_ready_reason` says why it is not ready, in words; None if it is."""

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(_: Request) -> Response:
        reason = not_ready_reason()
        if reason is None:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "not ready", "reason": reason}, HTTPStatus.SERVICE_UNAVAILABLE)

    async def expose(_: Request) -> Response:
        return Response(metrics(), media_type=CONTENT_TYPE)

    return [Route("/health", health), Route("/ready", ready), Route("/metrics", expose)]
