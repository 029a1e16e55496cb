"""The comparison of a live object with the applied manifest."""

from __future__ import annotations

import copy

import pytest

from testing.operator.samples import CONFIG, SECRETS, resource
from userrealtime_operator.kube.drift import differences, is_subset
from userrealtime_operator.kube.types import Object
from userrealtime_operator.manifests.children import desired_objects

DESIRED: Object = desired_objects(resource(), CONFIG, SECRETS)[3]


def live() -> Object:
    """The Deployment as an API server returns it, with additional fields."""
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


@pytest.mark.parametrize(
    ("field", "added"),
    [
        ("containers", {"name": "sidecar"}),
        ("volumes", {"name": "sidecar"}),
        ("topologySpreadConstraints", {"topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}),
    ],
)
def test_an_item_that_another_manager_added_to_an_associative_list_is_no_drift(field: str, added: Object) -> None:
    """Server-side apply keeps it, so to apply again would change nothing."""
    item = live()
    item["spec"]["template"]["spec"].setdefault(field, []).insert(0, added)
    assert is_subset(DESIRED, item)


def test_an_additional_variable_is_no_drift_and_a_missing_one_is() -> None:
    item = live()
    env = item["spec"]["template"]["spec"]["containers"][0]["env"]
    env.insert(1, {"name": "EXTRA", "value": "1"})
    assert is_subset(DESIRED, item)
    removed = env.pop(0)["name"]
    assert differences(DESIRED, item) == {f"spec.template.spec.containers[relay].env[{removed}]"}


def test_an_additional_item_of_any_other_list_is_drift() -> None:
    item = live()
    item["spec"]["template"]["spec"]["volumes"][0]["secret"]["items"].append({"key": "other", "path": "other"})
    assert not is_subset(DESIRED, item)
    ingress = desired_objects(resource(), CONFIG, SECRETS)[4]
    assert ingress["kind"] == "Ingress"
    item = copy.deepcopy(ingress)
    item["spec"]["rules"].append({"host": "elsewhere.example.com"})
    assert differences(ingress, item) == {"spec.rules"}


def test_differences_name_the_fields() -> None:
    item = live()
    item["spec"]["replicas"] = 0
    item["spec"]["template"]["spec"]["containers"][0]["image"] = "mirror.example.com/relay:1"
    assert differences(DESIRED, item) == {"spec.replicas", "spec.template.spec.containers[relay].image"}


def test_an_addition_to_a_selector_is_drift() -> None:
    assert is_subset({"labels": {"a": "b"}}, {"labels": {"a": "b", "c": "d"}})
    assert not is_subset({"selector": {"a": "b"}}, {"selector": {"a": "b", "c": "d"}})


def test_nothing_desired_is_met_by_nothing() -> None:
    assert is_subset({"resources": {}, "items": []}, {})
