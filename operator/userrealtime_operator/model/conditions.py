"""Conditions of a resource: the type of their results, and the results for a Deployment. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NORMAL_REASONS = frozenset(
    {
        "Asleep",
        "Awake",
        "Creating",
        "FieldsContested",  # a webhook may change the objects of all users, and would cause one Event per user
        "Idle",
        "NeverSleeps",
        "Parked",
        "TooManyListeners",  # concerns the platform, and would be one Event per user
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
"""The reasons of conditions that are not a problem."""


@dataclass(frozen=True, slots=True)
class ConditionResult:
    """The result of one check. `true` is None if the result is unknown."""

    true: bool | None
    reason: str
    message: str = ""


def deployment_progress(live: Mapping[str, Any] | None) -> ConditionResult:
    """Return whether the Deployment is progressing (True) or complete (False)."""
    if live is None:
        return ConditionResult(True, "Creating", "the pod is being created")
    status = live.get("status", {})
    if status.get("observedGeneration", 0) < live["metadata"]["generation"]:
        return ConditionResult(True, "RollingOut", "the Deployment controller has not processed the new spec yet")
    wanted = live["spec"].get("replicas", 1)
    if status.get("updatedReplicas", 0) < wanted or status.get("replicas", 0) > wanted:
        if live["spec"].get("paused"):
            return ConditionResult(True, "RollingOut", "the Deployment is paused; see: kubectl rollout resume")
        return ConditionResult(True, "RollingOut", "a pod with the new spec is replacing the old pod")
    if status.get("availableReplicas", 0) < wanted:
        return ConditionResult(True, "PodStarting", "the pod is not ready yet")
    return ConditionResult(False, "PodAvailable", "")


def deployment_ready(live: Mapping[str, Any] | None) -> ConditionResult:
    """Return whether the Deployment has a pod that serves clients."""
    if live is None:
        return ConditionResult(False, "PodMissing", "the Deployment has not been created yet")
    conditions = {condition["type"]: condition for condition in live.get("status", {}).get("conditions", [])}
    # One available pod is enough. The condition Available of the Deployment is not used: it needs all replicas, and it
    # is also True with 0 replicas, as for a user that was just woken.
    if live.get("status", {}).get("availableReplicas"):
        return ConditionResult(True, "PodAvailable", "the relay serves clients")
    if conditions.get("ReplicaFailure", {}).get("status") == "True":
        return _refused(conditions["ReplicaFailure"].get("message", ""))
    return ConditionResult(False, "PodNotReady", "the pod is not ready yet; see: kubectl describe pod")


def pod_available(live: Mapping[str, Any] | None) -> bool:
    """Return whether the current version of the Deployment has a ready pod."""
    if live is None:
        return False
    status = live.get("status", {})
    seen = status.get("observedGeneration", 0) >= live["metadata"]["generation"]
    return bool(seen and status.get("availableReplicas", 0))


def has_available_pod(live: Mapping[str, Any] | None) -> bool:
    """Return whether a Deployment has a ready pod, of its current version or an earlier one."""
    return live is not None and bool(live.get("status", {}).get("availableReplicas", 0))


def _refused(message: str) -> ConditionResult:
    """Return why the API server rejects the pod, from the message of the condition ReplicaFailure."""
    # The part before contains the name of the pod, which is different each time.
    cause = message.rpartition("is forbidden: ")[2]
    if cause.startswith("exceeded quota"):
        return ConditionResult(False, "QuotaExceeded", f"the namespace's ResourceQuota rejects the pod: {cause}")
    if cause.startswith("violates PodSecurity"):
        return ConditionResult(False, "PodSecurityViolation", f"the Pod Security Standard rejects the pod: {cause}")
    return ConditionResult(False, "PodRefused", f"the pod cannot be created: {cause}")


def condition_of(status: Mapping[str, Any], kind: str) -> Mapping[str, Any] | None:
    """Return a condition of a status, or None."""
    return next((each for each in status.get("conditions", ()) if each["type"] == kind), None)


def true_since(status: Mapping[str, Any], kind: str) -> str | None:
    """Return the time since which a condition of a status is True, or None."""
    condition = condition_of(status, kind)
    return str(condition["lastTransitionTime"]) if condition and condition["status"] == "True" else None


def readiness(pod: ConditionResult, database: ConditionResult) -> ConditionResult:
    """Return the condition Ready. A pod that is only not ready yet may be waiting for the database."""
    return database if not database.true and pod.reason in NORMAL_REASONS else pod
