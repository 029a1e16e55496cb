"""The public port for requests other than plain WebSockets, as an ASGI application."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from userrealtime_core import audit
from userrealtime_core.wire import cors
from userrealtime_relay.config import Config
from userrealtime_relay.delivery.clients import Clients

from . import request_id
from .http import MAX_CHUNKS, HttpServer
from .longpoll import Polls
from .publish import Broadcasting, Publishing
from .request import connection_of
from .sse import Streams
from .websocket import WebSockets

SMALLEST_CHUNK: Final = 512
"""Bytes that the chunks of a body must have on average, where `MAX_CHUNKS` would not do for the longest body."""


def serve(clients: Clients, websockets: WebSockets, routes: Sequence[BaseRoute]) -> HttpServer:
    """Return the server of the relay's HTTP requests.

    Args:
        routes: the routes of the protocols of other systems.
    """
    config = clients.config
    return HttpServer(
        _application(config, clients, routes),
        websocket=websockets,
        unauthenticated=clients.unauthenticated,
        request_timeout=config.auth_timeout,
        limited=lambda limit: clients.metrics.limited.labels(limit).inc(),
        max_chunks=max(MAX_CHUNKS, config.max_message_bytes // SMALLEST_CHUNK),
    )


def _application(config: Config, clients: Clients, more: Sequence[BaseRoute]) -> ASGIApp:
    """Return the application."""
    streams, polls = Streams(clients), Polls(clients)
    publishing, broadcasting = Publishing(clients), Broadcasting(clients)

    async def upgrade(_: Request) -> Response:
        return JSONResponse(
            {"error": "this is a WebSocket: connect with a WebSocket client"},
            HTTPStatus.UPGRADE_REQUIRED,
            headers={"Upgrade": "websocket", "Connection": "Upgrade"},
        )

    router = Router(
        [
            *(Route(path, upgrade) for path in config.paths("/ws")),
            *(Route(path, _Only("GET", streams)) for path in config.paths("/sse")),
            *(Route(path, _Only("GET", polls)) for path in config.paths("/poll")),
            *(Route(path, _Only("POST", publishing)) for path in config.paths("/publish")),
            *(Route(path, _Only("POST", broadcasting)) for path in config.paths("/broadcast")),
            *more,
        ],
        default=_not_found,
        redirect_slashes=False,
    )
    if not config.allowed_origins:
        return _RequestIds(router)
    from starlette.middleware.cors import CORSMiddleware  # late: a relay without it starts sooner

    return CORSMiddleware(
        _RequestIds(router),
        allow_origins=config.allowed_origins,
        allow_methods=cors.METHODS,
        allow_headers=cors.REQUEST_HEADERS,
        expose_headers=cors.RESPONSE_HEADERS,
        max_age=cors.PREFLIGHT_AGE,
    )


class _RequestIds:
    """ASGI middleware that gives every request an id."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        current = request_id.adopt(headers.get(request_id.HEADER))
        audit.set_client(scope.get("client"), headers.get("X-Forwarded-For"))

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[request_id.HEADER] = current
            await send(message)

        await self._app(scope, receive, send_with_id)


class _Only:
    """Restricts an application to one method. A class, since Starlette treats functions differently."""

    def __init__(self, method: str, app: ASGIApp) -> None:
        self._method = method
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["method"] != self._method:
            error = {"error": f"only {self._method} is answered here"}
            app = JSONResponse(error, HTTPStatus.METHOD_NOT_ALLOWED, headers={"Allow": self._method})
        elif self._method == "GET" and connection_of(scope).has_body:
            app = JSONResponse({"error": "a GET request has no body here"}, HTTPStatus.BAD_REQUEST)
        await app(scope, receive, send)


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    await JSONResponse({"error": "not found"}, HTTPStatus.NOT_FOUND)(scope, receive, send)
