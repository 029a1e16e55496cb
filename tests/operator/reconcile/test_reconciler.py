"""Reconciling, against a fake API server that stores applied objects. The tests in `e2e` use a real one."""

from __future__ import annotations

import asyncio
import base64
import copy
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from testing.operator.fixture import CREDENTIALS, SECRET, ReconcilerFixture
from testing.operator.names import NAMES, OPAQUE, child_name
from testing.operator.samples import CONFIG, body
from userrealtime_operator.config import Config
from userrealtime_operator.kube.client import ApiError
from userrealtime_operator.kube.types import Object, ObjectKey
from userrealtime_operator.model.naming import CREDENTIALS_SUFFIX, Naming
from userrealtime_operator.postgres.database import DatabaseError
from userrealtime_operator.reconcile.reconciler import DATABASE_RETRY_S, PODS_FIRST_S, PODS_LAST_S

ALICE = child_name("alice")


@pytest.fixture
def world() -> ReconcilerFixture:
    return ReconcilerFixture()


async def test_a_new_resource_gets_its_objects_and_a_status(world: ReconcilerFixture) -> None:
    calls = await world.reconcile()
    applied = [f"apply {kind}" for kind in ("Service", "Deployment", "Ingress")]
    assert calls == ["create Secret", "create Secret", *applied, "status"]
    assert world.condition("Ready")[:2] == ("False", "PodNotReady")
    assert world.condition("DatabaseReady")[0] == "True"
    assert world.database.known == {"uid-of-alice": "alice"}
    assert world.database.scopes == {"here/users"}


async def test_ready_follows_the_pod(world: ReconcilerFixture) -> None:
    await world.reconcile()
    world.become_available()
    assert await world.reconcile() == ["status"]
    assert world.condition("Ready")[:2] == ("True", "PodAvailable")
    assert world.condition("Progressing")[0] == "False"


async def test_nothing_new_costs_nothing(world: ReconcilerFixture) -> None:
    await world.reconcile()
    world.become_available()
    await world.reconcile()
    assert await world.reconcile() == []


async def test_a_restarted_operator_writes_nothing(world: ReconcilerFixture) -> None:
    await world.reconcile()
    world.become_available()
    await world.reconcile()
    world.restart()
    assert await world.reconcile() == []


@pytest.mark.parametrize("kind", ["Secret", "Service", "Deployment", "Ingress"])
async def test_a_deleted_child_comes_back(world: ReconcilerFixture, kind: str) -> None:
    await world.reconcile()
    del world.api.children[ObjectKey(kind, "users", ALICE)]
    assert f"{'create' if kind == 'Secret' else 'apply'} {kind}" in await world.reconcile()


async def test_an_edited_child_is_put_right_and_the_others_left_alone(world: ReconcilerFixture) -> None:
    await world.reconcile()
    world.api.children[ObjectKey("Service", "users", ALICE)]["spec"]["selector"] = {"app": "other"}
    assert [call for call in await world.reconcile() if call.startswith("apply")] == ["apply Service"]


async def test_a_changed_spec_changes_the_deployment_alone(world: ReconcilerFixture) -> None:
    await world.reconcile()
    world.add(body(limits={"connections": 1}))
    assert [call for call in await world.reconcile() if call.startswith("apply")] == ["apply Deployment"]


async def test_a_route_switched_off_takes_its_ingress_along(world: ReconcilerFixture) -> None:
    await world.reconcile()
    world.add(body(route={"enabled": False}))
    assert "delete Ingress" in await world.reconcile()
    assert ObjectKey("Ingress", "users", ALICE) not in world.api.children


async def test_the_token_key_outlives_a_cold_cache_and_an_edit(world: ReconcilerFixture) -> None:
    await world.reconcile()
    first = world.keys()
    assert len(first["TOKEN_KEY"]) >= 32
    world.stale = {}
    assert "replace Secret" not in await world.reconcile()
    assert world.keys() == first
    world.stale = None
    world.api.children[SECRET]["data"]["OTHER"] = "eA=="
    world.api.children[SECRET]["metadata"]["labels"]["backup"] = "nightly"
    assert "replace Secret" in await world.reconcile()
    assert world.keys() == first
    assert world.api.children[SECRET]["metadata"]["labels"]["backup"] == "nightly"
    assert await world.reconcile() == []


async def test_what_somebody_adds_to_the_secret_goes(world: ReconcilerFixture) -> None:
    """It would be mounted, and a relay with an invalid key does not start."""
    await world.reconcile()
    world.api.children[SECRET]["data"]["TOKEN_KEY_PREVIOUS"] = base64.b64encode(b"short").decode()
    assert "replace Secret" in await world.reconcile()
    assert world.keys().keys() == {"TOKEN_KEY"}


async def test_a_token_key_is_replaced_on_request_and_no_pod_for_it(world: ReconcilerFixture) -> None:
    await world.reconcile()
    world.become_available()
    await world.reconcile()
    first = world.keys()["TOKEN_KEY"]
    world.request("1")
    assert await world.reconcile() == ["get Secret", "replace Secret"]
    following = world.keys()["TOKEN_KEY_NEXT"]
    assert world.keys() == {"TOKEN_KEY": first, "TOKEN_KEY_NEXT": following}
    wait = await world.reconciler.reconcile("users", "alice")
    assert wait == CONFIG.token_keys.publish_ahead_s
    world.time += timedelta(seconds=wait)
    world.restart()
    assert await world.reconcile() == ["get Secret", "replace Secret"]
    assert world.keys() == {"TOKEN_KEY": following, "TOKEN_KEY_PREVIOUS": first}
    wait = await world.reconciler.reconcile("users", "alice")
    assert wait == CONFIG.token_keys.overlap_s
    world.time += timedelta(seconds=wait)
    assert await world.reconcile() == ["get Secret", "replace Secret"]
    assert world.keys() == {"TOKEN_KEY": following}
    assert await world.reconciler.reconcile("users", "alice") is None
    assert await world.reconcile() == []


async def test_a_cache_that_is_behind_makes_no_second_key(world: ReconcilerFixture) -> None:
    await world.reconcile()
    before = copy.deepcopy(world.api.children)
    world.request("1")
    await world.reconcile()
    keys = world.keys()
    world.stale = before
    assert await world.reconcile() == ["get Secret"]
    assert world.keys() == keys


async def test_a_secret_that_the_cache_does_not_know_is_read(world: ReconcilerFixture) -> None:
    await world.reconcile()
    keys = world.keys()
    world.stale = {key: item for key, item in world.api.children.items() if key != SECRET}
    assert await world.reconcile() == ["create Secret", "get Secret"]
    assert world.keys() == keys


async def test_a_concurrently_changed_secret_is_not_overwritten(
    world: ReconcilerFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.reconcile()
    get = world.api.get

    async def get_and_then_another_operator_writes(kind: str, namespace: str, name: str) -> Object | None:
        found = copy.deepcopy(await get(kind, namespace, name))
        monkeypatch.undo()
        await ReconcilerFixture.reconcile(world)
        return found

    world.request("1")
    monkeypatch.setattr(world.api, "get", get_and_then_another_operator_writes)
    with pytest.raises(ApiError, match="has been modified"):
        await world.reconciler.reconcile("users", "alice")
    keys = world.keys()
    assert keys.keys() == {"TOKEN_KEY", "TOKEN_KEY_NEXT"}
    await world.reconcile()
    assert world.keys() == keys


async def test_a_lost_secret_begins_anew_with_another_pod(world: ReconcilerFixture) -> None:
    await world.reconcile()
    first = world.keys()
    del world.api.children[SECRET]
    calls = await world.reconcile()
    assert [call for call in calls if call != "status"] == [
        "create Secret",
        "get Secret",  # the Secret with the URLs, which was written with other keys
        "replace Secret",
        "apply Deployment",
    ]
    assert world.keys().keys() == first.keys()
    assert world.keys() != first


async def test_a_lost_secret_with_urls_comes_back_with_the_same_keys(world: ReconcilerFixture) -> None:
    await world.reconcile()
    keys, lost = world.keys(), world.api.children.pop(CREDENTIALS)
    assert await world.reconcile() == ["create Secret"]
    assert world.keys() == keys
    assert world.api.children[CREDENTIALS]["data"] == lost["data"]
    assert await world.reconcile() == []


async def test_the_one_secret_of_an_earlier_version_becomes_two(world: ReconcilerFixture) -> None:
    await world.reconcile()
    keys = world.keys()
    url = world.api.children.pop(CREDENTIALS)["data"]["DATABASE_URL"]
    world.api.children[SECRET]["data"]["DATABASE_URL"] = url
    world.restart()
    calls = await world.reconcile()
    assert [call for call in calls if call != "status"] == ["get Secret", "create Secret", "replace Secret"]
    assert world.keys() == keys
    assert world.api.children[CREDENTIALS]["data"] == {"DATABASE_URL": url}
    assert await world.reconcile() == []


async def test_an_edited_secret_with_urls_is_corrected(world: ReconcilerFixture) -> None:
    await world.reconcile()
    before = copy.deepcopy(world.api.children[CREDENTIALS]["data"])
    world.api.children[CREDENTIALS]["data"] |= {"OTHER": "eA=="}
    assert await world.reconcile() == ["get Secret", "get Secret", "replace Secret"]
    assert world.api.children[CREDENTIALS]["data"] == before


async def test_a_resource_being_deleted_is_left_to_the_garbage_collector(world: ReconcilerFixture) -> None:
    world.api.resources["users", "alice"]["metadata"]["deletionTimestamp"] = "now"
    assert await world.reconcile() == []


async def test_the_second_resource_of_a_user_is_told_so_and_takes_nothing(world: ReconcilerFixture) -> None:
    await world.reconcile()
    before = copy.deepcopy(world.api.children)
    world.add(body("second", userId="alice"))
    assert await world.reconcile("second") == ["status"]
    assert world.condition("Ready", "second")[:2] == ("False", "DuplicateUserId")
    assert "'alice'" in world.condition("Ready", "second")[2]
    assert world.api.children == before


async def test_a_database_that_is_away_is_a_condition_and_no_obstacle(world: ReconcilerFixture) -> None:
    world.database.away = True
    delay = await world.reconciler.reconcile("users", "alice")
    world.become_available()
    await world.reconciler.reconcile("users", "alice")
    assert delay is not None
    assert 0 < delay <= DATABASE_RETRY_S
    assert world.condition("DatabaseReady") == ("False", "DatabaseUnavailable", "connection refused")
    assert world.condition("Ready") == ("False", "DatabaseUnavailable", "connection refused")
    world.database.away = False
    assert await world.reconciler.reconcile("users", "alice") is None
    assert world.condition("Ready")[0] == "True"


async def test_a_later_database_error_is_reported_for_an_unready_pod(world: ReconcilerFixture) -> None:
    await world.reconcile()
    world.become_available()
    await world.reconcile()
    assert world.condition("Ready")[0] == "True"
    world.database.away = True
    world.database.pings = 0
    assert await world.reconciler.reconcile("users", "alice") is None
    assert world.database.pings == 0  # a served user sends no request
    world.clock += 60
    world.become_available(pods=0)
    delay = await world.reconciler.reconcile("users", "alice")
    assert delay is not None
    assert delay <= DATABASE_RETRY_S
    assert world.condition("DatabaseReady") == ("False", "DatabaseUnavailable", "connection refused")
    assert world.condition("Ready") == ("False", "DatabaseUnavailable", "connection refused")
    assert world.database.pings == 1
    world.database.away = False
    world.become_available()
    assert await world.reconciler.reconcile("users", "alice") is None
    assert world.condition("DatabaseReady")[0] == world.condition("Ready")[0] == "True"


async def test_the_database_is_asked_once_for_all_whose_pods_are_not_ready(world: ReconcilerFixture) -> None:
    names = [f"user-{number}" for number in range(20)]
    for name in names:
        world.add(body(name))
        await world.reconcile(name)
    world.database.pings = 0
    world.clock += 60
    world.database.away = True
    await asyncio.gather(*(world.reconciler.reconcile("users", name) for name in names))
    assert world.database.pings == 1
    assert {world.condition("Ready", name)[1] for name in names} == {"DatabaseUnavailable"}
    world.clock += 60
    world.database.away = False
    await asyncio.gather(*(world.reconciler.reconcile("users", name) for name in names))
    assert world.database.pings == 2
    assert {world.condition("DatabaseReady", name)[1] for name in names} == {"Registered"}


async def test_a_refusal_by_the_api_server_is_told_and_tried_again(world: ReconcilerFixture) -> None:
    world.api.refusal = ApiError(403, "exceeded quota")
    with pytest.raises(ApiError, match="exceeded quota"):
        await world.reconciler.reconcile("users", "alice")
    assert world.condition("Ready")[:2] == ("False", "Refused")
    assert "exceeded quota" in world.condition("Ready")[2]


async def test_a_url_that_cannot_be_used_is_told(world: ReconcilerFixture) -> None:
    world.add(body(route={"enabled": True, "url": "http://h/{x}"}))
    await world.reconcile()
    assert world.condition("Ready")[:2] == ("False", "InvalidRoute")


async def test_a_sweep_forgets_those_that_are_gone_alone(world: ReconcilerFixture) -> None:
    world.add(body("bob"))
    await world.reconcile()
    await world.reconcile("bob")
    del world.api.resources["users", "alice"]
    await world.reconciler.sweep("users")
    assert world.database.known == {"uid-of-bob": "bob"}


async def test_one_log_that_cannot_be_removed_delays_no_other(
    world: ReconcilerFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("alice", "bob", "carol", "dave")
    for name in names:
        world.add(body(name))
        await world.reconcile(name)
    world.api.resources.clear()
    forget = world.database.forget

    async def refuse(resource: str) -> None:
        if resource == "uid-of-bob":
            raise DatabaseError("locked")
        await forget(resource)

    monkeypatch.setattr(world.database, "forget", refuse)
    with pytest.raises(DatabaseError, match="locked"):
        await world.reconciler.sweep("users")
    assert world.database.known == {"uid-of-bob": "bob"}


async def test_a_registration_that_the_database_lost_is_made_again(world: ReconcilerFixture) -> None:
    await world.reconcile()
    world.database.known.clear()
    assert world.reconciler.is_registered("uid-of-alice")
    await world.reconciler.sweep("users")
    assert not world.reconciler.is_registered("uid-of-alice")
    await world.reconcile()
    assert world.database.known == {"uid-of-alice": "alice"}


async def test_only_children_without_an_owner_are_removed(world: ReconcilerFixture) -> None:
    await world.reconcile()
    del world.api.children[ObjectKey("Service", "users", ALICE)]["metadata"]["ownerReferences"]
    await world.reconciler.remove_orphans("users", ALICE)
    assert {key.kind for key in world.api.children} == {"Secret", "Deployment", "Ingress"}
    del world.api.children[CREDENTIALS]["metadata"]["ownerReferences"]
    await world.reconciler.remove_orphans("users", ALICE)
    assert {key.name for key in world.api.children if key.kind == "Secret"} == {ALICE}


@pytest.mark.parametrize(("before", "after"), [(NAMES, OPAQUE), (OPAQUE, NAMES), (OPAQUE, Naming("x" * 32))])
async def test_objects_with_another_name_replace_the_old_ones(
    world: ReconcilerFixture, before: Naming, after: Naming
) -> None:
    """The key of opaque names was added, removed or changed."""
    world.restart(naming=before)
    await world.reconcile()
    old = set(world.api.children)
    old_name, name = before.child_name("alice"), after.child_name("alice")
    await world.reconciler.remove_orphans("users", name)
    assert set(world.api.children) == old

    world.restart(naming=after)
    await world.reconcile()
    await world.reconciler.remove_orphans("users", old_name)
    assert {(key.kind, key.name.removesuffix(CREDENTIALS_SUFFIX)) for key in world.api.children} == {
        (kind, name) for kind in ("Secret", "Service", "Deployment", "Ingress")
    }
    assert len(world.api.children) == len(old)
    status = world.api.resources["users", "alice"]["status"]
    assert (status["name"], status["tokenSecret"]["name"]) == (name, name)
    assert status["url"] == f"https://realtime.example.com/{name}"
    assert world.database.known == {"uid-of-alice": "alice"}


async def test_objects_of_other_owners_are_not_removed_after_a_change_of_names(world: ReconcilerFixture) -> None:
    await world.reconcile()
    key = ObjectKey("Service", "users", ALICE)
    [owner] = world.api.children[key]["metadata"]["ownerReferences"]
    world.restart(naming=OPAQUE)
    for other in ({"uid": "another"}, {"name": "bob"}, {"kind": "Other"}):
        world.api.children[key]["metadata"]["ownerReferences"] = [{**owner, **other}]
        await world.reconciler.remove_orphans("users", ALICE)
        assert key in world.api.children
    world.api.children[key]["metadata"]["ownerReferences"] = [owner]
    world.api.children[key]["metadata"]["deletionTimestamp"] = "2026-01-02T03:04:05Z"
    await world.reconciler.remove_orphans("users", ALICE)
    assert key in world.api.children
    del world.api.children[key]["metadata"]["deletionTimestamp"]
    await world.reconciler.remove_orphans("users", ALICE)
    assert key not in world.api.children


def unschedulable() -> Object:
    condition = {"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available"}
    return {"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}, "status": {"conditions": [condition]}}


async def test_a_pod_that_does_not_come_is_looked_at_ever_less_often(world: ReconcilerFixture) -> None:
    world.api.living_pods = [unschedulable()]
    assert await world.reconciler.reconcile("users", "alice") == PODS_FIRST_S
    assert "pods" not in world.api.calls

    def started(ago_s: float) -> None:
        for condition in world.api.resources["users", "alice"]["status"]["conditions"]:
            condition["lastTransitionTime"] = (world.time - timedelta(seconds=ago_s)).isoformat()

    started(10)
    assert 9 < (await world.reconciler.reconcile("users", "alice") or 0) < 12
    assert world.condition("Ready")[:2] == ("False", "Unschedulable")
    assert world.condition("Progressing")[:2] == ("True", "Unschedulable")
    started(10_000)
    assert await world.reconciler.reconcile("users", "alice") == PODS_LAST_S
    assert world.api.events == ["Unschedulable"]
    world.become_available()
    assert await world.reconcile() == ["status"]
    assert world.condition("Ready")[:2] == ("True", "PodAvailable")
    assert world.api.events == ["Unschedulable", "Resolved"]


def upgraded(limit: int) -> Config:
    return replace(CONFIG, relay=replace(CONFIG.relay, image="relay:2", max_concurrent_rollouts=limit))


async def test_an_upgrade_goes_from_user_to_user(world: ReconcilerFixture) -> None:
    names = ["alice", "bob", "carol"]
    await world.serve(*names)
    world.restart(upgraded(limit=1))
    assert [(await world.reconcile(name))[0] for name in names] == ["apply Deployment", "status", "status"]
    assert world.condition("Progressing", "bob")[:2] == ("True", "RolloutWaiting")
    assert world.condition("Ready", "bob")[0] == "True"
    await world.reconcile("alice")  # in progress
    assert await world.reconcile("bob") == []
    assert world.woken == []
    world.become_available("alice")
    await world.reconcile("alice")
    assert world.woken == ["bob"]
    assert "apply Deployment" in await world.reconcile("bob")
    # A removed user does not delay the others.
    del world.api.resources["users", "bob"]
    await world.reconcile("bob")
    assert world.woken == ["bob", "carol"]
    assert "apply Deployment" in await world.reconcile("carol")


async def test_what_a_user_asks_for_does_not_wait(world: ReconcilerFixture) -> None:
    await world.serve("alice", "bob")
    world.restart(upgraded(limit=1))
    await world.reconcile("alice")
    changed = world.api.resources["users", "bob"]
    changed["metadata"]["generation"] = 2
    changed["spec"]["limits"]["connections"] = 7
    assert "apply Deployment" in await world.reconcile("bob")


async def test_the_budget_of_evictions_comes_and_goes_with_the_second_pod(world: ReconcilerFixture) -> None:
    await world.serve("alice")
    budget = ObjectKey("PodDisruptionBudget", "users", ALICE)
    assert world.child(budget) is None
    for replicas, calls in ((2, "apply"), (1, "delete")):
        world.add(body("alice", replicas=replicas))
        assert f"{calls} PodDisruptionBudget" in await world.reconcile()
        assert (world.child(budget) is not None) is (replicas > 1)


async def test_restart_admits_no_rollout_while_others_are_stuck(world: ReconcilerFixture) -> None:
    await world.serve("alice", "bob")
    world.restart(upgraded(limit=1))
    await world.reconcile("alice")
    # As the Deployment controller reports it: the old pod serves, and the new one does not become ready.
    world.become_available("alice")
    alices = world.child(ObjectKey("Deployment", "users", ALICE))
    assert alices is not None
    alices["status"].update(replicas=2)
    for image in ("relay:2", "relay:3"):
        config = upgraded(limit=1)
        world.restart(replace(config, relay=replace(config.relay, image=image)))
        world.reconciler.resume_rollouts(world.api.resources.values())
        assert "apply Deployment" not in await world.reconcile("bob")
        assert world.condition("Progressing", "bob")[:2] == ("True", "RolloutWaiting")
    # The corrected image is rolled out first to the users with a failed pod.
    assert "apply Deployment" in await world.reconcile("alice")
    world.become_available("alice")
    await world.reconcile("alice")
    assert world.woken == ["bob"]
    assert "apply Deployment" in await world.reconcile("bob")


@pytest.mark.parametrize(
    ("break_spec", "named"),
    [
        (lambda spec: spec["limits"].pop("connections"), "connections"),
        (lambda spec: spec.pop("route"), "route"),
        (lambda spec: spec["idle"].update(after="soon"), "soon"),
        (lambda spec: spec.update(limits=None), "NoneType"),
    ],
)
async def test_a_stored_spec_that_cannot_be_parsed_is_reported(
    world: ReconcilerFixture, break_spec: Callable[[Object], None], named: str
) -> None:
    await world.serve("alice")
    children = dict(world.api.children)
    item = copy.deepcopy(world.api.resources["users", "alice"])
    break_spec(item["spec"])
    item["metadata"]["generation"] += 1
    world.add(item)
    assert await world.reconcile() == ["status"]
    status, reason, message = world.condition("Ready")
    assert (status, reason) == ("False", "InvalidSpec")
    assert named in message
    assert world.condition("Progressing")[:2] == ("False", "InvalidSpec")
    assert world.condition("DatabaseReady")[0] == "True"
    assert world.api.events[-1] == "InvalidSpec"
    assert world.api.children == children, "the user's objects have changed"
    # Not written again, and not retried.
    assert await world.reconcile() == []
    world.add({**body(), "status": world.api.resources["users", "alice"]["status"]})
    await world.reconcile()
    assert world.condition("Ready")[0] == "True"
    assert world.api.events[-1] == "Resolved"
