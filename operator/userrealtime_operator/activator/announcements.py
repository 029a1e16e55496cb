"""Hears from users' pods that they listen: see `userrealtime_core.registration`.

Only for a user who is being woken here is anything looked at, and only the address that the pod itself speaks from is
taken. So whoever holds no key of the user's reaches nothing, and who replays what was said leads nobody elsewhere.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Final

from aiohttp import web

from userrealtime_core.registration import BadRegistration
from userrealtime_operator.process.probes import listen

from .metrics import Metrics
from .tokens import Tokens
from .wakes import Wakes

CONNECTIONS: Final = 1_000
"""Open at a time: as many users may be woken at once."""

_logger = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def serve(host: str, port: int, wakes: Wakes, tokens: Tokens, metrics: Metrics) -> AsyncIterator[int]:
    """Hear pods while the block runs; gives the port.

    Raises:
        OSError: the port cannot be had.
    """

    async def hear(request: web.Request) -> web.Response:
        outcome, status = _judge(request, wakes, tokens)
        metrics.announcements.labels(outcome).inc()
        return web.Response(status=status)

    app = web.Application(client_max_size=1024)
    app.add_routes([web.post("/{namespace}/{name}", hear)])
    async with listen(app, host, port, connections=CONNECTIONS) as number:
        yield number


def _judge(request: web.Request, wakes: Wakes, tokens: Tokens) -> tuple[str, HTTPStatus]:
    route = wakes.awaited(request.match_info["namespace"], request.match_info["name"])
    if route is None:
        return "not_awaited", HTTPStatus.NOT_FOUND
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    try:
        if scheme != "Bearer":
            raise BadRegistration
        address = tokens.announced(route, token)
    except BadRegistration:
        return "refused", HTTPStatus.UNAUTHORIZED
    if address != request.remote:  # as where nodes hide the addresses of pods
        _logger.warning("a pod speaks from another address than its own", extra={"fields": {"user": str(route.user)}})
        return "refused", HTTPStatus.FORBIDDEN
    wakes.announced(route, address)
    return "taken", HTTPStatus.NO_CONTENT
