"""Which tasks follow from which change."""

from __future__ import annotations

from typing import Any

import pytest

from testing.operator.names import NAMES, OPAQUE, child_name
from testing.operator.samples import body
from userrealtime_operator.kube.store import ObjectStore
from userrealtime_operator.kube.types import NamespacedName, Object, ObjectKey
from userrealtime_operator.model.naming import CREDENTIALS_SUFFIX, SLICE_SUFFIX
from userrealtime_operator.reconcile.feed import GATHER_S, Feed
from userrealtime_operator.reconcile.resources import Resources
from userrealtime_operator.reconcile.triggers import Kind, Task, Trigger, Triggers
from userrealtime_operator.reconcile.workqueue import WorkQueue
from userrealtime_operator.sleep.state import SINCE, WAKE_SEEN

ALICE = NamespacedName("users", "alice")
ALICES = child_name("alice")
RECONCILE = Task(Kind.RESOURCE, "users", "alice")
AGAIN = Task(Kind.RESOURCE, "users", "alice-again")


def resource(version: int = 1, name: str = "alice", status: Object | None = None, **spec: Any) -> Object:
    item = body(name, userId="alice", **spec)
    item["metadata"]["resourceVersion"] = str(version)
    return {**item, "status": status or {}}


def child(kind: str, name: str, version: int = 1, **more: Any) -> tuple[ObjectKey, Object]:
    metadata = {"namespace": "users", "name": name, "resourceVersion": str(version), **more.pop("metadata", {})}
    return ObjectKey(kind, "users", name), {"kind": kind, "metadata": metadata, **more}


def sleeping(wake_seen: str = "") -> tuple[ObjectKey, Object]:
    annotations = {SINCE: "2026-01-02T03:04:05.000000Z", WAKE_SEEN: wake_seen}
    return child("Deployment", ALICES, metadata={"annotations": annotations}, spec={"replicas": 0})


class Caches:
    def __init__(self, *resources: Object, children: tuple[tuple[ObjectKey, Object], ...] = ()) -> None:
        self.resources, self.children = Resources(NAMES), ObjectStore()
        for item in resources:
            self.resources.put(item)
        for key, item in children:
            self.children.put(key, item)
        self.triggers = Triggers(self.resources, self.children)


REQUESTED = {"wakeRequestedAt": "2026-01-02T03:05:00.000000Z"}


@pytest.mark.parametrize(
    ("status", "deployment", "urgent"),
    [
        ({}, None, False),
        ({}, sleeping(), False),
        (REQUESTED, sleeping(), True),
        (REQUESTED, sleeping(REQUESTED["wakeRequestedAt"]), False),
        (REQUESTED, child("Deployment", ALICES, spec={"replicas": 1}), False),
    ],
    ids=["new", "asleep", "wake requested", "request from before the sleep", "awake"],
)
def test_a_user_is_urgent_while_a_wake_is_requested(
    status: Object, deployment: tuple[ObjectKey, Object] | None, urgent: bool
) -> None:
    caches = Caches(resource(status=status), children=(deployment,) if deployment else ())
    assert caches.triggers.user(ALICE) == Trigger(RECONCILE, urgent)


def test_a_user_without_a_resource_is_not_urgent() -> None:
    assert Caches().triggers.user(ALICE) == Trigger(RECONCILE)


@pytest.mark.parametrize(
    ("kind", "name", "tasks"),
    [
        ("Secret", ALICES, [RECONCILE]),
        ("Deployment", ALICES, [RECONCILE]),
        ("Secret", ALICES + CREDENTIALS_SUFFIX, [RECONCILE]),
        ("EndpointSlice", ALICES + SLICE_SUFFIX, [RECONCILE]),
        ("Service", ALICES + SLICE_SUFFIX, [Task(Kind.ORPHAN, "users", ALICES + SLICE_SUFFIX)]),
        ("Secret", "urt-bob" + CREDENTIALS_SUFFIX, [Task(Kind.ORPHAN, "users", "urt-bob")]),
        ("Secret", "urt-bob", [Task(Kind.ORPHAN, "users", "urt-bob")]),
        ("EndpointSlice", "urt-bob" + SLICE_SUFFIX, [Task(Kind.ORPHAN, "users", "urt-bob")]),
    ],
)
def test_a_changed_child_is_matched_by_its_name(kind: str, name: str, tasks: list[Task]) -> None:
    found = Caches(resource()).triggers.child_changed(ObjectKey(kind, "users", name))
    assert [trigger.task for trigger in found] == tasks


def test_all_resources_of_a_user_follow_from_a_changed_child() -> None:
    caches = Caches(resource(), resource(name="alice-again"))
    found = caches.triggers.child_changed(ObjectKey("Secret", "users", ALICES))
    assert [trigger.task for trigger in found] == [RECONCILE, AGAIN]


def test_a_child_with_a_name_of_another_key_is_an_orphan() -> None:
    """The user's objects have opaque names, and this one is from before."""
    resources, children = Resources(OPAQUE), ObjectStore()
    resources.put(resource())
    triggers = Triggers(resources, children)
    key = ObjectKey("Deployment", "users", ALICES)
    assert list(triggers.child_changed(key)) == [Trigger(Task(Kind.ORPHAN, "users", ALICES))]
    opaque = ObjectKey("Deployment", "users", OPAQUE.child_name("alice"))
    assert list(triggers.child_changed(opaque)) == [Trigger(Task(Kind.RESOURCE, "users", "alice"))]


def test_a_child_of_another_namespace_is_an_orphan() -> None:
    found = Caches(resource()).triggers.child_changed(ObjectKey("Secret", "others", ALICES))
    assert [trigger.task for trigger in found] == [Task(Kind.ORPHAN, "others", ALICES)]


def slice_of(user: str, *, ready: bool) -> tuple[ObjectKey, Object]:
    endpoints = [{"addresses": ["10.0.0.1"], "conditions": {"ready": ready}}]
    return child("EndpointSlice", child_name(user) + SLICE_SUFFIX, addressType="IPv4", endpoints=endpoints)


def test_activators_that_change_concern_all_users() -> None:
    """First the users whose connections reach activators now."""
    others = [{**resource(name=name), "spec": {"userId": name}} for name in ("bob", "carol")]
    children = (child("Secret", "urt-dave"), slice_of("bob", ready=False), slice_of("carol", ready=True))
    caches = Caches(resource(), *others, children=children)
    found = [trigger.task.name for trigger in caches.triggers.activators_changed()]
    assert found == ["carol", "alice", "bob"]


@pytest.mark.parametrize("sleep", [True, False])
def test_a_leader_begins_with_everything(sleep: bool) -> None:
    caches = Caches(resource(), children=(child("Secret", ALICES), child("Secret", "urt-bob")))
    assert [trigger.task for trigger in caches.triggers.lead(["users"], sleep=sleep)] == [
        Task(Kind.SWEEP, "users"),
        *([Task(Kind.IDLE, "users")] if sleep else []),
        Task(Kind.PRUNE),
        RECONCILE,
        Task(Kind.ORPHAN, "users", "urt-bob"),
    ]


class RecordingQueue(WorkQueue[Task]):
    def __init__(self) -> None:
        super().__init__()
        self.added: list[Task] = []
        self.later: list[Task] = []

    def add(self, key: Task, *, urgent: bool = False) -> None:
        self.added.append(key)

    def add_later(self, key: Task, delay_s: float) -> None:
        assert delay_s == GATHER_S
        self.later.append(key)


class Fed:
    """A feed, its caches, and the tasks that it has added."""

    def __init__(self) -> None:
        self.resources, self.children, self.queue = Resources(NAMES), ObjectStore(), RecordingQueue()
        self.feed = Feed(self.resources, self.children, self.queue)

    def tasks(self) -> list[Task]:
        added, self.queue.added = self.queue.added, []
        return added

    def gathered(self) -> list[Task]:
        later, self.queue.later = self.queue.later, []
        return later


def test_no_task_is_added_before_the_caches_are_complete() -> None:
    fed = Fed()
    fed.feed.resource_event(None, resource())
    fed.feed.child_changed(ObjectKey("Secret", "users", ALICES))
    assert not fed.feed.has_synced
    assert fed.tasks() == fed.gathered() == []
    fed.feed.mark_synced()
    fed.feed.resource_event("MODIFIED", resource(2, image="other"))
    fed.feed.child_changed(ObjectKey("Secret", "users", ALICES))
    assert fed.tasks() == fed.gathered() == [RECONCILE]


def test_the_changed_child_of_a_user_that_must_wake_is_not_delayed() -> None:
    fed = Fed()
    fed.feed.mark_synced()
    fed.feed.resource_event("ADDED", resource(1, status=REQUESTED))
    fed.tasks()
    key, item = sleeping()
    fed.children.put(key, item)
    fed.feed.child_changed(key)
    assert (fed.tasks(), fed.gathered()) == ([RECONCILE], [])


def test_an_event_that_changes_nothing_adds_no_task() -> None:
    fed = Fed()
    fed.feed.mark_synced()
    fed.feed.resource_event("ADDED", resource(2))
    assert fed.tasks() == [RECONCILE]
    fed.feed.resource_event("MODIFIED", resource(1))
    fed.feed.resource_event(None, resource(2))
    assert fed.tasks() == []


def test_a_deleted_resource_is_swept() -> None:
    fed = Fed()
    fed.feed.mark_synced()
    fed.feed.resource_event("ADDED", resource(1))
    fed.feed.resource_event("DELETED", resource(2))
    assert fed.tasks() == [RECONCILE, Task(Kind.SWEEP, "users")]
    assert fed.resources.get(ALICE) is None


def test_the_watch_event_of_a_write_of_this_process_adds_no_task() -> None:
    fed = Fed()
    fed.feed.mark_synced()
    fed.feed.resource_event("ADDED", resource(1))
    fed.tasks()
    written = resource(2, status={"name": ALICES})
    fed.feed.stored(written)
    fed.feed.resource_event("MODIFIED", written)
    key, secret = child("Secret", ALICES, 3)
    fed.feed.stored(secret)
    assert fed.tasks() == []
    assert fed.children.get(key) is not None


def test_a_change_that_arrives_with_the_response_to_a_write_adds_a_task() -> None:
    fed = Fed()
    fed.feed.mark_synced()
    fed.feed.resource_event("ADDED", resource(1))
    fed.tasks()
    fed.feed.stored(resource(3, status={"name": ALICES}, image="other"))
    assert fed.tasks() == [RECONCILE]


def test_a_written_slice_continues_the_steps_of_sleep() -> None:
    fed = Fed()
    fed.feed.mark_synced()
    fed.feed.resource_event("ADDED", resource(1))
    fed.tasks()
    fed.feed.stored(child("EndpointSlice", ALICES + SLICE_SUFFIX)[1])
    assert fed.gathered() == [RECONCILE]
