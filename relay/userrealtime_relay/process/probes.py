"""The private port, as routes of Starlette."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from userrealtime_core import probes
from userrealtime_core.metrics import CONTENT_TYPE


def routes(not_ready_reason: Callable[[], str | None], metrics: Callable[[], bytes]) -> list[Route]:
    """Return the routes of the probes and of the metrics.

    Args:
        not_ready_reason: returns why the process should get no work; None if it may.
        metrics: returns the text of the metrics.
    """

    async def health(_: Request) -> Response:
        return _json(*probes.health())

    async def ready(_: Request) -> Response:
        return _json(*probes.ready(not_ready_reason()))

    async def expose(_: Request) -> Response:
        return Response(metrics(), media_type=CONTENT_TYPE)

    return [Route(probes.HEALTH, health), Route(probes.READY, ready), Route(probes.METRICS, expose)]


def _json(status: HTTPStatus, body: bytes) -> Response:
    return Response(body, status, media_type="application/json")
