"""A user is parked and woken by a real operator and a real activator, on a real API server without nodes.

The test acts as the cluster's controllers and its kubelet: it runs a relay while the user's Deployment has a replica.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import asyncpg
import jwt
import pytest
from websockets.asyncio.client import ClientConnection, connect

from testing.local.apiserver import LocalApiServer
from testing.local.operator import LocalOperator
from testing.local.ports import free_port
from testing.local.postgres import LocalPostgres
from testing.operator.names import child_name
from testing.patience import PATIENCE_S, WITHIN
from testing.relay.harness import running
from testing.system import CHART
from userrealtime_client import Client, Event
from userrealtime_operator.postgres.migrate import migrate
from userrealtime_relay.delivery import presence
from userrealtime_relay.notify.listen import listen
from userrealtime_relay.server import Relay

ROOT: Final = Path(__file__).parents[1]
NAMESPACE: Final = "users"
SYSTEM: Final = "userrealtime"
USER: Final = "alice"
NAME: Final = child_name(USER)
PROTOCOLS: Final = ["pusher"]
POD_HOST: Final = "127.0.0.2"
"""The address of the relay, whose port 8080 must be free."""
SETTINGS: Final = {
    "idle": {"after": "1h", "parkAfter": "2s"},
    "activator": {"enabled": True, "namespace": SYSTEM, "service": "activator", "parking": True},
}
ACTIVE: Final = "select clients, parked from userrealtime.online where user_id = $1"


class Kubelet:
    """Runs alice's relay, and reports it to the API server."""

    def __init__(self, server: LocalApiServer, database_url: str) -> None:
        self._server = server
        self._url = database_url
        self._pods = 0
        self._relay = contextlib.AsyncExitStack()
        self.relay: Relay | None = None

    async def run(self) -> None:
        """Follow the Deployment until cancelled."""
        while True:
            found = await self._kubectl("get", "deployment", NAME, "--ignore-not-found", "-o", "json")
            if found:
                deployment = json.loads(found)
                wanted = deployment["spec"]["replicas"] > 0
                if wanted and self.relay is None:
                    await self._start(deployment)
                elif not wanted and self.relay is not None:
                    await self.stop()
                await self._report(deployment, available=self.relay is not None)
            await asyncio.sleep(0.3)

    async def stop(self) -> None:
        """End the pod, as after SIGTERM."""
        await self._kubectl("delete", "endpointslice", f"{NAME}-pods", "--ignore-not-found")
        await self._relay.aclose()
        self.relay = None
        await self._kubectl("delete", "pods", "--all", "--force", "--grace-period=0")

    async def _start(self, deployment: dict[str, Any]) -> None:
        self._pods += 1
        name = f"{NAME}-{self._pods}"
        secret = json.loads(await self._kubectl("get", "secret", NAME, "-o", "json"))["data"]
        settings = {
            "HOST": POD_HOST,
            "WS_PORT": "8080",
            "INSTANCE": name,
            "BASE_PATH": f"/{NAME}",
            "PROTOCOLS": ",".join(PROTOCOLS),
            "TOKEN_KEY": base64.b64decode(secret["TOKEN_KEY"]).decode(),
        }
        self.relay = await self._relay.enter_async_context(running(self._url, listen, **settings))
        labels = {"app.kubernetes.io/name": "userrealtime-relay", "app.kubernetes.io/instance": NAME}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels},
            "spec": {"containers": [{"name": "relay", "image": "relay"}]},
        }
        await self._apply(pod)
        ready = [{"type": "Ready", "status": "True"}]
        status = {"phase": "Running", "podIP": POD_HOST, "podIPs": [{"ip": POD_HOST}], "conditions": ready}
        await self._patch("pod", name, status)
        await self._apply(endpoints(f"{NAME}-pods", NAMESPACE, NAME, "10.9.9.9"))

    async def _report(self, deployment: dict[str, Any], *, available: bool) -> None:
        generation = deployment["metadata"]["generation"]
        count = int(available)
        status = {
            "observedGeneration": generation,
            **dict.fromkeys(("replicas", "updatedReplicas", "readyReplicas", "availableReplicas"), count),
            "conditions": [
                {"type": "Available", "status": "True", "reason": "x", "message": ""},
                {"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable", "message": ""},
            ],
        }
        before = deployment.get("status", {})
        if (before.get("observedGeneration"), before.get("availableReplicas", 0)) != (generation, count):
            await self._patch("deployment", NAME, status)

    async def _apply(self, item: dict[str, Any]) -> None:
        await self._kubectl("apply", "-f", "-", input=json.dumps(item))

    async def _patch(self, kind: str, name: str, status: dict[str, Any]) -> None:
        patch = json.dumps({"status": status})
        await self._kubectl("patch", kind, name, "--subresource=status", "--type=merge", "-p", patch)

    async def _kubectl(self, *arguments: str, input: str | None = None) -> str:
        return await asyncio.to_thread(self._server.kubectl, "-n", NAMESPACE, *arguments, input=input)


class Activator:
    """An activator as a process of this machine."""

    def __init__(self, kubeconfig: Path, config: Path, database_url: str) -> None:
        self.port = free_port()
        health, announcements = free_port(), free_port()
        self._command = [
            *(sys.executable, "-m", "userrealtime_operator.activator", f"--config={config}", f"--port={self.port}"),
            *(f"--health-port={health}", f"--announce-port={announcements}"),
        ]
        path = os.pathsep.join((str(ROOT / "core"), str(ROOT / "operator")))
        self._environment = {
            **os.environ,
            "KUBECONFIG": str(kubeconfig),
            "DATABASE_URL": database_url,
            "PYTHONPATH": path,
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, env=self._environment, stdin=subprocess.DEVNULL)

    def kill(self) -> None:
        """End it like a crash."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(timeout=PATIENCE_S)


def endpoints(name: str, namespace: str, service: str, address: str) -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": namespace, "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
        "ports": [{"name": "ws", "port": 8080}],
    }


@pytest.fixture
def server() -> Iterator[LocalApiServer]:
    with LocalApiServer() as started:
        for namespace in (NAMESPACE, SYSTEM):
            started.kubectl("create", "namespace", namespace)
        crd = str(CHART / "files" / "userrealtimes.yaml")
        started.kubectl("apply", "--server-side", "-f", crd)
        started.kubectl("wait", "--for=condition=Established", WITHIN, "-f", crd)
        started.kubectl("apply", "-f", "-", input=json.dumps(endpoints("activator", SYSTEM, "activator", "10.8.8.8")))
        yield started


@contextlib.asynccontextmanager
async def following(kubelet: Kubelet) -> AsyncIterator[None]:
    task = asyncio.create_task(kubelet.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await kubelet.stop()


async def test_a_user_is_parked_and_woken(server: LocalApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "REPEAT_INTERVAL_S", 1.0)
    with LocalPostgres() as postgres, contextlib.ExitStack() as stack:
        await migrate(postgres.url())
        database = await asyncpg.connect(postgres.url())
        operator = LocalOperator(
            *(server.kubeconfig, postgres.url(), NAMESPACE),
            instance="operator",
            lease=f"{SYSTEM}/operator",
            settings=SETTINGS,
        )
        stack.enter_context(operator)
        activator = Activator(server.kubeconfig, operator.config, postgres.url())
        activator.start()
        stack.callback(activator.kill)
        resource = {
            "apiVersion": "userrealtime.dev/v1alpha1",
            "kind": "UserRealtime",
            "metadata": {"name": USER, "namespace": NAMESPACE},
            "spec": {"userId": USER, "protocols": PROTOCOLS},
        }
        server.kubectl("create", "-f", "-", input=json.dumps(resource))

        def get(kind: str, name: str) -> dict[str, Any]:
            found: dict[str, Any] = json.loads(server.kubectl("-n", NAMESPACE, "get", kind, name, "-o", "json"))
            return found

        async def become(state: str) -> None:
            deadline = time.monotonic() + PATIENCE_S
            while (await asyncio.to_thread(get, "urt", USER)).get("status", {}).get("state") != state:
                assert time.monotonic() < deadline, f"the user is not {state}:\n{operator.log.read_text()[-3000:]}"
                await asyncio.sleep(0.5)

        async def online(*expected: int) -> None:
            async with asyncio.timeout(PATIENCE_S):
                while tuple(await database.fetchrow(ACTIVE, USER) or ()) != expected:
                    await asyncio.sleep(0.2)

        async def token() -> str:
            secret = (await asyncio.to_thread(get, "secret", NAME))["data"]["TOKEN_KEY"]
            key = base64.b64decode(secret).decode()
            return jwt.encode({"sub": USER, "exp": int(time.time()) + 3600}, key, algorithm="HS256")

        async def next_id(client: Client) -> int:
            async with asyncio.timeout(PATIENCE_S):
                event = await anext(client)
            assert isinstance(event, Event)
            return event.id

        async def event_of(connection: ClientConnection) -> Any:
            async with asyncio.timeout(PATIENCE_S):
                return json.loads(await connection.recv())["event"]

        async def publish() -> None:
            await database.execute("select userrealtime.publish($1, 'x')", USER)

        async with following(Kubelet(server, postgres.url())):
            await become("Awake")
            async with Client(f"http://localhost:{activator.port}/{NAME}", token=token) as client:
                await online(1, 0)
                await publish()
                assert await next_id(client) == 1
                await become("Parked")
                await online(1, 1)
                activator.kill()
                activator.start()
                await online(1, 1)
                await publish()
                assert await next_id(client) == 2
                await become("Awake")
                await become("Parked")
                await online(1, 1)
                # A client of another system wakes the user.
                async with connect(f"ws://localhost:{activator.port}/{NAME}/app/key") as pusher:
                    assert await event_of(pusher) == "pusher:connection_established"
                    subscription = {"channel": "private-log", "auth": f"key:{await token()}"}
                    await pusher.send(json.dumps({"event": "pusher:subscribe", "data": subscription}))
                    assert await event_of(pusher) == "pusher_internal:subscription_succeeded"
                    await become("Awake")
                    await online(2, 0)
                await become("Parked")
                await online(1, 1)
                # The keys are revoked: the client has to bring another token.
                await asyncio.to_thread(server.kubectl, "-n", NAMESPACE, "delete", "secret", NAME)
                await become("Awake")
                await online(1, 0)
                await publish()
                assert await next_id(client) == 3
        await database.close()
