"""The chart's NetworkPolicies, enforced: the connections that they permit, and the service of users under them.

All is seen from within pods and through the ingress: this machine's own end of the pods' network is no pod.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest

from testing.client import ResumingClient, open_connection, receive
from testing.cluster import addons, postgres
from testing.cluster.errors import UnknownError
from testing.patience import WITHIN
from testing.sleeping import SELECTOR as ACTIVATORS
from testing.sleeping import SOON, wait_asleep, wait_direct
from testing.system import OPERATOR_NAMESPACE, USERS_NAMESPACE, System, upgrade
from testing.waiting import eventually

from .conftest import RUN, uncaptured

MakeUser = Callable[..., str]
STRANGERS = f"strangers-{RUN}"
MONITORING = f"monitoring-{RUN}"
OUTSIDER = "outsider"
OPERATORS = "app.kubernetes.io/name=userrealtime-operator"
PYTHON = "/app/venv/bin/python"
WAKE_LIMIT_S = 45
"""Longer than the 30 s that the activator waits for a pod."""

OUTSIDERS = """
apiVersion: v1
kind: Namespace
metadata:
  name: {namespace}
  labels: {{pod-security.kubernetes.io/enforce: restricted}}
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 1
  securityContext: {{runAsNonRoot: true, seccompProfile: {{type: RuntimeDefault}}}}
  containers:
    - name: python
      image: {image}
      imagePullPolicy: IfNotPresent
      command: [{python}, -c, {listening}]
      resources: {{limits: {{memory: 64Mi}}}}
      securityContext: {{allowPrivilegeEscalation: false, capabilities: {{drop: [ALL]}}}}
"""
# with the ports that a relay may reach on other hosts: the database's and the activator's
LISTENING = """
import signal, socket
held = [socket.create_server(("", port)) for port in (5432, 8081)]
signal.pause()
"""
REACHED = """
import concurrent.futures, json, socket, sys
places = json.loads(sys.argv[1])
def reached(place):
    try:
        socket.create_connection(place, timeout=2).close()
    except OSError:
        return False
    return True
with concurrent.futures.ThreadPoolExecutor(len(places)) as pool:
    print(json.dumps(list(pool.map(reached, map(tuple, places)))))
"""

Place = tuple[str, int]
NOT_OURS = {
    "DNS",
    "the database",
    "the API server",
    "the ingress",
    "a stranger, on the database's port",
    "a stranger, on the activator's port",
}
"""The destinations that no policy of the chart mentions."""


@dataclass(frozen=True)
class Pod:
    namespace: str
    name: str
    address: str


@dataclass(frozen=True)
class Scene:
    """The pods of the tests, and their possible destinations by name: a host or an address, and a port."""

    system: System
    alice: Pod
    operator: Pod
    activator: Pod
    stranger: Pod
    monitor: Pod
    places: Mapping[str, Place]

    def reached(self, origin: Pod) -> set[str]:
        """Return the destinations, except its own ports, to which a pod can connect within 2 s."""
        asked = {name: place for name, place in self.places.items() if place[0] != origin.address}
        command = ("exec", origin.name, "--", PYTHON, "-c", REACHED, json.dumps(list(asked.values())))
        answers = json.loads(self.system.cluster.kubectl("-n", origin.namespace, *command))
        return {name for name, answer in zip(asked, answers, strict=True) if answer}

    def others(self, origin: Pod) -> set[str]:
        """Return all destinations except the pod's own ports."""
        return {name for name, place in self.places.items() if place[0] != origin.address}


@pytest.fixture(scope="module")
def outsiders(system: System) -> Iterator[tuple[Pod, Pod]]:
    """A foreign pod and a monitoring pod. Each has its rights from its namespace."""
    image = system.values["relay"]["image"]
    settings = {
        "name": OUTSIDER,
        "image": f"{image['repository']}:{image['tag']}",
        "python": PYTHON,
        "listening": json.dumps(LISTENING),
    }
    try:
        for namespace in (STRANGERS, MONITORING):
            system.cluster.apply(OUTSIDERS.format(namespace=namespace, **settings))
        for namespace in (STRANGERS, MONITORING):
            ready = ("--for=condition=Ready", f"pod/{OUTSIDER}", WITHIN)
            system.cluster.kubectl("-n", namespace, "wait", *ready)
        yield one_pod(system, STRANGERS), one_pod(system, MONITORING)
    finally:
        names = (STRANGERS, MONITORING)
        system.cluster.kubectl("delete", "namespace", *names, "--ignore-not-found", WITHIN)


@pytest.fixture(scope="module")
def enforced(system: System, pytestconfig: pytest.Config) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(system.cluster.enforcing_policies())
        except UnknownError as unknown:
            # Print it once now, because pytest prints the reasons only at the end.
            with uncaptured(pytestconfig):
                print(f"\nthe NetworkPolicies are not tested: {unknown}", flush=True)
            pytest.skip(str(unknown))
        yield


@pytest.fixture(scope="module")
def scene(enforced: None, system: System, outsiders: tuple[Pod, Pod]) -> Iterator[Scene]:
    """Enforced policies with the platform's settings; every connection worked without them."""
    names = [f"policed-{RUN}-{label}" for label in ("alice", "bob")]
    with contextlib.ExitStack() as stack:
        stack.callback(upgrade, system, system.values)
        for name in names:
            stack.callback(system.delete_user, name)
            system.apply_user(name)
        for name in names:
            system.wait_ready(name)
            system.wait_reachable(name)
        alice, bob = (one_pod(system, USERS_NAMESPACE, instance(system, name)) for name in names)
        operator = one_pod(system, OPERATOR_NAMESPACE, OPERATORS)
        activator = one_pod(system, OPERATOR_NAMESPACE, ACTIVATORS)
        stranger, monitor = outsiders
        found = Scene(
            system,
            alice,
            operator,
            activator,
            stranger,
            monitor,
            {
                "DNS": ("kube-dns.kube-system.svc.cluster.local.", 53),
                "the database": (f"postgres.{postgres.NAMESPACE}.svc.cluster.local.", postgres.PORT),
                "the API server": ("kubernetes.default.svc.cluster.local.", 443),
                "the ingress": (one_pod(system, addons.GATEWAY["namespace"]).address, 8000),
                "alice's clients' port": (alice.address, 8080),
                "alice's metrics": (alice.address, 3000),
                "bob's clients' port": (bob.address, 8080),
                "bob's metrics": (bob.address, 3000),
                "the operator's metrics": (operator.address, 3000),
                "the activator's clients' port": (activator.address, 8080),
                "the activator's metrics": (activator.address, 3000),
                "the activator's announcements": (activator.address, 8081),
                "a stranger, on the database's port": (stranger.address, 5432),
                "a stranger, on the activator's port": (stranger.address, 8081),
            },
        )
        upgrade(system, {**system.values, "networkPolicy": {"enabled": False}})
        for origin in (alice, operator, activator, stranger, monitor):
            eventually(reaches(found, origin, found.others(origin)), f"{origin} reaches all of {found.others(origin)}")
        upgrade(system, {**system.values, "networkPolicy": told(system)})
        eventually(reaches(found, stranger, NOT_OURS & found.others(stranger)), "it is enforced")
        yield found


def told(system: System) -> dict[str, Any]:
    """Return the values of `networkPolicy` for a platform that lists its known peers."""
    [slice_] = json.loads(
        system.cluster.kubectl(
            *("-n", "default", "get", "endpointslices", "-l", "kubernetes.io/service-name=kubernetes", "-o", "json")
        )
    )["items"]
    servers = [address for endpoint in slice_["endpoints"] for address in endpoint["addresses"]]
    return {
        "ingressFrom": [of_namespace(addons.GATEWAY["namespace"])],
        "monitoringFrom": [of_namespace(MONITORING)],
        "database": {"cidrs": [f"{one_pod(system, postgres.NAMESPACE).address}/32"], "port": postgres.PORT},
        "apiServer": {"cidrs": [f"{address}/32" for address in servers], "port": slice_["ports"][0]["port"]},
    }


def of_namespace(name: str) -> dict[str, Any]:
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}


def instance(system: System, user: str) -> str:
    return f"app.kubernetes.io/instance={system.get('urt', user)['status']['name']}"


def one_pod(system: System, namespace: str, selector: str = "") -> Pod:
    """Return a pod that exists and is not terminating."""
    answer = system.cluster.kubectl("-n", namespace, "get", "pods", "-l", selector, "-o", "json")
    pods = [pod for pod in json.loads(answer)["items"] if "deletionTimestamp" not in pod["metadata"]]
    return Pod(namespace, pods[0]["metadata"]["name"], pods[0]["status"]["podIP"])


def reaches(scene: Scene, origin: Pod, places: set[str]) -> Callable[[], bool]:
    return lambda: scene.reached(origin) == places


def test_a_relay_reaches_dns_its_database_and_the_activators_ear(scene: Scene) -> None:
    reached = scene.reached(scene.alice) - {"the API server"}  # the next test covers this
    assert reached == {"DNS", "the database", "the activator's announcements"}


def test_a_relay_does_not_reach_the_api_server(scene: Scene) -> None:
    if scene.system.cluster.name == "kind":
        # https://github.com/kubernetes-sigs/kube-network-policies/issues/283
        pytest.skip(
            "kind's network plugin lets pods reach their own node, whatever policies say, and the API server is there"
        )
    assert "the API server" not in scene.reached(scene.alice)


def test_an_operator_reaches_dns_its_database_and_the_api_server(scene: Scene) -> None:
    assert scene.reached(scene.operator) == {"DNS", "the database", "the API server"}


def test_an_activator_reaches_dns_relays_and_the_api_server(scene: Scene) -> None:
    reached = scene.reached(scene.activator)
    # The database is for parked users (activator.database).
    assert reached == {"DNS", "the database", "the API server", "alice's clients' port", "bob's clients' port"}


def test_a_strangers_pod_reaches_nothing_of_ours(scene: Scene) -> None:
    assert scene.reached(scene.stranger) == NOT_OURS & scene.others(scene.stranger)


def test_monitoring_reads_metrics_and_is_no_client(scene: Scene) -> None:
    metrics = {"alice's metrics", "bob's metrics", "the operator's metrics", "the activator's metrics"}
    assert scene.reached(scene.monitor) == NOT_OURS | metrics


async def test_a_client_is_served_through_the_ingress(
    scene: Scene, users: MakeUser, database: asyncpg.Connection
) -> None:
    """The user is created under the policies: its pod must reach the database to become Ready."""
    user = await asyncio.to_thread(users, "served")
    url = await asyncio.to_thread(scene.system.websocket_url, user)
    token = await asyncio.to_thread(scene.system.token, user)
    async with ResumingClient(url, token) as client:
        for number in range(20):
            await database.execute(
                "select userrealtime.publish($1, 'policed', jsonb_build_object('n', $2::int))", user, number
            )
            await asyncio.sleep(0.1)
        await client.wait_for_events(20)
    assert client.ids == list(range(1, 21))
    assert client.connections == 1


async def test_a_sleeping_user_is_woken_through_the_activator(
    scene: Scene, users: MakeUser, database: asyncpg.Connection
) -> None:
    system = scene.system
    user = await asyncio.to_thread(lambda: users("policed-sleeper", idle=SOON))
    await asyncio.to_thread(wait_asleep, system, user)
    await database.execute("select userrealtime.publish($1, 'asleep')", user)
    url = await asyncio.to_thread(system.websocket_url, user)
    token = await asyncio.to_thread(system.token, user)
    async with await open_connection(url, token, last_event_id=0, open_timeout=WAKE_LIMIT_S) as connection:
        assert (await receive(connection, WAKE_LIMIT_S))["type"] == "connected"
        assert (await receive(connection))["event"] == "asleep"
        await asyncio.to_thread(wait_direct, system, user)
