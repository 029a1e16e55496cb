"""Receives the announcements of pods that have started to listen (`userrealtime_core.registration`).

An announcement is processed only while its user is being woken here, and its address must be the source address of
the connection. A sender without the user's key therefore has no effect, and neither has a replay from elsewhere.
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
"""The limit of open connections. As many users can be woken at the same time."""

_logger = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def serve(host: str, port: int, wakes: Wakes, tokens: Tokens, metrics: Metrics) -> AsyncIterator[int]:
    """Receive announcements while the block runs. Yields the port.

    Raises:
        OSError: the port is not available.
    """

    async def receive(request: web.Request) -> web.Response:
        outcome, status = _process(request, wakes, tokens)
        metrics.announcements.labels(outcome).inc()
        return web.Response(status=status)

    app = web.Application(client_max_size=1024)
    app.add_routes([web.post("/{namespace}/{name}", receive)])
    async with listen(app, host, port, connections=CONNECTIONS) as number:
        yield number


def _process(request: web.Request, wakes: Wakes, tokens: Tokens) -> tuple[str, HTTPStatus]:
    route = wakes.find_pending(request.match_info["namespace"], request.match_info["name"])
    if route is None:
        return "not_waiting", HTTPStatus.NOT_FOUND
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    try:
        if scheme != "Bearer":
            raise BadRegistration
        address = tokens.verify_registration(route, token)
    except BadRegistration:
        return "rejected", HTTPStatus.UNAUTHORIZED
    if address != request.remote:  # the network may hide the addresses of pods from each other
        _logger.warning(
            "rejected an announcement from another address than it contains",
            extra={"fields": {"user": str(route.user)}},
        )
        return "rejected", HTTPStatus.FORBIDDEN
    wakes.on_registered(route, address)
    return "accepted", HTTPStatus.NO_CONTENT
