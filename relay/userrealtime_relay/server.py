"""The process: two ports, one tail, and an orderly end.

After SIGTERM or SIGINT, `/ready` returns 503, new clients get a close frame that asks them to reconnect, the others are
closed over the drain timeout, and the process exits with 0. A second signal exits immediately.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Self

from userrealtime_core.auth.tokens import KeySet
from userrealtime_core.secret import Secret

from .config import Config
from .delivery.clients import Clients
from .delivery.presence import Presence
from .delivery.tail import Tail
from .metrics import Metrics
from .notify import Broker, Notifier
from .notify import broker as brokers
from .notify.choice import choose
from .process import probes, uptime
from .process.imports import fast_imports
from .process.registration import register_address
from .process.stopping import Stopping
from .transports.front import Front, HttpServer
from .transports.websocket import WebSocketEndpoint, WebSockets

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

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
        front = Front(
            self.websockets,
            self._import_http,
            self.clients.unauthenticated,
            config.auth_timeout,
            lambda limit: self.metrics.limited.labels(limit).inc(),
        )
        self._private = await probes.listen(
            config.host, config.health_port, lambda: self.not_ready_reason, self.metrics.expose
        )
        try:
            self._public = await front.listen(config.host, config.ws_port)
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

    def _import_http(self) -> HttpServer:
        with fast_imports():
            from .transports.application import serve

        return serve(self.clients, self.websockets, self._routes)

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
    with fast_imports():
        from .protocols import load  # late: a relay without them does not pay for them

        return load(clients)
