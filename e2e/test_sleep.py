"""Users fall asleep and are woken, on the cluster: the operator's side, by what becomes of their objects."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest

from .client import ResumingClient
from .system import OPERATOR_NAMESPACE, System, upgrade
from .test_status import closed_database
from .waiting import eventually

MakeUser = Callable[..., str]
# The operator looks every 15 s, and waits 2 s before a pod goes.
SLEEPY = {"after": "2s"}
LONG_ENOUGH_S = 25.0
ACTIVATOR = "userrealtime-activator"


def stand_in(image: str) -> str:
    """Two pods that are ready, behind a Service that is called like the activator's."""
    labels = {"app.kubernetes.io/name": ACTIVATOR}
    metadata = {"name": ACTIVATOR, "namespace": OPERATOR_NAMESPACE}
    container = {
        "name": "activator",
        "image": image,
        "command": ["python", "-m", "http.server", "8080", "--directory", "/tmp"],  # noqa: S108
        "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    pod = {
        "containers": [container],
        "terminationGracePeriodSeconds": 0,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {"selector": labels, "ports": [{"name": "ws", "port": 8080}]},
    }
    return "\n---\n".join(json.dumps(item) for item in (deployment, service))


@pytest.fixture(scope="module")
def sleepy(system: System) -> Iterator[System]:
    """The system with an activator, and nobody asleep who does not ask for it."""
    image = system.values["operator"]["image"]
    objects = stand_in(f"{image['repository']}:{image['tag']}")
    upgrade(system, {**system.values, "idle": {"after": "1h"}, "activator": {"enabled": True}})
    try:
        system.cluster.apply(objects)
        system.cluster.kubectl(
            *("-n", OPERATOR_NAMESPACE, "rollout", "status", f"deployment/{ACTIVATOR}", "--timeout=90s"), timeout=100
        )
        yield system
    finally:
        system.cluster.kubectl("delete", "--ignore-not-found", "--wait=false", "-f", "-", input=objects)
        upgrade(system, system.values)


def condition(system: System, name: str, kind: str) -> tuple[str, str]:
    """Status and reason."""
    conditions = system.get("urt", name).get("status", {}).get("conditions", [])
    return next(((each["status"], each["reason"]) for each in conditions if each["type"] == kind), ("", ""))


def child(system: System, name: str) -> str:
    found: str = system.get("urt", name)["status"]["name"]
    return found


def pods(system: System, name: str) -> list[str]:
    found = system.kubectl("get", "pods", "-l", f"app.kubernetes.io/instance={child(system, name)}", "-o", "name")
    return found.split()


def slices(system: System, name: str) -> list[Any]:
    """The user's slices that lead to activators."""
    selector = f"kubernetes.io/service-name={child(system, name)}"
    ours = "endpointslice.kubernetes.io/managed-by=userrealtime-operator"
    found: list[Any] = json.loads(system.kubectl("get", "endpointslices", "-l", f"{selector},{ours}", "-o", "json"))[
        "items"
    ]
    return found


def wait_asleep(system: System, name: str) -> None:
    eventually(lambda: condition(system, name, "Asleep") == ("True", "Idle"), f"{name} sleeps")


def replicas(system: System, name: str) -> int:
    found: int = system.get("deployment", child(system, name))["spec"]["replicas"]
    return found


def ask(system: System, name: str) -> None:
    """A wake request, as the activator makes it."""
    now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    patch = json.dumps({"status": {"wakeRequestedAt": now}})
    system.kubectl("patch", "urt", name, "--subresource=status", "--type=merge", "-p", patch)


def restart_operator(system: System) -> None:
    operator = ("-n", OPERATOR_NAMESPACE)
    system.cluster.kubectl(*operator, "rollout", "restart", "deployment/userrealtime")
    system.cluster.kubectl(*operator, "rollout", "status", "deployment/userrealtime", "--timeout=120s", timeout=130)


def test_an_idle_user_sleeps_and_wakes_on_request(sleepy: System, users: MakeUser) -> None:
    name = users("sleeper", idle=SLEEPY)
    wait_asleep(sleepy, name)
    assert replicas(sleepy, name) == 0
    eventually(lambda: pods(sleepy, name) == [], "the pod is gone")
    [found] = slices(sleepy, name)
    activators = sleepy.cluster.kubectl(
        *("-n", OPERATOR_NAMESPACE, "get", "pods", "-l", f"app.kubernetes.io/name={ACTIVATOR}"),
        *("-o", "jsonpath={.items[*].status.podIP}"),
    )
    assert sorted(each["addresses"][0] for each in found["endpoints"]) == sorted(activators.split())
    assert condition(sleepy, name, "Ready") == ("True", "Asleep")
    assert "asleepSince" in sleepy.get("urt", name)["status"]
    sleepy.kubectl("wait", "--for=condition=Ready", f"urt/{name}", "--timeout=5s")

    ask(sleepy, name)
    eventually(lambda: condition(sleepy, name, "Ready") == ("True", "PodAvailable"), f"{name} is awake")
    assert condition(sleepy, name, "Asleep") == ("False", "WakeRequested")
    eventually(lambda: slices(sleepy, name) == [], "the slice is gone")
    status = sleepy.get("urt", name)["status"]
    assert "wakeRequestedAt" in status
    assert "asleepSince" not in status
    described = sleepy.kubectl("describe", "urt", name)
    assert "Slept" in described
    assert "Woken" in described
    # And again, though the old request is still there.
    wait_asleep(sleepy, name)


async def test_a_connected_client_keeps_the_user_awake_and_sleep_loses_nothing(
    sleepy: System, users: MakeUser, database: asyncpg.Connection
) -> None:
    name = await asyncio.to_thread(users, "connected", idle=SLEEPY)
    url, token = sleepy.websocket_url(name), sleepy.token(name)
    async with ResumingClient(url, token) as client:
        await database.execute("select userrealtime.publish($1, 'before')", name)
        await client.wait_for_events(1)
        await asyncio.sleep(LONG_ENOUGH_S)
        assert client.connections == 1
        assert await asyncio.to_thread(condition, sleepy, name, "Asleep") == ("False", "Awake")
    await asyncio.to_thread(wait_asleep, sleepy, name)
    await database.execute("select userrealtime.publish($1, 'meanwhile')", name)
    await asyncio.to_thread(ask, sleepy, name)
    await asyncio.to_thread(eventually, lambda: slices(sleepy, name) == [], "the pod serves alone")
    await asyncio.to_thread(sleepy.wait_reachable, name)
    async with ResumingClient(url, token) as client:
        await database.execute("select userrealtime.publish($1, 'after')", name)
        await client.wait_for_events(1)
        assert client.ids == [3]


def test_what_happens_to_a_sleeping_user_does_not_wake_them(sleepy: System, users: MakeUser) -> None:
    name = users("undisturbed", idle=SLEEPY)
    wait_asleep(sleepy, name)
    eventually(lambda: pods(sleepy, name) == [], "the pod is gone")
    since = sleepy.get("urt", name)["status"]["asleepSince"]

    def versions() -> list[str]:
        found = [sleepy.get("deployment", child(sleepy, name)), sleepy.get("urt", name), *slices(sleepy, name)]
        return [item["metadata"]["resourceVersion"] for item in found]

    before = versions()
    restart_operator(sleepy)
    time.sleep(5)  # for what the new one might do
    assert versions() == before

    sleepy.apply_user(name, idle=SLEEPY, limits={"connections": 7})

    def limited() -> bool:
        template = sleepy.get("deployment", child(sleepy, name))["spec"]["template"]
        return {"name": "MAX_CONNECTIONS", "value": "7"} in template["spec"]["containers"][0]["env"]

    eventually(limited, "the new limit")
    sleepy.kubectl("delete", "endpointslice", f"{child(sleepy, name)}-activator")
    eventually(lambda: len(slices(sleepy, name)) == 1, "the slice is back")
    assert replicas(sleepy, name) == 0
    assert pods(sleepy, name) == []
    eventually(lambda: sleepy.get("urt", name)["status"]["observedGeneration"] == 2, "the status is about the new spec")
    assert sleepy.get("urt", name)["status"]["asleepSince"] == since

    sleepy.apply_user(name, idle={**SLEEPY, "warm": True})
    eventually(lambda: condition(sleepy, name, "Ready") == ("True", "PodAvailable"), "who is warm is awake")
    assert condition(sleepy, name, "Asleep") == ("False", "NeverSleeps")


async def test_a_database_that_is_away_puts_nobody_to_sleep(sleepy: System, users: MakeUser, database_url: str) -> None:
    name = await asyncio.to_thread(users, "unknown", idle={"after": "1h"})
    async with closed_database(database_url):
        await asyncio.to_thread(sleepy.apply_user, name, idle=SLEEPY)
        await asyncio.sleep(LONG_ENOUGH_S)
        assert await asyncio.to_thread(replicas, sleepy, name) == 1
        assert await asyncio.to_thread(slices, sleepy, name) == []
    await asyncio.to_thread(wait_asleep, sleepy, name)


def test_nobody_sleeps_whom_no_activator_would_wake(sleepy: System, users: MakeUser) -> None:
    name = users("abandoned", idle=SLEEPY)
    wait_asleep(sleepy, name)

    def scale(count: int) -> None:
        sleepy.cluster.kubectl("-n", OPERATOR_NAMESPACE, "scale", "deployment", ACTIVATOR, f"--replicas={count}")

    scale(0)
    try:
        eventually(lambda: condition(sleepy, name, "Ready") == ("True", "PodAvailable"), "the user is woken")
        assert condition(sleepy, name, "Asleep") == ("False", "ActivatorUnavailable")
        eventually(lambda: slices(sleepy, name) == [], "no connection goes to activators")
    finally:
        scale(2)
    wait_asleep(sleepy, name)
    eventually(lambda: len(slices(sleepy, name)[0]["endpoints"]) == 2, "both activators")
