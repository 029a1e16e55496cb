"""The activator's access to the cluster: which wakes are requested, and what the watches report.

`e2e/test_activator.py` has the same with a real API server.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from testing.operator.names import child_name
from testing.operator.pods import pod as pod_of_alice
from userrealtime_operator.activator import cluster as module
from userrealtime_operator.activator.cluster import PENDING_S, ApiCluster, WakeRequestTracker
from userrealtime_operator.activator.metrics import Metrics
from userrealtime_operator.activator.routes import Route, RouteTable
from userrealtime_operator.kube.client import ApiError
from userrealtime_operator.kube.types import NamespacedName

PATIENCE_S = 10
ALICE = Route(NamespacedName("users", "alice"), "alice", "", child_name("alice"))
NAME = child_name("alice")
FIRST, SECOND = "2026-01-01T00:00:00.000001Z", "2026-01-01T00:00:00.000002Z"


def resource(version: int = 1, requested_at: str | None = None, name: str = "alice") -> dict[str, Any]:
    status = {"name": child_name(name)}
    if requested_at is not None:
        status["wakeRequestedAt"] = requested_at
    metadata = {"namespace": "users", "name": name, "resourceVersion": str(version)}
    return {"metadata": metadata, "spec": {"userId": name}, "status": status}


def pod(*, ready: bool) -> dict[str, Any]:
    found = pod_of_alice(ready=ready)
    found["metadata"]["labels"]["app.kubernetes.io/instance"] = NAME
    found["metadata"]["resourceVersion"] = "1"
    return found


class Api:
    """An API server with one namespace. `conflicts` is how many of the next conditional writes fail."""

    def __init__(self) -> None:
        self.objects: dict[str, list[dict[str, Any]]] = {"userrealtimes": [], "pods": []}
        self.events: dict[str, asyncio.Queue[tuple[str, dict[str, Any]]]] = {
            kind: asyncio.Queue() for kind in self.objects
        }
        self.versions: list[str | None] = []
        """The resourceVersions on which wake requests were conditional."""
        self.conflicts = 0
        self.error: ApiError | None = None

    async def page(self, _: str, plural: str, namespace: str, selector: object, token: str = "") -> dict[str, Any]:
        assert (namespace, token) == ("users", "")
        return {"metadata": {"resourceVersion": "1"}, "items": self.objects[plural]}

    async def watch(
        self, _: str, plural: str, namespace: str, selector: object, version: str, seconds: int
    ) -> AsyncGenerator[tuple[str, dict[str, Any]]]:
        while True:
            yield await self.events[plural].get()

    async def merge_status(self, _: str, plural: str, namespace: str, name: str, patch: dict[str, Any]) -> None:
        assert (plural, namespace, name) == ("userrealtimes", *ALICE.user)
        assert patch["status"]["wakeRequestedAt"].endswith("Z")
        version = patch.get("metadata", {}).get("resourceVersion")
        if self.error is not None:
            raise self.error
        self.versions.append(version)
        if version is not None and self.conflicts:
            self.conflicts -= 1
            raise ApiError(409, "the object has been modified")

    async def get(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        assert (kind, namespace, name) == ("Secret", "users", NAME)
        if self.error is not None:
            raise self.error
        return {"data": {"TOKEN_KEY": "a2V5"}}


class ReconcilerFixture:
    """An activator's cluster, and the API server."""

    def __init__(self) -> None:
        self.api = Api()
        self.routes = RouteTable()
        self.metrics = Metrics()
        self.cluster = ApiCluster(self.api, self.routes, self.metrics)  # type: ignore[arg-type]

    @property
    def requests(self) -> WakeRequestTracker:
        return self.cluster.requests

    def requested(self) -> float:
        return self.metrics.value("wakes_requested_total")


@pytest.fixture
def world() -> ReconcilerFixture:
    """A cluster with the user alice, without a wake request."""
    world = ReconcilerFixture()
    world.requests.put(resource())
    return world


async def test_a_request_is_conditional_on_the_last_observed_version(world: ReconcilerFixture) -> None:
    await world.cluster.request_wake(ALICE)
    world.requests.put(resource(2))
    await world.cluster.request_wake(ALICE)
    assert world.api.versions == ["1", "2"]
    assert world.requested() == 2


async def test_the_request_of_another_replica_is_not_repeated(world: ReconcilerFixture) -> None:
    world.requests.put(resource(2, FIRST))
    await world.cluster.request_wake(ALICE)
    assert world.api.versions == []


async def test_a_request_from_before_the_start_is_an_earlier_wake() -> None:
    world = ReconcilerFixture()
    world.requests.put(resource(1, FIRST))
    await world.cluster.request_wake(ALICE)
    assert world.api.versions == ["1"]


async def test_a_request_before_the_last_ready_pod_is_an_earlier_wake(world: ReconcilerFixture) -> None:
    world.requests.put(resource(2, FIRST))
    world.cluster.pods.put(pod(ready=True))
    world.cluster.pods.remove(pod(ready=True))
    await world.cluster.request_wake(ALICE)
    assert world.api.versions == ["2"]


async def test_a_request_without_effect_is_repeated(world: ReconcilerFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    world.requests.put(resource(2, FIRST))
    later = time.monotonic() + PENDING_S
    monkeypatch.setattr("userrealtime_operator.activator.cluster.time.monotonic", lambda: later)
    await world.cluster.request_wake(ALICE)
    assert world.api.versions == ["2"]


async def test_a_conflict_with_another_replica_ends_with_its_request(world: ReconcilerFixture) -> None:
    world.api.conflicts = 1
    requesting = asyncio.create_task(world.cluster.request_wake(ALICE))
    async with asyncio.timeout(PATIENCE_S):
        while not world.api.versions:
            await asyncio.sleep(0)
        world.requests.put(resource(2, FIRST))
        await requesting
    assert world.api.versions == ["1"]
    assert world.requested() == 0


async def test_frequent_writes_by_others_do_not_prevent_a_wake(
    world: ReconcilerFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_WATCH_DELAY_S", 0.01)
    world.api.conflicts = 100
    await world.cluster.request_wake(ALICE)
    assert world.api.versions == ["1", "1", "1", None]
    assert world.requested() == 1


async def test_an_api_server_that_fails_is_an_os_error(world: ReconcilerFixture) -> None:
    world.api.error = ApiError(0, "no answer")
    with pytest.raises(OSError, match="no answer"):
        await world.cluster.request_wake(ALICE)
    with pytest.raises(OSError, match="could not read a Secret: no answer"):
        await world.cluster.secret(ALICE)


async def test_a_secret_is_read_by_the_name_of_the_users_objects(world: ReconcilerFixture) -> None:
    assert await world.cluster.secret(ALICE) == {"data": {"TOKEN_KEY": "a2V5"}}


async def test_a_registered_address_is_used_until_the_watch_reports_a_pod(world: ReconcilerFixture) -> None:
    changed = asyncio.create_task(world.cluster.wait_for_change(ALICE))
    await asyncio.sleep(0)
    world.cluster.register_address(ALICE, "10.0.0.9")
    async with asyncio.timeout(PATIENCE_S):
        await changed
    registered = world.cluster.pod(ALICE)
    assert registered is not None
    assert registered.address[0] == "10.0.0.9"
    world.cluster.pods.put(pod(ready=True))
    watched = world.cluster.pod(ALICE)
    assert watched is not None
    assert (watched.ready, watched.address[0]) == (True, "10.0.0.1")


async def test_the_watches_maintain_the_users_and_the_pods() -> None:
    world = ReconcilerFixture()
    world.api.objects = {"userrealtimes": [resource(), resource(name="bob")], "pods": [pod(ready=False)]}
    async with (
        asyncio.timeout(PATIENCE_S),
        world.cluster.watching(world.api, ["users"]) as listed,  # type: ignore[arg-type]
    ):
        await listed
        assert len(world.cluster) == 2
        assert world.routes.find(NAME, "/ws") == ALICE
        assert world.cluster.pod(ALICE) is not None
        changed = asyncio.create_task(world.cluster.wait_for_change(ALICE))
        await asyncio.sleep(0)
        world.api.events["pods"].put_nowait(("DELETED", pod(ready=False)))
        await changed
        assert world.cluster.pod(ALICE) is None
        world.api.events["userrealtimes"].put_nowait(("DELETED", resource()))
        world.api.events["userrealtimes"].put_nowait(("MODIFIED", resource(2, name="bob")))
        while world.requests.resource_version(NamespacedName("users", "bob")) != "2":
            await asyncio.sleep(0)
        assert world.routes.find(NAME, "/ws") is None


async def test_a_watch_that_fails_unexpectedly_ends_the_process() -> None:
    world = ReconcilerFixture()
    world.api.objects["pods"] = [{"metadata": {"name": "a"}}]
    with pytest.raises(KeyError):
        async with world.cluster.watching(world.api, ["users"]) as listed:  # type: ignore[arg-type]
            await listed


def test_a_new_list_removes_users_that_are_not_in_it() -> None:
    routes = RouteTable()
    tracker = WakeRequestTracker(routes)
    tracker.put(resource())
    tracker.put(resource(name="bob"))
    tracker.retain("others", set(), 1)
    assert len(tracker) == 2
    tracker.retain("users", {"alice"}, 2)
    assert len(tracker) == 1
    assert tracker.resource_version(NamespacedName("users", "bob")) is None
    assert routes.find(child_name("bob"), "/ws") is None
    assert routes.find(NAME, "/ws") == ALICE


async def test_a_request_counts_from_its_observation() -> None:
    tracker = WakeRequestTracker(RouteTable())
    before = time.monotonic()
    tracker.put(resource(1, FIRST))
    assert tracker.last_observed_at(ALICE.user) == 0
    tracker.put(resource(2, SECOND))
    first = tracker.last_observed_at(ALICE.user)
    assert before <= first <= time.monotonic()
    tracker.put(resource(3, SECOND))
    assert tracker.last_observed_at(ALICE.user) == first
    assert tracker.last_observed_at(NamespacedName("users", "bob")) == 0


async def test_waiting_for_another_version_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WATCH_DELAY_S", 0.01)
    tracker = WakeRequestTracker(RouteTable())
    tracker.put(resource())
    async with asyncio.timeout(PATIENCE_S):
        await tracker.wait_for_other_version(ALICE.user, "1")
        await tracker.wait_for_other_version(ALICE.user, "0")


def test_the_tracker_knows_the_parked_users() -> None:
    tracker = WakeRequestTracker(RouteTable())
    ended: list[NamespacedName] = []
    tracker.unparked = ended.append
    parked = resource(1)
    parked["status"]["state"] = "Parked"
    tracker.put(parked)
    assert tracker.is_parked(ALICE.user)
    assert not tracker.is_parked(NamespacedName("users", "bob"))
    tracker.put(parked)
    assert ended == []
    awake = resource(2)
    awake["status"]["state"] = "Awake"
    tracker.put(awake)
    tracker.put(awake)
    assert (tracker.is_parked(ALICE.user), ended) == (False, [ALICE.user])
    tracker.put(parked)
    tracker.remove(parked)
    assert (tracker.is_parked(ALICE.user), ended) == (False, [ALICE.user, ALICE.user])
