"""The problem of a pod, from its status."""

from __future__ import annotations

from typing import Any

import pytest

from userrealtime_operator.kube.types import Object
from userrealtime_operator.reconcile.pods import pod_trouble


def pod(created: str = "2026-01-01T00:00:00Z", *, scheduled: bool = True, **container: Any) -> Object:
    condition = {"type": "PodScheduled", "status": str(scheduled), "message": "0/1 nodes are available"}
    return {
        "metadata": {"creationTimestamp": created},
        "status": {"conditions": [condition], "containerStatuses": [{"image": "relay:9", "state": {}, **container}]},
    }


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"state": {"waiting": {"reason": reason, "message": message}}}


CRASHED: dict[str, Any] = waiting("CrashLoopBackOff", "back-off 40s restarting failed container")


@pytest.mark.parametrize(
    ("found", "reason", "part"),
    [
        (pod(scheduled=False), "Unschedulable", "0/1 nodes"),
        (pod(**waiting("CreateContainerConfigError", "no secret")), "CreateContainerConfigError", "no secret"),
        (pod(**CRASHED, lastState={"terminated": {"exitCode": 2, "reason": "Error"}}), "CrashLoopBackOff", "status 2"),
        (pod(**CRASHED, lastState={"terminated": {"reason": "OOMKilled"}}), "OOMKilled", "limits.memory"),
    ],
)
def test_trouble_is_named(found: Object, reason: str, part: str) -> None:
    trouble = pod_trouble([found])
    assert trouble is not None
    assert (trouble.true, trouble.reason) == (False, reason)
    assert part in trouble.message


def test_one_missing_image_always_reads_the_same() -> None:
    cause = 'failed to resolve "relay:9": not found'
    attempts = [
        waiting("ErrImagePull", cause),
        waiting("ImagePullBackOff", f'Back-off pulling image "relay:9": ErrImagePull: {cause}'),
    ]
    found = {pod_trouble([pod(**attempt)]) for attempt in attempts}
    assert len(found) == 1
    [trouble] = found
    assert trouble is not None
    assert trouble.reason == "ImagePullFailed"
    assert "relay:9" in trouble.message
    assert cause in trouble.message


@pytest.mark.parametrize("well", [pod(), pod(**waiting("ContainerCreating")), pod(state={"running": {}})])
def test_a_pod_on_its_way_is_no_trouble(well: Object) -> None:
    assert pod_trouble([well]) is None


def test_the_newest_living_pod_counts() -> None:
    stuck, newer = pod(scheduled=False), pod("2026-01-02T00:00:00Z")
    ending = pod("2026-01-03T00:00:00Z", scheduled=False)
    ending["metadata"]["deletionTimestamp"] = "2026-01-03T00:00:01Z"
    assert pod_trouble([]) is None
    assert pod_trouble([stuck, newer, ending]) is None
    assert pod_trouble([stuck, ending]) is not None
