"""What a resource says of itself: conditions in the manner of the API conventions. Pure.

`Ready` sums up; `Progressing`, `DatabaseReady` and `Asleep` say where it stands. A condition keeps the time of its last
change of status, and a status that says the same is not written again, so there are no heartbeats.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from userrealtime_operator.manifests.objects import Object
from userrealtime_operator.model.resource import UserRealtime
from userrealtime_operator.model.routes import Route
from userrealtime_operator.secrets.token_keys import TOKEN_KEY

USUAL = frozenset(
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
class Finding:
    """The outcome of one question. `true` is None where it cannot be told."""

    true: bool | None
    reason: str
    message: str = ""


def deployment_progress(live: Mapping[str, Any] | None) -> Finding:
    """Whether the Deployment is on its way (`true`) or has arrived (False), from the object itself."""
    if live is None:
        return Finding(True, "Creating", "the pod is being created")
    status = live.get("status", {})
    if status.get("observedGeneration", 0) < live["metadata"]["generation"]:
        return Finding(True, "RollingOut", "the Deployment has a new spec")
    wanted = live["spec"].get("replicas", 1)
    if status.get("updatedReplicas", 0) < wanted or status.get("replicas", 0) > wanted:
        return Finding(True, "RollingOut", "a pod with the new spec replaces the old one")
    if status.get("availableReplicas", 0) < wanted:
        return Finding(True, "PodStarting", "the pod is not ready yet")
    return Finding(False, "PodAvailable", "")


def deployment_ready(live: Mapping[str, Any] | None) -> Finding:
    """Whether clients are served, from the Deployment."""
    if live is None:
        return Finding(False, "PodMissing", "the Deployment has not been created yet")
    conditions = {condition["type"]: condition for condition in live.get("status", {}).get("conditions", [])}
    # Of several pods one is enough, of which the Deployment says no such thing. One of 0 replicas, as of a user who was
    # just woken, is Available as well.
    if live.get("status", {}).get("availableReplicas"):
        return Finding(True, "PodAvailable", "the relay serves clients")
    if conditions.get("ReplicaFailure", {}).get("status") == "True":
        return _refused(conditions["ReplicaFailure"].get("message", ""))
    return Finding(False, "PodNotReady", "the pod is not ready yet; see: kubectl describe pod")


def pod_available(live: Mapping[str, Any] | None) -> bool:
    """Whether the Deployment, as it is now, has a pod that is ready."""
    if live is None:
        return False
    status = live.get("status", {})
    seen = status.get("observedGeneration", 0) >= live["metadata"]["generation"]
    return bool(seen and status.get("availableReplicas", 0))


def _refused(message: str) -> Finding:
    """Why the API server makes no pod, from the message of the Deployment's condition ReplicaFailure."""
    # What stands before names the pod that was not made, a new one each time.
    cause = message.rpartition("is forbidden: ")[2]
    if cause.startswith("exceeded quota"):
        return Finding(False, "QuotaExceeded", f"the namespace's quota leaves no room for the pod: {cause}")
    if cause.startswith("violates PodSecurity"):
        return Finding(False, "PodSecurityViolation", f"the namespace does not admit the pod: {cause}")
    return Finding(False, "PodRefused", f"the pod cannot be made: {cause}")


def condition_of(status: Mapping[str, Any], kind: str) -> Mapping[str, Any] | None:
    """A condition of a status, None if it has none of the kind."""
    return next((each for each in status.get("conditions", ()) if each["type"] == kind), None)


def since(status: Mapping[str, Any], kind: str) -> str | None:
    """Since when a condition of a status is True, None if it is not."""
    condition = condition_of(status, kind)
    return str(condition["lastTransitionTime"]) if condition and condition["status"] == "True" else None


PAST_RANGE = Finding(
    False,
    "ListenPastRange",
    "so many pods LISTEN that every commit waits for all of them to be woken; set up a broker (signals.type of the "
    "chart, docs/scale.md)",
)


def readiness(pod: Finding, database: Finding) -> Finding:
    """What counts for the user. A pod that only is not there yet may be waiting for the database itself."""
    return database if not database.true and pod.reason in USUAL else pod


def _conditions(
    generation: int, now: str, previous: Iterable[Mapping[str, Any]], findings: Mapping[str, Finding]
) -> list[Object]:
    before = {condition["type"]: condition for condition in previous}
    conditions = []
    for kind, finding in findings.items():
        status = {True: "True", False: "False", None: "Unknown"}[finding.true]
        old = before.get(kind)
        since = old["lastTransitionTime"] if old and old["status"] == status else now
        conditions.append(
            {
                "type": kind,
                "status": status,
                "reason": finding.reason,
                "message": finding.message,
                "observedGeneration": generation,
                "lastTransitionTime": since,
            }
        )
    return conditions


def next_status(
    resource: UserRealtime,
    previous: Mapping[str, Any],
    route: Route | None,
    findings: Mapping[str, Finding],
    now: str,
    asleep_since: str | None = None,
) -> Object:
    """The whole status, but for what others write. `now` is RFC 3339; `previous` is the status as it stands, and equal
    to the result if nothing has changed. Absent values are None, which a merge patch takes for their removal."""
    status: Object = {
        "observedGeneration": resource.generation,
        "name": resource.child_name,
        "url": route.url if route else None,
        "asleepSince": asleep_since,
        "tokenSecret": {"name": resource.child_name, "key": TOKEN_KEY},
        "conditions": _conditions(resource.generation, now, previous.get("conditions", ()), findings),
    }
    return status


def differs(status: Mapping[str, Any], previous: Mapping[str, Any]) -> bool:
    """Whether a status has to be written."""
    return any(previous.get(key) != value for key, value in status.items())
