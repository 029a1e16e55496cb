"""The process: three ports, the watches, and an orderly end.

SIGTERM or SIGINT: `/ready` turns 503 at once, connections are ended spread over `DRAIN_S`, then the process ends with
0. A second signal ends it on the spot.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from userrealtime_core.relay_settings import RelaySettings
from userrealtime_operator.kube.client import Api
from userrealtime_operator.process.probes import serve as serve_probes

from . import announcements
from .cluster import ApiCluster
from .metrics import Metrics
from .proxy.origins import Origins
from .proxy.proxy import Gate, Limits
from .routes import RouteTable
from .tokens import Tokens
from .wakes import Wakes

DRAIN_S: Final = 15.0
"""Over which connections are ended; with what each of them takes, within the pod's 30 s."""
_SPARE_CONNECTIONS: Final = 10

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Settings:
    """Of one activator. `relays` is what all users' relays have in common."""

    namespaces: Sequence[str]
    relays: RelaySettings
    user_keys: bool = True
    host: str = "0.0.0.0"  # noqa: S104 (a pod serves its network)
    port: int = 8080
    health_port: int = 3000
    announce_port: int = 8081


async def serve(settings: Settings) -> None:
    """Serve until a signal says to stop; returns when the connections are gone.

    Raises:
        ApiError: there is no API server to ask.
        OSError: a port cannot be had.
    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop, stopping, number)
    metrics = Metrics()
    routes = RouteTable()
    # Watches hold a connection each: wakes are to wait for none of them.
    watching = 2 * len(settings.namespaces) + _SPARE_CONNECTIONS
    async with await Api.connect() as api, await Api.connect(connections=watching) as watches:
        cluster = ApiCluster(api, routes, metrics)
        tokens = Tokens(settings.relays, cluster.secret if settings.user_keys else None)
        limits = Limits(request_s=settings.relays.auth_timeout, query_token=settings.relays.allow_query_token)
        wakes = Wakes(cluster, metrics)
        gate = Gate(routes, wakes, tokens, limits, Origins(settings.relays.allowed_origins), metrics)
        async with cluster.following(watches, settings.namespaces) as full:

            def not_ready_reason() -> str | None:
                if stopping.is_set():
                    return "draining"
                return None if full.done() else "the caches are not full yet"

            metrics.ready.set_function(lambda: not_ready_reason() is None)
            probes = {"/health": lambda: None, "/ready": not_ready_reason}
            async with (
                serve_probes(settings.host, settings.health_port, metrics.expose, probes),
                announcements.serve(settings.host, settings.announce_port, wakes, tokens, metrics),
            ):
                stop = asyncio.create_task(stopping.wait())
                await asyncio.wait([full, stop], return_when=asyncio.FIRST_COMPLETED)
                if full.done():
                    await gate.listen(settings.host, settings.port)
                    _logger.info("listening", extra={"fields": {"port": gate.port, "users": len(cluster)}})
                    await stop
                    _logger.info("draining", extra={"fields": {"connections": gate.connections}})
                    await gate.drain(DRAIN_S)
    _logger.info("stopped")


def _stop(stopping: asyncio.Event, number: int) -> None:
    if stopping.is_set():
        os._exit(128 + number)
    stopping.set()
