"""Fields that something else sets: they are left and reported, and no rollout waits for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from testing.operator.fixture import ReconcilerFixture
from testing.operator.names import child_name
from testing.operator.samples import CONFIG
from userrealtime_operator.config import Config
from userrealtime_operator.kube.client import ApiError
from userrealtime_operator.kube.types import NamespacedName, Object, ObjectKey
from userrealtime_operator.manifests.children import APPLIED_DIGEST
from userrealtime_operator.reconcile.contests import LONGEST_S, REPAIRS, WINDOW_S, Contests, contested
from userrealtime_operator.reconcile.reconciler import FOREIGN_ROLLOUT_S

ALICE = NamespacedName("users", "alice")
OBJECT = (ALICE, "Deployment")
IMAGE = frozenset({"spec.template.spec.containers[relay].image"})
OTHER = frozenset({"spec.replicas"})
NONE = frozenset[str]()


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_field_that_the_api_server_stores_with_another_value_is_left() -> None:
    contests = Contests(clock := Clock())
    contests.applied(*OBJECT, "digest", NONE, IMAGE)
    assert contests.accepts(*OBJECT, "digest", IMAGE)
    assert not contests.accepts(*OBJECT, "another", IMAGE)
    assert not contests.accepts(*OBJECT, "digest", IMAGE | OTHER)
    assert not contests.accepts(ALICE, "Service", "digest", IMAGE)
    clock.now = LONGEST_S
    assert not contests.accepts(*OBJECT, "digest", IMAGE)
    contests.applied(*OBJECT, "digest", IMAGE, NONE)
    assert not contests.accepts(*OBJECT, "digest", IMAGE)


def test_a_field_that_is_changed_after_each_repair_is_left_longer_each_time() -> None:
    contests = Contests(clock := Clock())
    hold = WINDOW_S
    for _ in range(10):
        for _ in range(REPAIRS):
            assert not contests.accepts(*OBJECT, "digest", IMAGE)
            contests.applied(*OBJECT, "digest", IMAGE, NONE)
        assert contests.accepts(*OBJECT, "digest", IMAGE)
        assert not contests.accepts(*OBJECT, "digest", OTHER)
        assert contests.remaining_s(*OBJECT) == hold
        clock.now += hold
        hold = min(2 * hold, LONGEST_S)
    assert hold == LONGEST_S


def test_after_a_quiet_time_the_first_interval_applies_again() -> None:
    contests = Contests(clock := Clock())
    for pause in (WINDOW_S, WINDOW_S, 0):
        for _ in range(REPAIRS):
            contests.applied(*OBJECT, "digest", IMAGE, NONE)
        clock.now += pause
        if pause:
            contests.applied(*OBJECT, "digest", IMAGE, NONE)  # repaired, and nothing changes it
            clock.now += WINDOW_S
    assert contests.remaining_s(*OBJECT) == WINDOW_S


def test_repairs_of_different_fields_or_at_long_intervals_are_no_contest() -> None:
    contests = Contests(clock := Clock())
    for field in ("a", "b", "c", "d"):
        contests.applied(*OBJECT, "digest", frozenset({field}), NONE)
    for _ in range(2 * REPAIRS):
        clock.now += WINDOW_S
        contests.applied(*OBJECT, "digest", IMAGE, NONE)
    for field in ("a", "b", "c", "d", *IMAGE):
        assert not contests.accepts(*OBJECT, "digest", frozenset({field}))
    assert contests.remaining_s(*OBJECT) is None


def test_a_deleted_user_is_forgotten() -> None:
    contests = Contests(Clock())
    contests.applied(*OBJECT, "digest", NONE, IMAGE)
    contests.forget(ALICE)
    assert not contests.accepts(*OBJECT, "digest", IMAGE)


def test_a_long_list_of_fields_is_shortened() -> None:
    result = contested(("Deployment", f"spec.{letter}") for letter in "abcdefg")
    assert result.message.endswith("Deployment spec.e, and 2 more")


@pytest.fixture
def world() -> ReconcilerFixture:
    return ReconcilerFixture()


def upgraded(limit: int) -> Config:
    return replace(CONFIG, relay=replace(CONFIG.relay, image="relay:2", max_concurrent_rollouts=limit))


def deployment(world: ReconcilerFixture, name: str = "alice") -> Object:
    return world.api.children[ObjectKey("Deployment", "users", child_name(name))]


def container(item: Object) -> Object:
    found: Object = item["spec"]["template"]["spec"]["containers"][0]
    return found


def mutate_applied(
    world: ReconcilerFixture, monkeypatch: pytest.MonkeyPatch, mutate: Callable[[Object, Object], None]
) -> None:
    """Change each Deployment as an admission webhook does: `mutate` gets what is applied, and what is stored.

    As in the API server, the generation changes only if the stored spec does.
    """
    apply = world.api.apply

    async def admitted(item: Object) -> Object:
        if item["kind"] != "Deployment":
            return await apply(item)
        before = world.api.children.get(ObjectKey("Deployment", "users", item["metadata"]["name"]))
        stored = await apply(item)
        mutate(item, stored)
        if before is not None:
            changed = before["spec"] != stored["spec"]
            stored["metadata"]["generation"] = before["metadata"]["generation"] + changed
        return stored

    monkeypatch.setattr(world.api, "apply", admitted)


def use_a_mirror(item: Object, stored: Object) -> None:
    container(stored)["image"] = "mirror.example.com/" + container(item)["image"]


async def reconcile_woken(world: ReconcilerFixture, *names: str) -> None:
    """Reconcile users, then those that are requeued, until none is; each new pod becomes available."""
    queue, steps = list(names), 0
    while queue:
        name, steps = queue.pop(0), steps + 1
        assert steps < 20 * len(names), "it does not converge"
        if "apply Deployment" in await world.reconcile(name):
            world.become_available(name)
            queue.append(name)
        queue += world.woken
        world.woken.clear()


async def test_a_webhook_that_changes_every_deployment_stops_no_rollout(
    world: ReconcilerFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As GKE Autopilot does, or a policy that rewrites the registry of images."""
    names = ("alice", "bob", "carol", "dave")
    mutate_applied(world, monkeypatch, use_a_mirror)
    await world.serve(*names)
    world.restart(upgraded(limit=1))
    await reconcile_woken(world, *names)
    for name in names:
        assert container(deployment(world, name))["image"] == "mirror.example.com/relay:2"
        assert await world.reconcile(name) == []
        status, reason, message = world.condition("Contested", name)
        assert (status, reason) == ("True", "FieldsContested")
        assert "Deployment spec.template.spec.containers[relay].image" in message
        assert world.condition("Progressing", name)[0] == "False"
    assert world.api.events == []


async def test_a_restarted_operator_holds_no_slot_for_a_contested_deployment(
    world: ReconcilerFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Applying it again changes nothing, so no event follows that could end the rollout."""
    names = ("alice", "bob", "carol")
    mutate_applied(world, monkeypatch, use_a_mirror)
    await world.serve(*names)
    world.restart(replace(CONFIG, relay=replace(CONFIG.relay, max_concurrent_rollouts=1)))
    for calls in (["apply Deployment"], []):
        for name in names:
            assert await world.reconcile(name) == calls


async def test_a_policy_that_removes_annotations_causes_no_endless_apply(
    world: ReconcilerFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate_applied(world, monkeypatch, lambda _, stored: stored["metadata"]["annotations"].pop(APPLIED_DIGEST))
    await world.serve("alice")
    assert await world.reconcile() == []
    assert "metadata.annotations" in world.condition("Contested")[2]
    world.restart(upgraded(limit=1))
    assert "apply Deployment" in await world.reconcile()
    assert container(deployment(world))["image"] == "relay:2"


async def test_a_tool_that_writes_after_each_repair_stops_no_rollout(world: ReconcilerFixture) -> None:
    await world.serve("alice", "bob")
    world.restart(upgraded(limit=1))
    for _ in range(2 * REPAIRS):
        await world.reconcile("alice")
        world.become_available("alice")
        container(deployment(world))["image"] = "theirs"
        await world.reconcile("bob")
    assert world.woken[0] == "bob"
    assert container(deployment(world, "bob"))["image"] == "relay:2"
    assert world.condition("Contested")[1] == "FieldsContested"
    # Later the operator tries again; the tool has stopped.
    due = await world.reconciler.reconcile("users", "alice")
    assert due == WINDOW_S
    world.clock += due
    world.become_available("bob")
    await world.reconcile("bob")
    assert "apply Deployment" in await world.reconcile("alice")
    world.become_available("alice")
    await world.reconcile("alice")
    assert "Contested" not in str(world.api.resources["users", "alice"])
    assert container(deployment(world))["image"] == "relay:2"


async def test_items_that_something_adds_are_left_and_are_no_contest(world: ReconcilerFixture) -> None:
    await world.serve("alice")
    container(deployment(world))["env"].append({"name": "STAKATER_X", "value": "1"})
    assert "apply Deployment" not in await world.reconcile("alice")
    assert "Contested" not in str(world.api.resources["users", "alice"])


def do_not_start(world: ReconcilerFixture, name: str = "alice") -> None:
    """Let the old pod serve, and the new one not become ready."""
    world.become_available(name)
    deployment(world, name)["status"].update(replicas=2)


@pytest.mark.parametrize("cause", ["webhook", "pause", "relay"])
async def test_a_pod_that_does_not_start_gives_its_slot_back_unless_it_is_the_relay_that_fails(
    world: ReconcilerFixture, monkeypatch: pytest.MonkeyPatch, cause: str
) -> None:
    await world.serve("alice", "bob")
    if cause == "webhook":
        mutate_applied(world, monkeypatch, use_a_mirror)
    world.restart(upgraded(limit=1))
    await world.reconcile("alice")
    do_not_start(world)
    if cause == "pause":
        deployment(world)["spec"]["paused"] = True
    for seconds in (1, FOREIGN_ROLLOUT_S - 2):
        world.clock += seconds
        world.time += timedelta(seconds=seconds)
        await world.reconcile("alice")
        await world.reconcile("bob")
        assert world.condition("Progressing", "bob")[1] == "RolloutWaiting"
    assert ("paused" in world.condition("Progressing")[2]) is (cause == "pause")
    world.clock += 1
    await world.reconcile("alice")
    assert world.woken == ([] if cause == "relay" else ["bob"])


async def test_a_rejected_deployment_gives_its_slot_back(
    world: ReconcilerFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.serve("alice", "bob")
    world.restart(upgraded(limit=1))
    await world.reconcile("alice")
    await world.reconcile("bob")
    world.become_available("alice")
    world.api.refusal = ApiError(403, "admission webhook denied the request")
    await world.reconcile("alice")
    assert world.woken == ["bob"]
    with pytest.raises(ApiError):
        await world.reconcile("bob")
    world.api.refusal = None
    container(deployment(world))["image"] = "theirs"
    assert "apply Deployment" in await world.reconcile("alice")


async def test_a_resource_that_becomes_invalid_gives_its_slot_back(world: ReconcilerFixture) -> None:
    await world.serve("alice", "bob")
    world.restart(upgraded(limit=1))
    await world.reconcile("alice")
    await world.reconcile("bob")
    world.api.resources["users", "alice"]["spec"]["relay"]["signal"] = "nats"
    await world.reconcile("alice")
    assert world.condition("Ready")[1] == "InvalidSignal"
    assert world.woken == []  # the pod is still being replaced
    world.become_available("alice")
    await world.reconcile("alice")
    assert world.woken == ["bob"]


async def test_an_invalid_resource_whose_pod_does_not_start_holds_its_slot_for_a_limited_time(
    world: ReconcilerFixture,
) -> None:
    await world.serve("alice", "bob")
    world.restart(upgraded(limit=1))
    await world.reconcile("alice")
    await world.reconcile("bob")
    world.clock += 100
    world.api.resources["users", "alice"]["spec"]["relay"]["signal"] = "nats"
    due = await world.reconciler.reconcile("users", "alice")
    assert due == FOREIGN_ROLLOUT_S - 100
    world.clock += due
    assert await world.reconciler.reconcile("users", "alice") is None
    assert world.woken == ["bob"]


async def test_a_namespace_without_permissions_holds_its_slots_for_a_limited_time(
    world: ReconcilerFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No watch reports its Deployments any more."""

    async def forbidden(*_: object) -> list[Object]:
        raise ApiError(403, "forbidden")

    await world.serve("alice", "bob")
    world.restart(upgraded(limit=1))
    await world.reconcile("alice")
    await world.reconcile("bob")
    do_not_start(world)
    monkeypatch.setattr(world.api, "pods", forbidden)
    monkeypatch.setattr(world.api, "merge_status", forbidden)
    for seconds in (FOREIGN_ROLLOUT_S - 1, 1):
        assert world.woken == []
        world.clock += seconds
        world.time += timedelta(seconds=seconds)
        with pytest.raises(ApiError):
            await world.reconcile("alice")
    assert world.woken == ["bob"]


async def test_a_user_that_no_longer_waits_does_not_delay_the_next_one(world: ReconcilerFixture) -> None:
    await world.serve("alice", "bob", "carol")
    world.restart(upgraded(limit=1))
    for name in ("alice", "bob", "carol"):
        await world.reconcile(name)
    # A change of bob's resource does not wait, and his pod does not start.
    changed = world.api.resources["users", "bob"]
    changed["metadata"]["generation"] = 2
    assert "apply Deployment" in await world.reconcile("bob")
    world.become_available("alice")
    await world.reconcile("alice")
    assert world.woken == ["carol"]
