"""Users fall asleep and wake on the cluster: the changes that the operator makes to their objects."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest

from testing.client import ResumingClient
from testing.patience import PATIENCE_S, WITHIN
from testing.sleeping import SOON as SLEEPY
from testing.sleeping import slices
from testing.system import OPERATOR_NAMESPACE, System
from testing.waiting import eventually
from userrealtime_client import Client, Event

from .test_status import closed_database

MakeUser = Callable[..., str]
# The operator checks every 15 s, and waits 2 s before it stops a pod.
LONG_ENOUGH_S = 25.0
ACTIVATOR = "userrealtime-activator"


def condition(system: System, name: str, kind: str) -> tuple[str, str]:
    """Return the status and the reason of a condition."""
    conditions = system.get("urt", name).get("status", {}).get("conditions", [])
    return next(((each["status"], each["reason"]) for each in conditions if each["type"] == kind), ("", ""))


def child(system: System, name: str) -> str:
    found: str = system.get("urt", name)["status"]["name"]
    return found


def pods(system: System, name: str) -> list[str]:
    found = system.kubectl("get", "pods", "-l", f"app.kubernetes.io/instance={child(system, name)}", "-o", "name")
    return found.split()


def wait_asleep(system: System, name: str) -> None:
    eventually(lambda: condition(system, name, "Asleep") == ("True", "Idle"), f"{name} sleeps")


def replicas(system: System, name: str) -> int:
    found: int = system.get("deployment", child(system, name))["spec"]["replicas"]
    return found


def ask(system: System, name: str) -> None:
    """Write a wake request, as the activator does."""
    now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    patch = json.dumps({"status": {"wakeRequestedAt": now}})
    system.kubectl("patch", "urt", name, "--subresource=status", "--type=merge", "-p", patch)


def restart_operator(system: System) -> None:
    operator = ("-n", OPERATOR_NAMESPACE)
    system.cluster.kubectl(*operator, "rollout", "restart", "deployment/userrealtime")
    system.cluster.kubectl(*operator, "rollout", "status", "deployment/userrealtime", WITHIN)


@pytest.mark.usefixtures("sleepers")  # which fall asleep meanwhile
async def test_a_client_keeps_its_user_awake_and_sleep_loses_no_event(
    system: System, users: MakeUser, database: asyncpg.Connection
) -> None:
    name = await asyncio.to_thread(users, "connected", idle=SLEEPY)
    url, token = system.websocket_url(name), system.token(name)
    async with ResumingClient(url, token) as client:
        await database.execute("select userrealtime.publish($1, 'before')", name)
        await client.wait_for_events(1)
        await asyncio.sleep(LONG_ENOUGH_S)
        assert client.connections == 1
        assert await asyncio.to_thread(condition, system, name, "Asleep") == ("False", "Awake")
    await asyncio.to_thread(wait_asleep, system, name)
    await database.execute("select userrealtime.publish($1, 'meanwhile')", name)
    await asyncio.to_thread(ask, system, name)
    await asyncio.to_thread(eventually, lambda: slices(system, name) == [], "the pod serves alone")
    await asyncio.to_thread(system.wait_reachable, name)
    async with ResumingClient(url, token) as client:
        await database.execute("select userrealtime.publish($1, 'after')", name)
        await client.wait_for_events(1)
        assert client.ids == [3]


async def test_a_quiet_client_is_parked_and_continues_with_the_next_event(
    system: System, users: MakeUser, database: asyncpg.Connection
) -> None:
    name = await asyncio.to_thread(users, "quiet", idle={"parkAfter": "30s"})

    async def token() -> str:
        return system.token(name)

    async with Client(system.get("urt", name)["status"]["url"], token=token) as client:
        # A client without a position begins with the next event.
        await until_async(lambda: asyncio.sleep(0, client.state), lambda found: found == "connected")
        await database.execute("select userrealtime.publish($1, 'before')", name)
        async with asyncio.timeout(PATIENCE_S):
            first = await anext(client)
        assert isinstance(first, Event)
        assert first.id == 1
        # The relay reports a silence only after a minute.
        quiet = "update userrealtime.presence set active_at = now() - interval '1 hour' where user_id = $1"
        await database.execute(quiet, name)
        await asyncio.to_thread(eventually, lambda: state(system, name) == "Parked", f"{name} is parked")
        assert await asyncio.to_thread(condition, system, name, "Ready") == ("True", "Parked")
        await asyncio.to_thread(eventually, lambda: pods(system, name) == [], "the pod is gone")
        online = "select clients, parked from userrealtime.online where user_id = $1"
        await until_async(lambda: database.fetchrow(online, name), lambda row: row is not None and tuple(row) == (1, 1))
        await until_async(lambda: asyncio.sleep(0, client.state), lambda found: found == "connected")
        assert await asyncio.to_thread(state, system, name) == "Parked"
        await database.execute("select userrealtime.publish($1, 'after')", name)
        async with asyncio.timeout(PATIENCE_S):
            event = await anext(client)
        assert isinstance(event, Event)
        assert event.id == 2
        assert await asyncio.to_thread(condition, system, name, "Asleep") == ("False", "WakeRequested")


async def until_async(read: Callable[[], Awaitable[Any]], accept: Callable[[Any], bool]) -> None:
    """Wait until a value is accepted."""
    async with asyncio.timeout(PATIENCE_S):
        while not accept(await read()):
            await asyncio.sleep(0.2)


def state(system: System, name: str) -> str:
    found: str = system.get("urt", name).get("status", {}).get("state", "")
    return found


def test_an_idle_user_sleeps_and_wakes_on_request(system: System, sleeper: str) -> None:
    name = sleeper
    assert condition(system, name, "Asleep") == ("True", "Idle")
    assert replicas(system, name) == 0
    eventually(lambda: pods(system, name) == [], "the pod is gone")
    [found] = slices(system, name)
    activators = system.cluster.kubectl(
        *("-n", OPERATOR_NAMESPACE, "get", "pods", "-l", f"app.kubernetes.io/name={ACTIVATOR}"),
        *("-o", "jsonpath={.items[*].status.podIP}"),
    )
    assert sorted(each["addresses"][0] for each in found["endpoints"]) == sorted(activators.split())
    assert condition(system, name, "Ready") == ("True", "Asleep")
    assert "asleepSince" in system.get("urt", name)["status"]
    system.kubectl("wait", "--for=condition=Ready", f"urt/{name}", "--timeout=5s")

    ask(system, name)
    eventually(lambda: condition(system, name, "Ready") == ("True", "PodAvailable"), f"{name} is awake")
    assert condition(system, name, "Asleep") == ("False", "WakeRequested")
    eventually(lambda: slices(system, name) == [], "the slice is gone")
    status = system.get("urt", name)["status"]
    assert "wakeRequestedAt" in status
    assert "asleepSince" not in status
    described = system.kubectl("describe", "urt", name)
    assert "Slept" in described
    assert "Woken" in described
    # The user sleeps again, although the old request still exists.
    wait_asleep(system, name)
    # The removal of a sleeping user leaves no object.
    left = ("get", "deployments,services,endpointslices,secrets", "-o", "name", "-l")
    selector = f"app.kubernetes.io/instance={child(system, name)}"
    assert "endpointslice" in system.kubectl(*left, selector)
    system.delete_user(name)
    eventually(lambda: system.kubectl(*left, selector) == "", "all objects are gone")


def test_what_happens_to_a_sleeping_user_does_not_wake_them(system: System, sleeper: str) -> None:
    name = sleeper
    since = system.get("urt", name)["status"]["asleepSince"]

    def versions() -> list[str]:
        found = [system.get("deployment", child(system, name)), system.get("urt", name), *slices(system, name)]
        return [item["metadata"]["resourceVersion"] for item in found]

    before = versions()
    restart_operator(system)
    time.sleep(5)  # for what the new one might do
    assert versions() == before

    system.apply_user(name, idle=SLEEPY, limits={"connections": 7})

    def limited() -> bool:
        template = system.get("deployment", child(system, name))["spec"]["template"]
        return {"name": "MAX_CONNECTIONS", "value": "7"} in template["spec"]["containers"][0]["env"]

    eventually(limited, "the new limit")
    system.kubectl("delete", "endpointslice", f"{child(system, name)}-activator")
    eventually(lambda: len(slices(system, name)) == 1, "the slice is back")
    assert replicas(system, name) == 0
    assert pods(system, name) == []
    eventually(lambda: system.get("urt", name)["status"]["observedGeneration"] == 2, "the status is about the new spec")
    assert system.get("urt", name)["status"]["asleepSince"] == since

    system.apply_user(name, idle={**SLEEPY, "warm": True})
    eventually(lambda: condition(system, name, "Ready") == ("True", "PodAvailable"), "a warm user is awake")
    assert condition(system, name, "Asleep") == ("False", "NeverSleeps")


async def test_a_database_that_is_away_puts_nobody_to_sleep(system: System, users: MakeUser, database_url: str) -> None:
    name = await asyncio.to_thread(users, "unknown", idle={"after": "1h"})
    async with closed_database(database_url):
        await asyncio.to_thread(system.apply_user, name, idle=SLEEPY)
        await asyncio.sleep(LONG_ENOUGH_S)
        assert await asyncio.to_thread(replicas, system, name) == 1
        assert await asyncio.to_thread(slices, system, name) == []
    await asyncio.to_thread(wait_asleep, system, name)


def test_nobody_sleeps_whom_no_activator_would_wake(system: System, sleeper: str) -> None:
    name = sleeper

    def scale(count: int) -> None:
        system.cluster.kubectl("-n", OPERATOR_NAMESPACE, "scale", "deployment", ACTIVATOR, f"--replicas={count}")

    scale(0)
    try:
        eventually(lambda: condition(system, name, "Ready") == ("True", "PodAvailable"), "the user is woken")
        assert condition(system, name, "Asleep") == ("False", "ActivatorUnavailable")
        eventually(lambda: slices(system, name) == [], "no connection goes to activators")
    finally:
        scale(2)
    wait_asleep(system, name)
    eventually(lambda: len(slices(system, name)[0]["endpoints"]) == 2, "both activators")
