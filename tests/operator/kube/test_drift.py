"""Whether a live object still is what was applied."""

from __future__ import annotations

import copy

import pytest

from testing.operator.samples import CONFIG, SECRETS, resource
from userrealtime_operator.kube.drift import is_subset
from userrealtime_operator.kube.types import Object
from userrealtime_operator.manifests.objects import desired_objects

DESIRED: Object = desired_objects(resource(), CONFIG, SECRETS)[2]


def live() -> Object:
    """The Deployment as an API server would give it back: with more in it."""
    item = copy.deepcopy(DESIRED)
    item["metadata"] |= {"uid": "1", "resourceVersion": "2"}
    item["metadata"]["annotations"]["deployment.kubernetes.io/revision"] = "1"
    item["spec"]["progressDeadlineSeconds"] = 600
    item["spec"]["template"]["spec"]["containers"][0]["terminationMessagePath"] = "/dev/termination-log"
    item["status"] = {"replicas": 1}
    return item


def test_what_the_server_adds_is_no_drift() -> None:
    assert is_subset(DESIRED, live())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "replicas"), 0),
        (("spec", "template", "spec", "containers", 0, "image"), "other"),
        (("spec", "template", "spec", "containers", 0, "env"), []),
        (("spec", "template", "spec", "automountServiceAccountToken"), True),
        (("metadata", "labels"), {}),
        (("metadata", "ownerReferences"), None),
        (("spec", "strategy"), {"type": "Recreate"}),
    ],
)
def test_every_edit_is_drift(path: tuple[str | int, ...], value: object) -> None:
    item = live()
    place = item
    for step in path[:-1]:
        place = place[step]  # type: ignore[index]
    place[path[-1]] = value  # type: ignore[index]
    assert not is_subset(DESIRED, item)


def test_an_additional_list_item_is_drift() -> None:
    item = live()
    item["spec"]["template"]["spec"]["containers"].append({"name": "sidecar"})
    assert not is_subset(DESIRED, item)


def test_an_addition_to_a_selector_is_drift() -> None:
    assert is_subset({"labels": {"a": "b"}}, {"labels": {"a": "b", "c": "d"}})
    assert not is_subset({"selector": {"a": "b"}}, {"selector": {"a": "b", "c": "d"}})


def test_nothing_desired_is_met_by_nothing() -> None:
    assert is_subset({"resources": {}, "items": []}, {})
