"""What a resource says of itself: conditions in the manner of the API conventions. Pure.

`Ready` sums up; `Progressing` and `DatabaseReady` say where it stands. A condition keeps the time of its last change of
status, and a status that says the same is not written again, so there are no heartbeats.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .desired import Object
from .resource import UserRealtime
from .rotation import TOKEN_KEY
from .routes import Route


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
    if conditions.get("Available", {}).get("status") == "True":
        return Finding(True, "PodAvailable", "the relay serves clients")
    for kind in ("ReplicaFailure", "Progressing"):
        # ReplicaFailure: the pod is refused (quota, admission). Progressing is False once its deadline has passed.
        condition = conditions.get(kind, {})
        if condition.get("status") == ("True" if kind == "ReplicaFailure" else "False"):
            return Finding(False, condition.get("reason") or kind, condition.get("message", ""))
    return Finding(False, "PodNotReady", "the pod is not ready yet; see: kubectl describe pod")


def summary(*findings: Finding) -> Finding:
    """The first finding that is not true, or else the first one."""
    return next((finding for finding in findings if not finding.true), findings[0])


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
) -> Object:
    """The whole status. `now` is RFC 3339; `previous` is the status as it stands, and equal to the result if nothing
    has changed. Absent values are None, which a merge patch takes for their removal."""
    status: Object = {
        "observedGeneration": resource.generation,
        "name": resource.child_name,
        "url": route.url if route else None,
        "tokenSecret": {"name": resource.child_name, "key": TOKEN_KEY},
        "conditions": _conditions(resource.generation, now, previous.get("conditions", ()), findings),
    }
    return status


def differs(status: Mapping[str, Any], previous: Mapping[str, Any]) -> bool:
    """Whether a status has to be written."""
    return any(previous.get(key) != value for key, value in status.items())
