"""The conditions of a resource."""

from __future__ import annotations

from typing import Any

import pytest

from testing.operator.samples import resource
from userrealtime_operator.model.conditions import (
    ConditionResult,
    deployment_progress,
    deployment_ready,
    pod_available,
    readiness,
)
from userrealtime_operator.model.routes import parse_url
from userrealtime_operator.reconcile.status import differs, next_status

GOOD = ConditionResult(True, "Good", "all is well")
BAD = ConditionResult(False, "Bad", "it is not")


def deployment(generation: int = 1, conditions: dict[str, tuple[str, str]] | None = None, **status: int) -> Any:
    return {
        "metadata": {"generation": generation},
        "spec": {"replicas": 1},
        "status": {
            "observedGeneration": 1,
            **status,
            "conditions": [
                {"type": kind, "status": value, "reason": reason, "message": f"because {reason}"}
                for kind, (value, reason) in (conditions or {}).items()
            ],
        },
    }


ARRIVED: dict[str, Any] = {"replicas": 1, "updatedReplicas": 1, "availableReplicas": 1}


@pytest.mark.parametrize(
    ("live", "progressing", "reason"),
    [
        (None, True, "Creating"),
        (deployment(generation=2, **ARRIVED), True, "RollingOut"),
        (deployment(replicas=2, updatedReplicas=1, availableReplicas=2), True, "RollingOut"),
        (deployment(replicas=1, updatedReplicas=1), True, "PodStarting"),
        (deployment(**ARRIVED), False, "PodAvailable"),
    ],
)
def test_progress(live: Any, progressing: bool, reason: str) -> None:
    finding = deployment_progress(live)
    assert (finding.true, finding.reason) == (progressing, reason)


@pytest.mark.parametrize(
    ("live", "available"),
    [
        (None, False),
        (deployment(), False),
        (deployment(**ARRIVED), True),
        (deployment(generation=2, **ARRIVED), False),  # it reports on the previous spec
    ],
)
def test_a_pod_that_is_there_now(live: Any, available: bool) -> None:
    assert pod_available(live) is available


@pytest.mark.parametrize(
    ("live", "ready", "reason"),
    [
        (None, False, "PodMissing"),
        (deployment(), False, "PodNotReady"),
        (deployment(conditions={"Available": ("True", "x")}, **ARRIVED), True, "PodAvailable"),
        (deployment(conditions={"Available": ("True", "x")}), False, "PodNotReady"),  # of 0 replicas
        (deployment(conditions={"Available": ("False", "x")}, availableReplicas=1), True, "PodAvailable"),
        (deployment(conditions={"Available": ("False", "x"), "Progressing": ("True", "y")}), False, "PodNotReady"),
        (deployment(conditions={"Progressing": ("False", "ProgressDeadlineExceeded")}), False, "PodNotReady"),
        (deployment(conditions={"ReplicaFailure": ("True", "FailedCreate")}), False, "PodRefused"),
    ],
)
def test_readiness(live: Any, ready: bool, reason: str) -> None:
    finding = deployment_ready(live)
    assert (finding.true, finding.reason) == (ready, reason)
    assert finding.message


@pytest.mark.parametrize(
    ("pod", "database", "counts"),
    [
        (ConditionResult(True, "PodAvailable"), GOOD, "PodAvailable"),
        (ConditionResult(True, "PodAvailable"), BAD, "Bad"),
        (ConditionResult(False, "PodNotReady"), BAD, "Bad"),
        (ConditionResult(False, "PodNotReady"), GOOD, "PodNotReady"),
        (ConditionResult(False, "ImagePullFailed"), BAD, "ImagePullFailed"),
    ],
)
def test_what_counts_for_the_user(pod: ConditionResult, database: ConditionResult, counts: str) -> None:
    assert readiness(pod, database).reason == counts


def test_a_status_that_says_the_same_is_not_written_again() -> None:
    route = parse_url("https://h/x")
    first = next_status(resource(), {}, route, {"Ready": GOOD}, "T1")
    again = next_status(resource(), first, route, {"Ready": GOOD}, "T2")
    assert differs(first, {})
    assert not differs(again, first)


def test_the_time_is_that_of_the_last_change_of_status() -> None:
    first = next_status(resource(), {}, None, {"Ready": BAD}, "T1")
    other_reason = next_status(resource(), first, None, {"Ready": ConditionResult(False, "Worse")}, "T2")
    turned = next_status(resource(), other_reason, None, {"Ready": GOOD}, "T3")
    assert differs(other_reason, first)
    assert [status["conditions"][0]["lastTransitionTime"] for status in (first, other_reason, turned)] == [
        "T1",
        "T1",
        "T3",
    ]


def test_a_status_names_what_clients_and_signup_flows_need() -> None:
    status = next_status(resource(), {}, parse_url("https://h/x"), {"Ready": ConditionResult(None, "Odd")}, "T1")
    assert status["url"] == "https://h/x"
    assert status["tokenSecret"] == {"name": resource().child_name, "key": "TOKEN_KEY"}
    assert status["observedGeneration"] == 1
    assert status["conditions"][0]["status"] == "Unknown"


def test_a_route_taken_away_is_removed_by_the_patch_and_written_once() -> None:
    first = next_status(resource(), {}, parse_url("https://h/x"), {"Ready": GOOD}, "T1")
    second = next_status(resource(), first, None, {"Ready": GOOD}, "T2")
    assert second["url"] is None
    stored = {key: value for key, value in second.items() if value is not None}
    assert not differs(next_status(resource(), stored, None, {"Ready": GOOD}, "T3"), stored)
