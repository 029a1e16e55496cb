"""The cache of resources, and which changes of a resource require a reconciliation."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

from testing.operator.names import NAMES, child_name
from testing.operator.samples import body
from userrealtime_operator.kube.types import Object
from userrealtime_operator.model.labels import RESOURCE_ANNOTATIONS
from userrealtime_operator.model.resource import parse_resource
from userrealtime_operator.reconcile.resources import Resources

MANAGED = [
    {"manager": "kubectl-create", "operation": "Update", "time": "2026-01-01T00:00:00Z", "fieldsV1": {"f:spec": {}}},
    {"manager": "userrealtime-operator", "time": "2026-01-03T00:00:00Z", "subresource": "status"},
    {"manager": "signup", "operation": "Apply", "time": "2026-01-02T00:00:00Z"},
]
MANAGERS = [{"manager": "signup"}, {"manager": "kubectl-create"}]


def resource(version: int, name: str = "alice", uid: str = "", status: Object | None = None, **spec: Any) -> Object:
    item = body(name, **spec)
    item["metadata"] |= {"resourceVersion": str(version), "managedFields": MANAGED}
    if uid:
        item["metadata"]["uid"] = uid
    return {**item, "status": status} if status is not None else item


def test_the_annotations_that_the_operator_reads_are_kept() -> None:
    item = resource(1)
    item["metadata"]["annotations"] = {name: f"of {name}" for name in RESOURCE_ANNOTATIONS} | {"note": "text"}
    resources = Resources(NAMES)
    resources.put(item)
    found = resources.get(("users", "alice"))
    assert found is not None
    assert found["metadata"]["annotations"].keys() == RESOURCE_ANNOTATIONS
    # Otherwise an annotation that a resource has would be ignored.
    assert parse_resource(found, NAMES) == replace(
        parse_resource(item, NAMES), field_managers=tuple(each["manager"] for each in MANAGERS)
    )


def test_a_resource_is_found_by_its_place_and_by_its_children() -> None:
    resources = Resources(NAMES)
    assert resources.put(resource(1))
    assert resources.put(resource(2, "again", userId="alice"))
    found = resources.get(("users", "alice"))
    assert found is not None
    assert (found["spec"]["userId"], found["status"]) == ("alice", {})
    assert found["metadata"]["managedFields"] == MANAGERS
    assert resources.owners("users", child_name("alice")) == ["again", "alice"]
    assert resources.uids("users") == {"uid-of-alice": "alice", "uid-of-again": "again"}
    assert resources.uids("others") == {}
    resources.remove("users", "alice", "uid-of-alice")
    assert resources.owners("users", child_name("alice")) == ["again"]
    resources.remove("users", "again", "uid-of-again")
    assert resources.owners("users", child_name("alice")) == []
    assert list(resources) == []


def test_a_status_of_ours_is_no_news_and_one_of_somebody_else_is() -> None:
    resources = Resources(NAMES)
    resources.put(resource(1))
    assert not resources.put(resource(2, status={"url": "a"}), ours=True)
    assert not resources.put(resource(2, status={"url": "a"}))
    assert resources.get(("users", "alice")) == {
        **body(),
        "metadata": {**body()["metadata"], "resourceVersion": "2", "managedFields": MANAGERS},
        "status": {"url": "a"},
    }
    assert not resources.put(resource(3, status={"url": "a"}))  # no relevant change
    assert resources.put(resource(4, status={"url": "b"}))


def test_a_foreign_status_change_in_a_response_is_new() -> None:
    resources = Resources(NAMES)
    resources.put(resource(1))
    assert resources.put(resource(3, status={"url": "a", "wakeRequestedAt": "now"}), ours=True)
    found = resources.get(("users", "alice"))
    assert found is not None
    assert found["status"] == {"url": "a", "wakeRequestedAt": "now"}
    assert not resources.put(resource(3, status={"url": "a", "wakeRequestedAt": "now"}))


def test_a_spec_that_comes_with_the_answer_to_a_status_is_news() -> None:
    resources = Resources(NAMES)
    resources.put(resource(1))
    assert resources.put(resource(3, status={}, route={"enabled": False}), ours=True)
    assert not resources.put(resource(2, route={"enabled": False}))


def test_the_answer_to_a_status_brings_no_resource_back() -> None:
    resources = Resources(NAMES)
    assert not resources.put(resource(1), ours=True)
    resources.put(resource(5, uid="second"))
    assert not resources.put(resource(6, uid="first"), ours=True)
    resources.remove("users", "alice", "first")
    assert resources.uids("users") == {"second": "alice"}


def test_one_of_the_same_name_takes_the_place() -> None:
    resources = Resources(NAMES)
    resources.put(resource(1))
    assert resources.put(resource(2, uid="second", userId="bob"))
    assert resources.owners("users", child_name("alice")) == []
    assert resources.owners("users", child_name("bob")) == ["alice"]


def test_a_resource_that_was_listed_holds_though_it_is_older() -> None:
    resources = Resources(NAMES)
    resources.put(resource(9, route={"enabled": False}))
    assert not resources.put(resource(8))
    assert resources.put(resource(8), listed=True)
    assert not resources.put(resource(8), listed=True)


def test_conditions_are_counted() -> None:
    resources = Resources(NAMES)
    ready = {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Progressing", "status": "False"}]}
    resources.put(resource(1, status=ready))
    resources.put(resource(2, "bob", status=json.loads(json.dumps(ready).replace("True", "False"))))
    assert resources.conditions() == Counter({("Ready", "True"): 1, ("Ready", "False"): 1, ("Progressing", "False"): 2})
