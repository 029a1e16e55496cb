"""Which versions of an object the store accepts."""

from __future__ import annotations

from typing import Any

from userrealtime_operator.kube.client import CHILD_KINDS
from userrealtime_operator.kube.store import KindStore, ObjectStore
from userrealtime_operator.kube.types import Object, ObjectKey

KEY = ObjectKey("Service", "users", "a")


def child(version: int, **more: Any) -> Object:
    return {"metadata": {"name": "a", "resourceVersion": str(version), "managedFields": ["long"]}, **more}


def test_objects_are_returned_without_managed_fields() -> None:
    children = ObjectStore()
    assert children.put(KEY, child(1, spec={"a": "ü"}))
    assert children.get(KEY) == {"metadata": {"name": "a", "resourceVersion": "1"}, "spec": {"a": "ü"}}
    assert children.get(ObjectKey("Secret", "users", "a")) is None
    assert list(children) == [KEY]


def test_known_and_older_versions_are_ignored() -> None:
    children = ObjectStore()
    assert children.put(KEY, child(9))
    assert not children.put(KEY, child(9))
    assert not children.put(KEY, child(8, spec="old"))
    assert not children.remove(KEY, 8)
    assert children.put(KEY, child(10))  # not by its digits
    assert children.remove(KEY, 11)
    assert not children.remove(KEY, 11)


def test_the_response_to_a_write_arrives_before_or_after_the_watch() -> None:
    children = ObjectStore()
    assert children.put(KEY, child(5), ours=True)
    assert not children.put(KEY, child(5))
    # Another client deletes it before the response arrives, and the watch has reported both changes.
    children.remove(KEY, 7)
    children.advance("Service", "users", 7)
    assert not children.put(KEY, child(6), ours=True)
    assert children.get(KEY) is None
    assert children.put(KEY, child(8), ours=True)


def test_retain_removes_objects_that_a_list_lacks() -> None:
    children = ObjectStore()
    for name, version in (("a", 1), ("b", 2), ("written-since", 9)):
        children.put(ObjectKey("Service", "users", name), child(version))
    children.put(ObjectKey("Secret", "users", "b"), child(2))
    children.put(ObjectKey("Service", "others", "b"), child(2))
    assert children.retain("Service", "users", {"a"}, 5) == ["b"]
    assert sorted(key for key in children if key[2] == "b") == [
        ObjectKey("Secret", "users", "b"),
        ObjectKey("Service", "others", "b"),
    ]
    assert children.get(ObjectKey("Service", "users", "written-since")) is not None


def test_an_older_list_replaces_everything() -> None:
    children = ObjectStore()
    children.put(KEY, child(90))
    children.put(ObjectKey("Secret", "users", "a"), child(90))
    children.advance("Service", "users", 100)
    children.begin_list("Service", "users", 100)
    assert not children.put(KEY, child(80))
    children.begin_list("Service", "users", 99)
    assert list(children) == [ObjectKey("Secret", "users", "a")]
    assert children.put(KEY, child(80), ours=True)


def test_the_store_of_a_kind_reports_changes_and_completes_objects() -> None:
    objects, changes = ObjectStore(), list[str]()
    store = KindStore(objects, "Service", CHILD_KINDS["Service"], "users", lambda key: changes.append(key.name))
    store.begin_list(5)
    store.put(child(1))
    store.put(child(1))
    store.retain("users", {"a"}, 5)
    assert objects.get(KEY) == {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "a", "resourceVersion": "1"},
    }
    store.remove(child(6))
    assert changes == ["a", "a"]
    store.advance(7)
    assert not objects.put(KEY, child(6), ours=True)
    objects.put(KEY, child(8))
    store.retain("users", set(), 9)
    assert changes == ["a", "a", "a"]
