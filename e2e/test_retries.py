"""The proxies of docs/routes.md, with the retries that the page describes, while the process of a relay is killed.

The programs are those of Traefik and of Envoy, on this machine, in front of the address of a user's Service. Their
settings are what Traefik and Envoy Gateway make of the objects on the page.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from testing.attempts import Attempts
from testing.cluster import binaries
from testing.local.ports import free_port
from testing.patience import PATIENCE_S
from testing.processes import any_left, processes_with
from testing.system import System
from testing.waiting import eventually

MakeUser = Callable[..., str]
RELAY_PORT: Final = 8080
HTTP_MANAGER: Final = (
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
)


def traefik(folder: Path, port: int, backend: str) -> list[str]:
    """Return the command of Traefik with a `Middleware` of `retry: {attempts: 20, initialInterval: 200ms}`."""
    http = {
        "routers": {"user": {"rule": "PathPrefix(`/`)", "service": "user", "middlewares": ["retry"]}},
        "middlewares": {"retry": {"retry": {"attempts": 20, "initialInterval": "200ms"}}},
        "services": {"user": {"loadBalancer": {"servers": [{"url": f"http://{backend}:{RELAY_PORT}"}]}}},
    }
    file = folder / "traefik.yaml"
    file.write_text(json.dumps({"http": http}))
    point = "--entryPoints.web"
    return [
        str(binaries.traefik()),
        f"{point}.address=127.0.0.1:{port}",
        f"{point}.transport.respondingTimeouts.readTimeout=0",
        f"--providers.file.filename={file}",
        "--global.checkNewVersion=false",
        "--global.sendAnonymousUsage=false",
    ]


def envoy(folder: Path, port: int, backend: str) -> list[str]:
    """Return the command of Envoy with the retries of a `BackendTrafficPolicy`."""
    retry = {
        "retry_on": "connect-failure,reset",
        "num_retries": 10,
        "retry_back_off": {"base_interval": "0.2s", "max_interval": "1s"},
    }
    routes = [{"match": {"prefix": "/"}, "route": {"cluster": "user", "timeout": "0s", "retry_policy": retry}}]
    router = {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}
    manager = {
        "@type": HTTP_MANAGER,
        "stat_prefix": "web",
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": router}],
    }
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    endpoint = {"lb_endpoints": [{"endpoint": {"address": _address(backend, RELAY_PORT)}}]}
    cluster = {
        "name": "user",
        "type": "STATIC",
        "connect_timeout": "5s",
        # The default of Envoy Gateway, `maxParallelRetries`. That of Envoy is 3.
        "circuit_breakers": {"thresholds": [{"max_retries": 1024}]},
        "load_assignment": {"cluster_name": "user", "endpoints": [endpoint]},
    }
    listener = {"address": _address("127.0.0.1", port), "filter_chains": [chain]}
    file = folder / "envoy.json"
    file.write_text(json.dumps({"static_resources": {"listeners": [listener], "clusters": [cluster]}}))
    return [str(binaries.envoy()), "--config-path", str(file), "--disable-hot-restart", "--concurrency", "1"]


def _address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


@asynccontextmanager
async def running(command: list[str], output: Path, attempts: Attempts) -> AsyncIterator[Attempts]:
    """Start a proxy, and yield the attempts through it when the first one is successful."""
    with output.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                assert process.returncode is None, await asyncio.to_thread(output.read_text)
                with contextlib.suppress(OSError, EOFError):
                    if await attempts.status() == "200":
                        break
                await asyncio.sleep(0.1)
        yield attempts
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_the_process_of_a_relay_is_killed(system: System, users: MakeUser, tmp_path: Path) -> None:
    alice = await asyncio.to_thread(users, "alice", limits={"connections": 1000})
    status = system.get("urt", alice)["status"]
    victims = processes_with("USER_ID", alice)
    if not victims:
        pytest.skip("the processes of the cluster are not on this machine, or hidden: none can be killed")
    backend = system.get("service", status["name"])["spec"]["clusterIP"]
    async with AsyncExitStack() as proxies:
        through = []
        for proxy in (traefik, envoy):
            port = free_port()
            command = await asyncio.to_thread(proxy, tmp_path, port, backend)
            attempts = Attempts(status["url"], system.token(alice), port=port)
            output = tmp_path / f"{proxy.__name__}.log"
            through.append(await proxies.enter_async_context(running(command, output, attempts)))
        of_traefik, of_envoy = through
        async with of_traefik, of_envoy:
            await asyncio.sleep(1)
            for victim in victims:
                os.kill(victim, signal.SIGKILL)
            while any_left(victims):
                await asyncio.sleep(0.01)
            killed_at_s = of_traefik.elapsed_s
            await asyncio.to_thread(eventually, lambda: restarts(system, status["name"]) == "1", "a restart")
            await asyncio.to_thread(system.wait_ready, alice)
            await asyncio.sleep(2)
    print(f"\nTraefik: {of_traefik}\nEnvoy: {of_envoy}", end="")
    assert of_traefik.results
    assert of_envoy.results
    # Traefik does not repeat a request that it has sent to the relay.
    assert [each for each in of_traefik.failed if each.at_s > killed_at_s] == []
    assert of_envoy.failed == []


def restarts(system: System, name: str) -> str:
    """Return how often the container of the pod of a user was restarted."""
    count = "jsonpath={.items[*].status.containerStatuses[*].restartCount}"
    return system.kubectl("get", "pods", "-l", f"app.kubernetes.io/instance={name}", "-o", count)
