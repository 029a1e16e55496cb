"""The activator's access to the cluster, on a real API server without nodes: its caches and its writes."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import yaml
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config import load_kube_config

from testing.cluster import choose
from testing.local.apiserver import LocalApiServer
from testing.operator.names import child_name
from testing.patience import PATIENCE_S, WITHIN
from testing.system import CHART
from userrealtime_core.auth.sealed_keys import Seal
from userrealtime_operator.activator.cluster import ApiCluster
from userrealtime_operator.activator.metrics import Metrics
from userrealtime_operator.activator.routes import Route, RouteTable
from userrealtime_operator.kube.client import Api
from userrealtime_operator.kube.types import NamespacedName

NAMESPACE = "users"
ALICE = Route(NamespacedName(NAMESPACE, "alice"), "alice", "", child_name("alice"))
NAME = child_name("alice")


@pytest.fixture(scope="module")
def server() -> Iterator[LocalApiServer]:
    with LocalApiServer() as started:
        started.kubectl("create", "namespace", NAMESPACE)
        crd = str(CHART / "files" / "userrealtimes.yaml")
        started.kubectl("apply", "--server-side", "-f", crd)
        started.kubectl("wait", "--for=condition=Established", WITHIN, "-f", crd)
        yield started


@pytest.fixture
def alice(server: LocalApiServer) -> Iterator[LocalApiServer]:
    """A server with one user, whose status has the name of the objects."""
    resource = {
        "apiVersion": "userrealtime.dev/v1alpha1",
        "kind": "UserRealtime",
        "metadata": {"name": "alice", "namespace": NAMESPACE},
        "spec": {"userId": "alice"},
    }
    server.kubectl("create", "-f", "-", input=json.dumps(resource))
    named = json.dumps({"status": {"name": NAME}})
    server.kubectl("-n", NAMESPACE, "patch", "urt", "alice", "--subresource=status", "--type=merge", "-p", named)
    yield server
    server.kubectl("-n", NAMESPACE, "delete", "urt,pods,secrets", "--all", "--force", "--grace-period=0")


class Replica:
    """An activator's access to the cluster, and its writes."""

    def __init__(self, api: Api, seal: Seal | None) -> None:
        self.metrics = Metrics()
        self.routes = RouteTable()
        self.cluster = ApiCluster(api, self.routes, self.metrics, seal)

    @property
    def requested(self) -> float:
        return self.metrics.value("wakes_requested_total")


@contextlib.asynccontextmanager
async def replicas(
    server: LocalApiServer, count: int = 1, seal: Seal | None = None, account: str | None = None
) -> AsyncIterator[list[Replica]]:
    """Activators with complete caches."""
    configuration = Configuration()
    await load_kube_config(str(server.kubeconfig), client_configuration=configuration)  # type: ignore[no-untyped-call]
    if account is not None:
        token = server.kubectl("create", "token", account).strip()
        configuration.cert_file = configuration.key_file = None
        configuration.api_key = {"BearerToken": token}
        configuration.api_key_prefix = {"BearerToken": "Bearer"}
    async with contextlib.AsyncExitStack() as stack:
        found = []
        for _ in range(count):
            api = await stack.enter_async_context(Api(configuration))
            replica = Replica(api, seal)
            listed = await stack.enter_async_context(replica.cluster.watching(api, [NAMESPACE]))
            async with asyncio.timeout(PATIENCE_S):
                await listed
            found.append(replica)
        yield found


def status(server: LocalApiServer) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(server.kubectl("-n", NAMESPACE, "get", "urt", "alice", "-o", "json"))
    said: dict[str, Any] = found.get("status", {})
    return said


def put_pod(server: LocalApiServer, *, ready: bool) -> None:
    """Apply a pod of alice with the status that a kubelet would report."""
    labels = {"app.kubernetes.io/name": "userrealtime-relay", "app.kubernetes.io/instance": NAME}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "relay", "namespace": NAMESPACE, "labels": labels},
        "spec": {"containers": [{"name": "relay", "image": "relay"}]},
    }
    server.kubectl("apply", "-f", "-", input=json.dumps(pod))
    conditions = [{"type": "Ready", "status": str(ready)}]
    said = {"phase": "Running", "podIP": "10.1.2.3", "podIPs": [{"ip": "10.1.2.3"}], "conditions": conditions}
    patch = ("patch", "pod", "relay", "--subresource=status", "-p", json.dumps({"status": said}))
    server.kubectl("-n", NAMESPACE, *patch)


def remove_pod(server: LocalApiServer) -> None:
    server.kubectl("-n", NAMESPACE, "delete", "pod", "relay", "--force", "--grace-period=0")


async def until_pod(replica: Replica, *, ready: bool | None) -> None:
    """Wait until the user's pod has this state; None means that there is no pod."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            pod = replica.cluster.pod(ALICE)
            if (pod and pod.ready) is ready:
                return
            await replica.cluster.wait_for_change(ALICE)


async def test_a_wake_is_asked_for_once_by_however_many(alice: LocalApiServer) -> None:
    async with replicas(alice, 3) as found:
        await asyncio.gather(*(replica.cluster.request_wake(ALICE) for replica in found))
        assert sum(replica.requested for replica in found) == 1
        moment = status(alice)["wakeRequestedAt"]
        # A later client does not send another request while the pod has not started and ended.
        await asyncio.sleep(0.5)
        await asyncio.gather(*(replica.cluster.request_wake(ALICE) for replica in found))
        assert status(alice)["wakeRequestedAt"] == moment
        put_pod(alice, ready=True)
        for replica in found:
            await until_pod(replica, ready=True)
        remove_pod(alice)
        for replica in found:
            await until_pod(replica, ready=None)
        await asyncio.gather(*(replica.cluster.request_wake(ALICE) for replica in found))
        assert status(alice)["wakeRequestedAt"] > moment
        assert sum(replica.requested for replica in found) == 2


async def test_others_who_write_all_the_time_keep_nobody_asleep(alice: LocalApiServer) -> None:
    async with replicas(alice) as [replica]:
        for number in range(20):
            patch = json.dumps({"status": {"observedGeneration": number}})
            arguments = ("patch", "urt", "alice", "--subresource=status", "--type=merge", "-p", patch)
            writing = asyncio.create_task(asyncio.to_thread(alice.kubectl, "-n", NAMESPACE, *arguments))
            if number == 3:
                await replica.cluster.request_wake(ALICE)
            await writing
        assert replica.requested == 1
        assert "wakeRequestedAt" in status(alice)


async def test_pods_and_users_are_known_while_the_api_server_restarts(alice: LocalApiServer) -> None:
    async with replicas(alice) as [replica]:
        assert replica.routes.find(NAME, "/ws") is not None
        put_pod(alice, ready=False)
        await until_pod(replica, ready=False)
        pod = replica.cluster.pod(ALICE)
        assert pod is not None
        assert pod.address == ("10.1.2.3", 8080)
        await asyncio.to_thread(alice.kill)
        with pytest.raises(OSError, match="no answer"):
            await replica.cluster.request_wake(ALICE)
        with pytest.raises(OSError, match="no answer"):
            await replica.cluster.secret(ALICE)
        assert replica.routes.find(NAME, "/ws") is not None
        await asyncio.to_thread(alice.start)
        put_pod(alice, ready=True)
        await until_pod(replica, ready=True)
        alice.kubectl("-n", NAMESPACE, "delete", "urt", "alice")
        deadline = time.monotonic() + PATIENCE_S
        while replica.routes.find(NAME, "/ws") is not None:
            assert time.monotonic() < deadline, "the user is gone, and still known"
            await asyncio.sleep(0.05)


async def test_a_users_secret_is_read_and_may_be_missing(alice: LocalApiServer) -> None:
    async with replicas(alice) as [replica]:
        assert await replica.cluster.secret(ALICE) is None
        alice.kubectl("-n", NAMESPACE, "create", "secret", "generic", NAME, "--from-literal=TOKEN_KEY=abc")
        secret = await replica.cluster.secret(ALICE)
        assert secret is not None
        assert base64.b64decode(secret["data"]["TOKEN_KEY"]) == b"abc"


async def test_with_sealed_keys_the_account_reads_no_secret(
    alice: LocalApiServer,
) -> None:
    """The account has the permissions of the chart, with `activator.sealedKeys`."""
    values = {
        "database": {"url": "postgresql://user:password@host/database"},
        "namespaces": [NAMESPACE],
        "activator": {"sealedKeys": {"existingSecret": {"name": "seal"}}},
    }
    arguments = ("template", "userrealtime", str(CHART), "--show-only=templates/activator.yaml", "--values=-")
    text = choose().helm(*arguments, input=json.dumps(values))
    for item in yaml.safe_load_all(text):
        if item and item["kind"] in ("ServiceAccount", "Role", "RoleBinding"):
            alice.kubectl("apply", "-f", "-", input=json.dumps(item))
    found = json.loads(alice.kubectl("-n", NAMESPACE, "get", "urt", "alice", "-o", "json"))
    seal = Seal("the key of the seal, which has enough bytes")
    sealed = {"status": {"sealedKeys": seal.seal(found["metadata"]["uid"], {"TOKEN_KEY": "a key"})}}
    patch = ("patch", "urt", "alice", "--subresource=status", "--type=merge", "-p", json.dumps(sealed))
    alice.kubectl("-n", NAMESPACE, *patch)
    for name in (NAME, f"{NAME}-credentials"):
        alice.kubectl("-n", NAMESPACE, "create", "secret", "generic", name, "--from-literal=TOKEN_KEY=another key")
    async with replicas(alice, seal=seal, account="userrealtime-activator") as [replica]:
        secret = await replica.cluster.secret(ALICE)
        assert secret is not None
        assert base64.b64decode(secret["data"]["TOKEN_KEY"]) == b"a key"
        await replica.cluster.request_wake(ALICE)
        assert replica.requested == 1
    async with replicas(alice, account="userrealtime-activator") as [replica]:
        with pytest.raises(OSError, match="forbidden"):
            await replica.cluster.secret(ALICE)
