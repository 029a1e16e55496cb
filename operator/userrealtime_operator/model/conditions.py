"""Conditions of a resource: their results, and those that follow from a Deployment alone. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NORMAL_REASONS = frozenset(
    {
        "Asleep",
        "Awake",
        "Creating",
        "Idle",
        "NeverSleeps",
        "ListenPastRange",  # of hundreds at once: what it says is for the platform
        "PodAvailable",
        "PodMissing",
        "PodNotReady",
        "PodStarting",
        "Registered",
        "RollingOut",
        "RolloutWaiting",
        "WakeRequested",
    }
)
"""The reasons of conditions that are no trouble."""


@dataclass(frozen=True, slots=True)
class ConditionResult:
    """The outcome of one question. `true` is None where it cannot be told."""

    true: bool | None
    reason: str
    message: str = ""


def deployment_progress(live: Mapping[str, Any] | None) -> ConditionResult:
    """Whether the Deployment is on its way (`true`) or has arrived (False), from the object itself."""
    if live is None:
        return ConditionResult(True, "Creating", "the pod is being created")
    status = live.get("status", {})
    if status.get("observedGeneration", 0) < live["metadata"]["generation"]:
        return ConditionResult(True, "RollingOut", "the Deployment controller has not processed the new spec yet")
    wanted = live["spec"].get("replicas", 1)
    if status.get("updatedReplicas", 0) < wanted or status.get("replicas", 0) > wanted:
        return ConditionResult(True, "RollingOut", "a pod with the new spec is replacing the old pod")
    if status.get("availableReplicas", 0) < wanted:
        return ConditionResult(True, "PodStarting", "the pod is not ready yet")
    return ConditionResult(False, "PodAvailable", "")


def deployment_ready(live: Mapping[str, Any] | None) -> ConditionResult:
    """Whether clients are served, from the Deployment."""
    if live is None:
        return ConditionResult(False, "PodMissing", "the Deployment has not been created yet")
    conditions = {condition["type"]: condition for condition in live.get("status", {}).get("conditions", [])}
    # Of several pods one is enough, of which the Deployment says no such thing. One of 0 replicas, as of a user who was
    # just woken, is Available as well.
    if live.get("status", {}).get("availableReplicas"):
        return ConditionResult(True, "PodAvailable", "the relay serves clients")
    if conditions.get("ReplicaFailure", {}).get("status") == "True":
        return _refused(conditions["ReplicaFailure"].get("message", ""))
    return ConditionResult(False, "PodNotReady", "the pod is not ready yet; see: kubectl describe pod")


def pod_available(live: Mapping[str, Any] | None) -> bool:
    """Whether the Deployment, as it is now, has a pod that is ready."""
    if live is None:
        return False
    status = live.get("status", {})
    seen = status.get("observedGeneration", 0) >= live["metadata"]["generation"]
    return bool(seen and status.get("availableReplicas", 0))


def _refused(message: str) -> ConditionResult:
    """Why the API server makes no pod, from the message of the Deployment's condition ReplicaFailure."""
    # What stands before names the pod that was not made, a new one each time.
    cause = message.rpartition("is forbidden: ")[2]
    if cause.startswith("exceeded quota"):
        return ConditionResult(False, "QuotaExceeded", f"the namespace's ResourceQuota rejects the pod: {cause}")
    if cause.startswith("violates PodSecurity"):
        return ConditionResult(False, "PodSecurityViolation", f"the Pod Security Standard rejects the pod: {cause}")
    return ConditionResult(False, "PodRefused", f"the pod cannot be created: {cause}")


def condition_of(status: Mapping[str, Any], kind: str) -> Mapping[str, Any] | None:
    """A condition of a status, None if it has none of the kind."""
    return next((each for each in status.get("conditions", ()) if each["type"] == kind), None)


def true_since(status: Mapping[str, Any], kind: str) -> str | None:
    """Since when a condition of a status is True, None if it is not."""
    condition = condition_of(status, kind)
    return str(condition["lastTransitionTime"]) if condition and condition["status"] == "True" else None


def readiness(pod: ConditionResult, database: ConditionResult) -> ConditionResult:
    """What counts for the user. A pod that only is not there yet may be waiting for the database itself."""
    return database if not database.true and pod.reason in NORMAL_REASONS else pod
