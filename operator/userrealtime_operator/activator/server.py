"""The activator's process: three ports, the watches, and the shutdown.

After SIGTERM or SIGINT, `/ready` returns 503, connections are closed over `DRAIN_S`, and the process exits with 0. A
second signal exits immediately.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from userrealtime_core.auth.sealed_keys import Seal
from userrealtime_core.relay_settings import RelaySettings
from userrealtime_core.secret import Secret
from userrealtime_core.trust import reloading
from userrealtime_operator.kube.client import Api
from userrealtime_operator.model.naming import instance_name
from userrealtime_operator.process.probes import serve as serve_probes

from . import announcements
from .cluster import ApiCluster
from .metrics import Metrics
from .proxy.admission import Admission, Limits
from .proxy.origins import Origins
from .proxy.proxy import ActivatorProxy
from .routes import RouteTable
from .tokens import Tokens
from .wakes import Wakes

if TYPE_CHECKING:
    from .parking.parking import Parking

DRAIN_S: Final = 15.0
"""Seconds over which connections are closed. With the time for the last ones, within the pod's 30 s."""
_SPARE_CONNECTIONS: Final = 10

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one activator.

    `relays` are the settings that all relays share. With a `seal`, the token keys of users are in the status of their
    resources, and no Secret is read.
    """

    namespaces: Sequence[str]
    relays: RelaySettings
    user_keys: bool = True
    seal: Seal | None = None
    database_url: Secret | None = None
    """With a role that has the rights of `userrealtime.grant_activator`. None: no connection is parked."""
    host: str = ""  # all addresses, of IPv4 and IPv6
    port: int = 8080
    health_port: int = 3000
    announce_port: int = 8081


async def serve(settings: Settings) -> None:
    """Serve until a signal; returns when the connections are closed.

    Raises:
        ApiError: the API server cannot be reached.
        OSError: a port is not available.
    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop, stopping, number)
    metrics = Metrics()
    routes = RouteTable(settings.relays.protocols)
    # Each watch holds a connection. Wakes must not wait for one.
    watching = 2 * len(settings.namespaces) + _SPARE_CONNECTIONS
    async with reloading(), await Api.connect() as api, await Api.connect(connections=watching) as watches:
        cluster = ApiCluster(api, routes, metrics, settings.seal)
        tokens = Tokens(settings.relays, cluster.secret if settings.user_keys else None)
        limits = Limits(request_s=settings.relays.auth_timeout, query_token=settings.relays.allow_query_token)
        wakes = Wakes(cluster, metrics)
        origins = Origins(settings.relays.allowed_origins)
        admission = Admission(
            routes, origins, tokens, limits, cluster.requests.is_parked, settings.relays.ping_interval
        )
        async with (
            _parking(settings, cluster, tokens, metrics) as parking,
            cluster.watching(watches, settings.namespaces) as listed,
        ):
            proxy = ActivatorProxy(admission, wakes, metrics, limits.idle_s, parking)

            def not_ready_reason() -> str | None:
                if stopping.is_set():
                    return "draining"
                return None if listed.done() else "the users and pods were not listed yet"

            metrics.ready.set_function(lambda: not_ready_reason() is None)
            async with (
                serve_probes(settings.host, settings.health_port, metrics.expose, not_ready_reason),
                announcements.serve(settings.host, settings.announce_port, wakes, tokens, metrics),
            ):
                stop = asyncio.create_task(stopping.wait())
                await asyncio.wait([listed, stop], return_when=asyncio.FIRST_COMPLETED)
                if listed.done():
                    await proxy.listen(settings.host, settings.port)
                    _logger.info("listening", extra={"fields": {"port": proxy.port, "users": len(cluster)}})
                    await stop
                    _logger.info("draining", extra={"fields": {"connections": proxy.connections}})
                    await proxy.drain(DRAIN_S)
    _logger.info("stopped")


@contextlib.asynccontextmanager
async def _parking(
    settings: Settings, cluster: ApiCluster, tokens: Tokens, metrics: Metrics
) -> AsyncIterator[Parking | None]:
    """Park connections while the block runs, if there is a database."""
    if settings.database_url is None:
        yield None
        return
    # Imported only if they are used: the client of Postgres needs several MiB.
    from .parking.heads import Heads
    from .parking.parking import Parking

    heads = Heads(settings.database_url, instance_name(), Parking.wake, metrics.database_failures.inc)
    parking = Parking(heads, tokens, cluster.requests.is_parked, settings.relays, metrics)
    cluster.requests.unparked = parking.unpark
    tasks = [asyncio.create_task(work) for work in (heads.run(), parking.run())]
    try:
        yield parking
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await heads.withdraw()


def _stop(stopping: asyncio.Event, number: int) -> None:
    if stopping.is_set():
        os._exit(128 + number)
    stopping.set()
