"""The process: two ports, one tail, and an orderly end.

After SIGTERM or SIGINT, `/ready` returns 503, new clients get a close frame that asks them to reconnect, the others are
closed over the drain timeout, and the process exits with 0. A second signal exits immediately.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Final, Self

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from userrealtime_core.auth.tokens import KeySet
from userrealtime_core.probes import CONNECTIONS, TIMEOUT_S
from userrealtime_core.secret import Secret
from userrealtime_core.unauthenticated import Unauthenticated
from userrealtime_core.wire import cors

from .config import Config
from .delivery.clients import Clients
from .delivery.presence import Presence
from .delivery.tail import Tail
from .metrics import Metrics
from .notify import Broker, Notifier
from .notify import broker as brokers
from .notify.choice import choose
from .process import probes, uptime
from .process.registration import register_address
from .process.stopping import Stopping
from .transports.http import MAX_CHUNKS, listen
from .transports.longpoll import Polls
from .transports.publish import Broadcasting, Publishing
from .transports.request import connection_of
from .transports.request_id import RequestIds
from .transports.sse import Streams
from .transports.websocket import WebSocketEndpoint, WebSockets

SMALLEST_CHUNK: Final = 512
"""Bytes that the chunks of a body must have on average, where `MAX_CHUNKS` would not do for the longest body."""

_logger = logging.getLogger(__name__)


class Relay:
    """The parts of the relay. A context manager: it serves inside the block, and ends all connections after it.

    Raises:
        ConfigError: from the constructor, if the library of the broker or a protocol is missing.
        OSError: on entering, if a port is in use.
    """

    def __init__(self, config: Config, signal: Notifier | None = None) -> None:
        self._config = config
        self.metrics = Metrics()
        self._broker = brokers.load(config.signal) if config.broker_url is not None else None
        self.tail = Tail(config, signal or choose(config), self.metrics)
        self.clients = Clients(config, self.tail, self.metrics, key_set(config))
        websockets, self._routes = _endpoints(self.clients)
        self.websockets = WebSockets(self.clients, websockets)
        self._presence = Presence(
            self.tail, config.instance, lambda: self.clients.connected, lambda: self.clients.quiet_s
        )
        self.clients.changed = self._presence.changed
        self._draining = False
        self.metrics.ring_events.set_function(lambda: len(self.tail.ring))
        self.metrics.ring_bytes.set_function(lambda: self.tail.ring.size)
        self.metrics.ready.set_function(lambda: self.not_ready_reason is None)

    @property
    def not_ready_reason(self) -> str | None:
        """The reason why this relay should get no new clients; None if it may."""
        return "draining" if self._draining else self.tail.not_ready_reason

    @property
    def ws_port(self) -> int:
        return self._public.port

    @property
    def health_port(self) -> int:
        return self._private.port

    async def __aenter__(self) -> Self:
        config = self._config
        self._private = await listen(
            Router(probes.routes(lambda: self.not_ready_reason, self.metrics.expose), default=_not_found),
            config.host,
            config.health_port,
            unauthenticated=Unauthenticated(CONNECTIONS),
            request_timeout=TIMEOUT_S,
        )
        try:
            self._public = await listen(
                _public(config, self.clients, self._routes),
                config.host,
                config.ws_port,
                websocket=self.websockets,
                unauthenticated=self.clients.unauthenticated,
                request_timeout=config.auth_timeout,
                limited=lambda limit: self.metrics.limited.labels(limit).inc(),
                max_chunks=max(MAX_CHUNKS, config.max_message_bytes // SMALLEST_CHUNK),
            )
        except BaseException:
            self._private.close()
            raise
        self.following = asyncio.create_task(self._follow())
        self._reporting = asyncio.create_task(self._presence.run())
        self._pinging = asyncio.create_task(self.websockets.run())
        self._registering = asyncio.create_task(self._register())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._public.close()
        self._private.close()
        await self.websockets.abort_all()
        await self.clients.abort_all()
        beside = [self._reporting, self._pinging, self._registering]
        for task in beside:
            task.cancel()
        await asyncio.wait(beside)
        await self._presence.leave()
        self.following.cancel()
        await asyncio.wait([self.following])

    async def _register(self) -> None:
        config, keys = self._config, self._config.token_keys()
        if config.announce_url is not None and config.pod_ip is not None and keys:
            await register_address(config.announce_url, config.pod_ip, keys[0])

    async def _follow(self) -> None:
        config = self._config
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.tail.run())
            if config.broadcast_to_pods:
                tasks.create_task(self.tail.forward_broadcasts())
            if self._broker is not None and config.broker_url is not None:
                tasks.create_task(self._follow_broker(self._broker, config.broker_url))

    async def _follow_broker(self, broker: Broker, url: Secret) -> None:
        channel = await self.tail.broadcast_channel()
        broadcasts = None if channel is None else (channel, self.tail.on_broadcast)
        await brokers.follow(broker, url, self._config.user_id, self.tail.on_signal, self.metrics, broadcasts)

    async def drain(self) -> None:
        """Close all clients in order; see `Clients.drain` for the duration."""
        self._draining = True
        await self.clients.drain()


async def serve(config: Config) -> None:
    """Serve until SIGTERM or SIGINT; return when all clients are closed.

    Raises:
        OSError: a port is in use.
    """
    stopping = Stopping()
    async with Relay(config) as relay:
        started = {"start_s": uptime.age(), "start_cpu_s": time.process_time()}
        fields = {"ws_port": relay.ws_port, "health_port": relay.health_port, **started}
        _logger.info("listening", extra={"fields": fields})
        await stopping.wait(relay.following)
        _logger.info("draining")
        await relay.drain()
    _logger.info("stopped")


def key_set(config: Config) -> KeySet | None:
    """Return the key set at JWKS_URL, if it is configured."""
    if config.jwks_url is None:
        return None
    from userrealtime_core.auth.jwks import Jwks  # late: a relay without it does not pay for it

    return Jwks(config.jwks_url)


def _endpoints(clients: Clients) -> tuple[Mapping[str, WebSocketEndpoint], Sequence[BaseRoute]]:
    """Return the WebSocket endpoints and the HTTP routes of the protocols of other systems."""
    if not clients.config.protocols:
        return {}, ()
    from .protocols import load  # late: a relay without them does not pay for them

    return load(clients)


def _public(config: Config, clients: Clients, more: Sequence[BaseRoute]) -> ASGIApp:
    """Return the application of the public port for requests other than WebSockets."""
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
        return RequestIds(router)
    from starlette.middleware.cors import CORSMiddleware  # late: a relay without it starts sooner

    return CORSMiddleware(
        RequestIds(router),
        allow_origins=config.allowed_origins,
        allow_methods=cors.METHODS,
        allow_headers=cors.REQUEST_HEADERS,
        expose_headers=cors.RESPONSE_HEADERS,
        max_age=cors.PREFLIGHT_AGE,
    )


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
