"""Falling asleep, sleeping and waking of users that are reconciled with a fake API server and a fake database."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import random
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from testing.operator.fixture import ReconcilerFixture
from testing.operator.names import OPAQUE, child_name
from testing.operator.samples import CONFIG, body
from userrealtime_core.relay_settings import PROTOCOLS
from userrealtime_operator.config import Activator, Config, IdleDefaults
from userrealtime_operator.kube.client import ApiError
from userrealtime_operator.kube.types import NamespacedName, Object, ObjectKey
from userrealtime_operator.model.naming import child_of
from userrealtime_operator.model.presence import Presence
from userrealtime_operator.postgres.database import DatabaseError
from userrealtime_operator.sleep.activator_endpoints import GRACE_S, Activators
from userrealtime_operator.sleep.controller import PARKED_S
from userrealtime_operator.sleep.machine import SETTLE_S
from userrealtime_operator.sleep.state import SINCE, asleep, has_ready

ALICE = child_name("alice")
DEPLOYMENT = ObjectKey("Deployment", "users", ALICE)
SLICE = ObjectKey("EndpointSlice", "users", f"{ALICE}-activator")
AFTER_S = 60
PARK_AFTER_S = 300
HASTY = replace(CONFIG, idle=IdleDefaults(3), activator=Activator("system", "waker", 8080))
SLEEPY = replace(CONFIG, idle=IdleDefaults(AFTER_S), activator=Activator("system", "waker", 8080))


def endpoints(*addresses: str) -> Object:
    return {
        "metadata": {"labels": {}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [each], "conditions": {"ready": True}} for each in addresses],
    }


PARKING = replace(
    CONFIG, idle=IdleDefaults(AFTER_S, PARK_AFTER_S), activator=Activator("system", "waker", 8080, parking=True)
)


class SleepFixture(ReconcilerFixture):
    """A fixture in which users may sleep. `self.time` and `self.database.time` are one clock, `self.clock` another."""

    def __init__(self) -> None:
        super().__init__()
        self.activators = Activators(
            self.api, Activator("system", "waker", 8080), lambda: self.changes.append(1), lambda: self.clock
        )
        self.changes: list[int] = []
        self.restart(SLEEPY)

    async def ready(self, *addresses: str) -> None:
        """Make these activators ready, and let the operator read their endpoints."""
        assert self.activators is not None
        self.api.slices["waker"] = [endpoints(*addresses)]
        await self.activators.refresh()

    def say(self, name: str = "alice", clients: int = 0, since_s: float = 100, heard_s: float = 1) -> None:
        """Report the number of clients of a user's pod."""
        now = self.time.timestamp()
        self.database.time = now
        self.database.said[name] = [Presence(f"{name}-pod", clients, now - since_s, now - heard_s)]

    def converse(self, quiet_s: float = 0.0, name: str = "alice") -> None:
        """Report a client of a user's pod that had traffic so many seconds ago."""
        now = self.time.timestamp()
        self.database.time = now
        self.database.said[name] = [Presence(f"{name}-pod", 1, now - 1000, now, now - quiet_s)]

    def keep(self, clients: int = 1, name: str = "alice") -> None:
        """Report clients that an activator keeps."""
        now = self.time.timestamp()
        self.database.time = now
        self.database.said[name] = [Presence("waker-1", clients, now, now, parked=True)] if clients else []

    async def park(self) -> None:
        """Park alice."""
        self.restart(PARKING)
        self.converse(PARK_AFTER_S)
        await self.fall_asleep()
        assert self.state == "Parked"

    @property
    def state(self) -> str:
        state: str = self.api.resources["users", "alice"]["status"]["state"]
        return state

    def have_pod(self, name: str = "alice") -> None:
        """Make the user's pod ready."""
        self.become_available(name)
        self.api.slices[child_name(name)] = [endpoints("10.1.0.1")]
        self.api.living_pods = [{"metadata": {"name": f"{name}-pod", "creationTimestamp": "x"}}]

    def lose_pod(self) -> None:
        """Remove alice's pod, as the cluster does after the scale-down."""
        deployment = self.api.children[DEPLOYMENT]
        generation = deployment["metadata"]["generation"]
        available = {"type": "Available", "status": "True", "reason": "x", "message": ""}
        deployment["status"] = {"observedGeneration": generation, "conditions": [available]}
        self.api.slices[ALICE] = []
        self.api.living_pods = []
        del self.database.said["alice"]

    def pass_time(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)
        self.clock += seconds

    def ask(self, name: str = "alice") -> None:
        """Write a wake request, as the activator does."""
        status = self.api.resources["users", name].setdefault("status", {})
        status["wakeRequestedAt"] = self.time.isoformat(timespec="microseconds").replace("+00:00", "Z")

    async def look(self) -> None:
        """Check for users that seem to be idle."""
        await self.reconciler.find_idle("users", list(self.api.resources.values()))

    async def settle(self) -> None:
        """Proceed to the last check before sleep."""
        await self.look()
        await self.reconcile()  # creates the slice
        await self.reconcile()  # has read it from the cache
        self.pass_time(SETTLE_S)

    async def fall_asleep(self) -> None:
        await self.settle()
        await self.reconcile()
        self.lose_pod()
        await self.reconcile()

    @property
    def sleeping(self) -> bool:
        return asleep(self.api.children[DEPLOYMENT]) is not None

    @property
    def replicas(self) -> int:
        replicas: int = self.api.children[DEPLOYMENT]["spec"]["replicas"]
        return replicas

    @property
    def addresses(self) -> list[str] | None:
        """The addresses in alice's slice that receive her connections; None while they are on standby."""
        found = self.api.children.get(SLICE)
        return [endpoint["addresses"][0] for endpoint in found["endpoints"]] if found and has_ready(found) else None

    @property
    def standby(self) -> list[str] | None:
        """The addresses in alice's slice that receive her connections when there is no other; None without any."""
        found = self.api.children.get(SLICE)
        if found is None or has_ready(found):
            return None
        return [endpoint["addresses"][0] for endpoint in found["endpoints"]]

    def routed(self) -> tuple[list[str] | None, list[str] | None]:
        """Return `addresses` and `standby`."""
        return self.addresses, self.standby

    def crash(self) -> None:
        """End alice's pod; the Deployment replaces it."""
        deployment = self.api.children[DEPLOYMENT]
        deployment["status"] = {**deployment["status"], "availableReplicas": 0}
        self.api.slices[ALICE] = []

    def counted(self, name: str, **labels: str) -> float:
        return self.metrics.value(name, **labels)


@pytest.fixture
async def world() -> SleepFixture:
    """A fixture in which alice is awake, and has been idle for a long time."""
    world = SleepFixture()
    await world.ready("10.0.0.1", "10.0.0.2")
    await world.reconcile()
    world.have_pod()
    world.say()
    await world.reconcile()
    world.api.events.clear()
    return world


async def test_the_slice_comes_first_and_then_the_pod_goes(world: SleepFixture) -> None:
    await world.look()
    assert world.woken == ["alice"]
    assert await world.reconcile() == ["pods", "apply EndpointSlice"]
    assert world.addresses == ["10.0.0.1", "10.0.0.2"]
    assert await world.reconciler.reconcile("users", "alice") == SETTLE_S
    world.pass_time(SETTLE_S / 2)
    assert await world.reconciler.reconcile("users", "alice") == SETTLE_S / 2
    assert world.replicas == 1
    world.pass_time(SETTLE_S / 2)
    assert await world.reconcile() == ["pods", "apply Deployment", "status"]
    assert (world.replicas, world.addresses) == (0, ["10.0.0.1", "10.0.0.2"])


async def test_the_settle_time_begins_when_the_slice_is_seen(world: SleepFixture) -> None:
    await world.look()
    world.stale = copy.deepcopy(world.api.children)
    await world.reconcile()
    world.pass_time(10 * SETTLE_S)
    assert await world.reconciler.reconcile("users", "alice") == SETTLE_S
    world.stale = None
    assert await world.reconciler.reconcile("users", "alice") == SETTLE_S
    assert world.replicas == 1


async def test_a_slice_that_goes_in_the_settle_time_begins_it_anew(world: SleepFixture) -> None:
    await world.settle()
    del world.api.children[SLICE]
    assert await world.reconcile() == ["apply EndpointSlice"]
    assert await world.reconciler.reconcile("users", "alice") == SETTLE_S
    assert world.replicas == 1


async def test_a_sleeping_user_is_as_wanted_and_costs_nothing(world: SleepFixture) -> None:
    await world.fall_asleep()
    assert world.condition("Asleep")[:2] == ("True", "Idle")
    assert world.condition("Ready")[:2] == ("True", "Asleep")
    assert world.condition("Progressing")[:2] == ("False", "Asleep")
    assert world.api.resources["users", "alice"]["status"]["asleepSince"] < world.time.isoformat()
    assert world.api.events == ["Slept"]
    assert world.counted("sleeps_total") == 1
    assert await world.reconcile() == []


async def test_a_client_in_the_settle_time_wins(world: SleepFixture) -> None:
    await world.settle()
    world.say(clients=1, since_s=0)
    assert await world.reconcile() == ["pods", "apply EndpointSlice"]
    assert world.replicas == 1
    world.say(clients=1, since_s=1000)
    await world.look()
    assert await world.reconcile() == []


async def test_a_wake_request_in_the_settle_time_wins(world: SleepFixture) -> None:
    await world.look()
    await world.reconcile()
    world.ask()
    assert await world.reconcile() == ["apply EndpointSlice"]
    assert world.replicas == 1
    # It counts as use.
    world.pass_time(AFTER_S - 1)
    world.say(since_s=1000)
    world.woken.clear()
    await world.look()
    assert world.woken == []


async def test_a_wake_request_that_the_last_step_did_not_see_wakes(world: SleepFixture) -> None:
    """It arrives while the operator removes the pod."""
    await world.settle()
    await world.reconcile()
    assert world.sleeping
    world.ask()
    assert "apply Deployment" in await world.reconcile()
    assert not world.sleeping


async def test_a_wake_is_one_write_before_all_others(world: SleepFixture) -> None:
    await world.fall_asleep()
    annotations = world.api.children[DEPLOYMENT]["metadata"]["annotations"]
    world.ask()
    calls = await world.reconcile()
    assert calls == ["apply Deployment", "status"]
    assert world.replicas == 1
    assert world.api.children[DEPLOYMENT]["metadata"]["annotations"] == annotations
    assert world.addresses is not None, "who waits comes through the activator"
    assert world.condition("Asleep")[:2] == ("False", "WakeRequested")
    assert world.condition("Ready")[0] == "False"
    assert "asleepSince" not in world.api.resources["users", "alice"]["status"]
    assert world.api.events[-1] == "Woken"
    assert world.counted("wakes_total", reason="WakeRequested") == 1


async def test_a_user_that_was_woken_is_scaled_up_again(world: SleepFixture) -> None:
    """The Deployment still records the sleep that the wake request has ended."""
    await world.fall_asleep()
    world.ask()
    await world.reconcile()
    world.have_pod()
    await world.reconcile()
    world.api.children[DEPLOYMENT]["spec"]["replicas"] = 0
    assert "apply Deployment" in await world.reconcile()
    assert world.replicas == 1


async def test_a_wake_without_a_request_removes_the_record(world: SleepFixture) -> None:
    await world.fall_asleep()
    world.api.resources["users", "alice"]["spec"]["idle"] = {"after": "0s"}
    await world.reconcile()
    assert world.replicas == 1
    assert SINCE not in world.api.children[DEPLOYMENT]["metadata"]["annotations"]


async def test_the_slice_stays_until_the_pod_is_among_the_endpoints(world: SleepFixture) -> None:
    await world.fall_asleep()
    world.ask()
    await world.reconcile()
    world.become_available()
    wait = await world.reconciler.reconcile("users", "alice")
    assert wait is not None
    assert 0 < wait <= 1
    assert world.addresses is not None
    world.have_pod()
    world.pass_time(1.5)
    assert "apply EndpointSlice" in await world.reconcile()
    assert world.counted("wake_duration_seconds_sum") == pytest.approx(1.5)
    assert world.condition("Ready")[:2] == ("True", "PodAvailable")
    assert world.condition("Asleep")[:2] == ("False", "WakeRequested")
    assert await world.reconcile() == []


@pytest.mark.parametrize("spec", [{}, {"idle": {"warm": True}}, {"idle": {"after": "0s"}}], ids=["idle", "warm", "0s"])
async def test_connections_reach_the_activators_while_there_is_no_pod(
    world: SleepFixture, spec: dict[str, Any]
) -> None:
    """Regardless of `spec.idle`, and without another condition."""
    asked = body(**spec)
    asked["status"] = world.api.resources["users", "alice"]["status"]
    world.add(asked)
    await world.reconcile()
    before = world.condition("Asleep")
    assert world.routed() == (None, ["10.0.0.1", "10.0.0.2"])
    world.crash()
    assert "apply EndpointSlice" in await world.reconcile()
    assert world.routed() == (["10.0.0.1", "10.0.0.2"], None)
    assert await world.reconcile() == [], "it is a state, not a step"
    world.become_available()
    wait = await world.reconciler.reconcile("users", "alice")
    assert wait is not None
    assert world.addresses is not None, "the pod is not among the endpoints yet"
    world.have_pod()
    assert "apply EndpointSlice" in await world.reconcile()
    assert world.routed() == (None, ["10.0.0.1", "10.0.0.2"])
    assert await world.reconcile() == []
    assert world.condition("Asleep") == before


async def test_connections_to_a_new_user_reach_the_activators_before_the_pod(world: SleepFixture) -> None:
    world.add(body("bob"))
    calls = await world.reconcile("bob")
    assert calls.index("apply EndpointSlice") < calls.index("apply Deployment")
    slice_of_bob = world.api.children[ObjectKey("EndpointSlice", "users", f"{child_name('bob')}-activator")]
    assert has_ready(slice_of_bob)


async def test_a_rollout_changes_no_endpoint_of_an_activator(world: SleepFixture) -> None:
    """The old pod serves until the new one is available."""
    resource = world.api.resources["users", "alice"]
    resource["metadata"]["generation"] = 2
    resource["spec"]["limits"]["connections"] = 7
    assert "apply EndpointSlice" not in await world.reconcile()
    assert "apply EndpointSlice" not in await world.reconcile()
    assert world.standby is not None


async def test_activators_that_change_are_followed_on_standby(world: SleepFixture) -> None:
    await world.ready("10.0.0.3")
    assert await world.reconcile() == ["apply EndpointSlice"]
    assert world.standby == ["10.0.0.3"]
    await world.ready()
    assert await world.reconcile() == [], "two that restart at once are given a moment"
    world.pass_time(GRACE_S)
    await world.ready()
    assert "delete EndpointSlice" in await world.reconcile()
    await world.ready("10.0.0.4")
    assert "apply EndpointSlice" in await world.reconcile()
    assert world.standby == ["10.0.0.4"]


async def test_an_old_request_wakes_nobody(world: SleepFixture) -> None:
    world.ask()
    await world.reconcile()
    world.pass_time(1000)
    world.say(since_s=1000)
    await world.fall_asleep()
    assert await world.reconcile() == []
    assert world.sleeping


async def test_restart_resumes_interrupted_sleep(world: SleepFixture) -> None:
    await world.look()
    await world.reconcile()
    world.restart(SLEEPY)
    assert await world.reconcile() == ["apply EndpointSlice"]
    await world.fall_asleep()
    world.restart(SLEEPY)
    assert await world.reconcile() == []
    assert world.sleeping


async def test_a_wake_that_an_operator_leaves_undone_is_done_by_the_next(world: SleepFixture) -> None:
    await world.fall_asleep()
    world.ask()
    world.restart(SLEEPY)
    assert "apply Deployment" in await world.reconcile()
    assert world.replicas == 1


async def test_changes_reach_a_sleeping_user_without_waking(world: SleepFixture) -> None:
    await world.fall_asleep()
    since = asleep(world.api.children[DEPLOYMENT])
    changed = world.api.resources["users", "alice"]
    changed["metadata"]["generation"] = 2
    changed["spec"]["limits"]["connections"] = 7
    assert "apply Deployment" in await world.reconcile()
    limited = replace(SLEEPY, relay=replace(SLEEPY.relay, image="relay:2", max_concurrent_rollouts=1))
    world.restart(limited)
    assert "apply Deployment" in await world.reconcile()
    world.request("1")
    assert "replace Secret" in await world.reconcile()
    world.api.children[ObjectKey("Service", "users", ALICE)]["spec"]["selector"] = {"app": "other"}
    world.api.children[SLICE]["endpoints"] = []
    del world.api.children[DEPLOYMENT]["spec"]["template"]
    calls = await world.reconcile()
    assert {"apply Service", "apply EndpointSlice", "apply Deployment"} <= set(calls)
    container = world.api.children[DEPLOYMENT]["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "relay:2"
    assert {"name": "MAX_CONNECTIONS", "value": "7"} in container["env"]
    await world.reconciler.sweep("users")
    await world.reconcile()
    assert asleep(world.api.children[DEPLOYMENT]) == since
    assert world.condition("Asleep")[0] == "True"


async def test_neither_sleep_nor_wake_waits_for_rollouts(world: SleepFixture) -> None:
    await world.fall_asleep()
    await world.serve("bob", "carol")
    config = replace(SLEEPY, relay=replace(SLEEPY.relay, image="relay:2", max_concurrent_rollouts=1))
    world.restart(config)
    assert "apply Deployment" in await world.reconcile("bob")
    assert "apply Deployment" not in await world.reconcile("carol")
    assert world.condition("Progressing", "carol")[1] == "RolloutWaiting"
    world.ask()
    assert "apply Deployment" in await world.reconcile()
    assert world.replicas == 1
    assert "apply Deployment" not in await world.reconcile("carol"), "alice has taken nobody's turn, and gave none"


@pytest.mark.parametrize(("count", "pause_s"), [(3, 1.0), (40, 0.25)])
async def test_idle_users_are_put_to_sleep_one_after_the_other(
    world: SleepFixture, monkeypatch: pytest.MonkeyPatch, count: int, pause_s: float
) -> None:
    names = [f"user-{number}" for number in range(count)]
    for name in names:
        world.add(body(name))
        world.say(name)
    world.say(clients=1)
    planned: list[tuple[float, NamespacedName]] = []
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "call_later", lambda delay_s, _requeue, user: planned.append((delay_s, user)))
    await world.look()
    monkeypatch.undo()
    assert world.woken == names[:1]
    later = enumerate(names[1:], start=1)
    assert planned == [(number * pause_s, NamespacedName("users", name)) for number, name in later]


async def test_scaling_by_hand(world: SleepFixture) -> None:
    world.api.children[DEPLOYMENT]["spec"]["replicas"] = 0
    await world.reconcile()
    assert world.replicas == 1
    world.have_pod()
    await world.fall_asleep()
    world.api.children[DEPLOYMENT]["spec"]["replicas"] = 1
    await world.reconcile()
    assert world.replicas == 1
    assert world.condition("Asleep")[:2] == ("False", "Awake")


async def test_a_database_outage_changes_no_sleep_state(world: SleepFixture) -> None:
    await world.look()
    world.database.away = True
    await world.reconcile()
    assert world.condition("Asleep")[:2] == ("False", "DatabaseUnavailable")
    assert world.addresses is None
    world.database.away = False
    await world.settle()
    world.database.away = True
    await world.reconcile()
    assert (world.replicas, world.addresses) == (1, None)
    world.database.away = False
    await world.fall_asleep()
    world.database.away = True
    assert await world.reconcile() == []
    world.ask()
    await world.reconcile()
    assert world.replicas == 1


@pytest.mark.parametrize(
    ("spec", "config"),
    [
        ({"idle": {"warm": True}}, SLEEPY),
        ({"idle": {"after": "0s", "warm": False}}, SLEEPY),
        ({}, replace(SLEEPY, idle=IdleDefaults(0))),
    ],
)
async def test_whoever_is_not_to_sleep_is_awake(world: SleepFixture, spec: dict[str, Any], config: Config) -> None:
    await world.fall_asleep()
    asked = body(**spec)
    asked["status"] = world.api.resources["users", "alice"]["status"]
    world.add(asked)
    world.restart(config)
    await world.reconcile()
    assert world.replicas == 1
    assert world.condition("Asleep")[:2] == ("False", "NeverSleeps")
    world.have_pod()
    world.say()
    assert "apply EndpointSlice" in await world.reconcile()
    world.woken.clear()
    await world.look()
    assert world.woken == []


async def test_a_user_with_protocols_of_other_systems_sleeps(world: SleepFixture) -> None:
    world.restart(replace(SLEEPY, relay=replace(SLEEPY.relay, protocols=PROTOCOLS)))
    await world.fall_asleep()


async def test_without_an_activator_in_the_configuration_all_are_woken(world: SleepFixture) -> None:
    await world.fall_asleep()
    world.activators = None
    world.restart(CONFIG)
    await world.reconcile()
    assert world.replicas == 1
    assert world.condition("Asleep")[:2] == ("False", "NeverSleeps")
    world.have_pod()
    assert "delete EndpointSlice" in await world.reconcile()
    await world.look()
    assert world.woken == ["alice"], "that is from before"


async def test_a_duration_of_their_own(world: SleepFixture) -> None:
    world.api.resources["users", "alice"]["spec"]["idle"] = {"after": "2m"}
    await world.look()
    assert world.woken == []
    world.say(since_s=121)
    await world.look()
    assert world.woken == ["alice"]


async def test_activators_that_change_are_followed(world: SleepFixture) -> None:
    await world.fall_asleep()
    world.changes.clear()
    await world.ready("10.0.0.3")
    assert len(world.changes) == 1
    assert await world.reconcile() == ["apply EndpointSlice"]
    assert world.addresses == ["10.0.0.3"]
    await world.ready("10.0.0.3")
    assert len(world.changes) == 1


async def test_without_a_ready_activator_all_users_are_awake(world: SleepFixture) -> None:
    await world.fall_asleep()
    await world.ready()
    assert await world.reconcile() == [], "two that restart at once are given a moment"
    assert world.addresses == ["10.0.0.1", "10.0.0.2"]
    world.pass_time(GRACE_S)
    world.changes.clear()
    await world.ready()
    assert len(world.changes) == 1
    await world.reconcile()
    assert world.replicas == 1
    assert world.condition("Asleep")[:2] == ("False", "ActivatorUnavailable")
    world.have_pod()
    world.say()
    assert "delete EndpointSlice" in await world.reconcile()
    world.woken.clear()
    await world.look()
    assert world.woken == []
    await world.ready("10.0.0.1")
    await world.reconcile()
    assert world.condition("Asleep")[:2] == ("False", "Awake")
    await world.fall_asleep()
    assert world.sleeping


async def test_lost_activators_cancel_falling_asleep(world: SleepFixture) -> None:
    await world.settle()
    await world.ready()
    await world.reconcile()
    assert (world.replicas, world.addresses) == (1, None)


async def test_what_cannot_be_read_of_the_activators_stays_as_it_was(
    world: SleepFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: str) -> list[Object]:
        raise ApiError(0, "no answer")

    assert world.activators is not None
    monkeypatch.setattr(world.api, "endpoint_slices", refuse)
    world.pass_time(1000)
    await world.activators.refresh()
    assert not world.activators.gone
    assert world.activators.endpoints("IPv4") is not None
    assert world.activators.endpoints("IPv6") is None


async def test_a_pod_that_has_not_spoken_keeps_its_user_awake(world: SleepFixture) -> None:
    world.api.living_pods.append({"metadata": {"name": "alice-new"}})
    await world.look()
    assert await world.reconcile() == ["pods"]
    assert world.addresses is None


async def test_pods_that_have_ended_or_are_going_do_not(world: SleepFixture) -> None:
    world.api.living_pods += [
        {"metadata": {"name": "evicted"}, "status": {"phase": "Failed"}},
        {"metadata": {"name": "going", "deletionTimestamp": "now"}, "status": {"phase": "Running"}},
    ]
    await world.fall_asleep()
    assert world.sleeping


async def test_a_removed_user_is_forgotten(world: SleepFixture) -> None:
    await world.settle()
    again = copy.deepcopy(world.api.resources["users", "alice"])
    del world.api.resources["users", "alice"]
    await world.reconcile()
    world.add(again)
    assert await world.reconcile() == ["apply EndpointSlice"]
    world.pass_time(SETTLE_S)
    await world.reconcile()
    assert world.replicas == 1, "the steps of the former user do not count"


async def test_a_broken_resource_keeps_nobody_else_awake(world: SleepFixture) -> None:
    broken = body("broken")
    del broken["spec"]["limits"]["connections"]
    world.add(broken)
    world.say("broken")
    await world.look()
    assert world.woken == ["alice"]


class RandomSchedule:
    """Steps of alice's relay, her clients, the activators and the operator in a random order.

    A relay reports its clients up to a second late. Clients connect to the pod if there is one, otherwise to an
    activator, which requests a wake.
    """

    def __init__(self, world: SleepFixture, seed: int) -> None:
        self.world = world
        self.random = random.Random(seed)  # noqa: S311
        self.came: list[float] = []
        """The time at which each connected client has connected."""
        self.waits = False
        """Whether a client waits for the pod."""
        self.untold: float | None = None
        """The time of the relay's next report; None if the last one is up to date."""
        self.changed_at = world.clock - 1000.0
        """The time at which the number of clients changed from or to zero."""
        self.pod = True
        self.slept = 0

    async def step(self) -> None:
        acts = {
            self.pause: 50,
            self.reconcile: 60,
            self.connect: 4,
            self.disconnect: 8,
            self.look: 20,
            self.start_pod: 20,
            self.restart: 1,
            self.change_activators: 2,
            self.change_spec: 2,
            self.fail_database: 2,
        }
        await self.random.choices(list(acts), list(acts.values()))[0]()

    async def pause(self) -> None:
        for _ in range(self.random.choice([1, 4, 8, 40])):
            self.world.pass_time(0.25)
            if self.untold is not None and self.world.clock >= self.untold:
                self.untold = None
            if self.pod and self.untold is None:
                since_s = self.world.clock - self.changed_at
                self.world.say(clients=len(self.came), since_s=since_s, heard_s=0)
        self.world.database.time = self.world.time.timestamp()

    def _change(self, clients: list[float]) -> None:
        if bool(clients) != bool(self.came):
            self.changed_at = self.world.clock
        self.came = clients
        self.untold = self.untold or self.world.clock + self.random.uniform(0, 1)

    async def connect(self) -> None:
        if self.pod:
            self._change([*self.came, self.world.clock])
        else:
            self.waits = True
            self.world.ask()

    async def disconnect(self) -> None:
        if self.came:
            self._change([])

    async def look(self) -> None:
        with contextlib.suppress(DatabaseError):
            await self.world.look()

    async def start_pod(self) -> None:
        if not self.pod and self.world.replicas == 1:
            self.pod = True
            self.changed_at = self.world.clock
            self.world.have_pod()
            self._change([self.world.clock] if self.waits else [])
            self.waits = False

    async def restart(self) -> None:
        self.world.restart(HASTY)

    async def change_activators(self) -> None:
        await self.world.ready(*self.random.choice([(), ("10.0.0.1",), ("10.0.0.1", "10.0.0.2")]))

    async def change_spec(self) -> None:
        resource = self.world.api.resources["users", "alice"]
        resource["metadata"]["generation"] += 1
        resource["spec"]["limits"]["connections"] += 1

    async def fail_database(self) -> None:
        self.world.database.away = self.random.random() < 0.3

    async def reconcile(self) -> None:
        world, replicas = self.world, self.world.replicas
        await world.reconcile()
        if replicas == 1 and world.replicas == 0:
            assert self.pod, "there was a pod to go"
            assert all(world.clock - came <= 1 for came in self.came), "a client was there to be seen"
            self.slept += 1
            if self.came:  # they reconnect through the activator
                world.ask()
            self.waits, self.came, self.untold, self.pod = bool(self.came), [], None, False
            world.lose_pod()
        if world.replicas == 0:
            assert world.addresses, "connections have somewhere to go"
        if self.waits and not world.database.away:
            assert world.replicas == 1 or replicas == 1, "whoever waits is not left waiting"


@pytest.mark.parametrize("seed", range(20))
async def test_random_schedules_cut_no_client_and_leave_none_waiting(world: SleepFixture, seed: int) -> None:
    world.restart(HASTY)
    chance = RandomSchedule(world, seed)
    for _ in range(1000):
        await chance.step()
    assert chance.slept
    world.database.away = False
    await world.ready("10.0.0.1")
    for _ in range(20):
        await chance.disconnect()
        await chance.pause()
        await chance.look()
        await chance.reconcile()
        await chance.start_pod()
    assert world.sleeping, "in the end, with nobody there, she sleeps"


async def test_with_a_new_name_a_sleeping_user_wakes_and_leaves_no_old_object(world: SleepFixture) -> None:
    await world.fall_asleep()
    assert world.sleeping
    name = OPAQUE.child_name("alice")
    world.restart(SLEEPY, OPAQUE)
    await world.reconcile()
    await world.reconciler.remove_orphans("users", ALICE)
    assert {child_of(key.kind, key.name) for key in world.api.children} == {name}
    deployment = world.api.children[ObjectKey("Deployment", "users", name)]
    assert deployment["spec"]["replicas"] == 1
    assert asleep(deployment) is None


async def test_a_user_with_quiet_clients_is_parked(world: SleepFixture) -> None:
    world.restart(PARKING)
    assert world.state == "Awake"
    world.converse(PARK_AFTER_S - 1)
    await world.look()
    assert await world.reconcile() == []
    world.converse(PARK_AFTER_S)
    await world.fall_asleep()
    assert world.state == "Parked"
    assert (world.replicas, world.addresses) == (0, ["10.0.0.1", "10.0.0.2"])
    assert world.condition("Asleep")[:2] == ("True", "Parked")
    assert world.condition("Ready")[:2] == ("True", "Parked")
    assert world.api.events == ["Slept"]
    world.keep()
    assert await world.reconcile() == []


async def test_traffic_in_the_settle_time_prevents_parking(world: SleepFixture) -> None:
    world.restart(PARKING)
    world.converse(PARK_AFTER_S)
    await world.settle()
    world.converse(0)
    assert await world.reconcile() == ["pods", "apply EndpointSlice"]
    assert (world.state, world.replicas) == ("Awake", 1)


@pytest.mark.parametrize("idle", [{"parkAfter": "0s"}, {"warm": True}, {"after": "0s"}])
async def test_parking_can_be_disabled(world: SleepFixture, idle: dict[str, Any]) -> None:
    world.restart(PARKING)
    world.api.resources["users", "alice"]["spec"]["idle"] = idle
    world.converse(10 * PARK_AFTER_S)
    await world.look()
    await world.reconcile()
    assert (world.addresses, world.replicas) == (None, 1)


async def test_without_a_database_of_the_activator_no_user_is_parked(world: SleepFixture) -> None:
    world.restart(replace(PARKING, activator=SLEEPY.activator))
    world.converse(10 * PARK_AFTER_S)
    await world.look()
    assert await world.reconcile() == []


async def test_a_parked_user_is_woken_by_a_request(world: SleepFixture) -> None:
    await world.park()
    world.keep()
    world.ask()
    assert await world.reconcile() == ["apply Deployment", "status"]
    assert (world.state, world.replicas) == ("Awake", 1)


async def test_a_parked_user_is_woken_when_parking_is_disabled(world: SleepFixture) -> None:
    await world.park()
    world.api.resources["users", "alice"]["spec"]["idle"] = {"parkAfter": "0s"}
    await world.reconcile()
    assert (world.state, world.replicas) == ("Awake", 1)


async def test_a_parked_user_is_woken_when_its_keys_are_revoked(world: SleepFixture) -> None:
    await world.park()
    world.keep()
    secret = next(key for key in world.api.children if key.kind == "Secret" and key.name == ALICE)
    del world.api.children[secret]
    await world.reconcile()
    world.woken.clear()
    await world.reconcile()
    assert (world.state, world.replicas) == ("Awake", 1)


async def test_a_parked_user_without_clients_counts_as_asleep(world: SleepFixture) -> None:
    await world.park()
    world.keep(0)
    await world.look()
    await world.reconcile()
    assert world.state == "Parked", "its clients have time to reconnect"
    world.keep(1)
    world.pass_time(PARKED_S + 1)
    world.keep(1)
    await world.look()
    await world.reconcile()
    assert world.state == "Parked"
    world.keep(0)
    await world.look()
    assert "apply Deployment" in await world.reconcile()
    assert (world.state, world.replicas) == ("Asleep", 0)
    assert world.condition("Asleep")[:2] == ("True", "Idle")
    world.ask()
    await world.reconcile()
    assert world.state == "Awake"


async def test_an_operator_that_restarts_leaves_a_parked_user(world: SleepFixture) -> None:
    await world.park()
    world.keep()
    world.restart(PARKING)
    await world.look()
    assert await world.reconcile() == []
    assert world.state == "Parked"
