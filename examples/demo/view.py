"""The page's view of a user, computed from the objects of the cluster. No I/O."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Object = dict[str, Any]


def describe(resource: Object | None, pods: Iterable[Object]) -> Object:
    """Return the view of a user's resource and pods, the newest pod first.

    `state` is one of `missing`, `starting`, `ready`, `asleep` and `trouble`; `reason` and `message` come from the
    condition `Ready`. `maySleep` is whether the operator puts this user to sleep.
    """
    shown = sorted((describe_pod(pod) for pod in pods), key=lambda pod: (pod["created"], pod["name"]), reverse=True)
    if resource is None:
        return {"state": "missing", "reason": "", "message": "", "maySleep": False, "pods": shown}
    conditions = {item["type"]: item for item in resource.get("status", {}).get("conditions", ())}
    ready = conditions.get("Ready", {})
    return {
        "state": _state(conditions, shown),
        "reason": ready.get("reason", ""),
        "message": ready.get("message", ""),
        "maySleep": conditions.get("Asleep", {}).get("reason", "NeverSleeps") != "NeverSleeps",
        "pods": shown,
    }


def _state(conditions: Object, pods: list[Object]) -> str:
    def holds(name: str) -> bool:
        return bool(conditions.get(name, {}).get("status") == "True")

    if holds("Asleep"):
        return "asleep"
    if any(pod["ready"] for pod in pods):
        return "ready"
    # After a pod was killed, the condition is out of date for a moment.
    return "starting" if holds("Progressing") or holds("Ready") or "Ready" not in conditions else "trouble"


def describe_pod(pod: Object) -> Object:
    """Return the view of a pod. `phase` is its phase, the reason of its waiting container, or `Terminating`."""
    status = pod.get("status", {})
    containers = status.get("containerStatuses") or [{}]
    waiting = containers[0].get("state", {}).get("waiting", {}).get("reason")
    leaving = "deletionTimestamp" in pod["metadata"]
    conditions = {item["type"]: item["status"] for item in status.get("conditions", ())}
    return {
        "name": pod["metadata"]["name"],
        "phase": "Terminating" if leaving else waiting or status.get("phase", "Pending"),
        "ready": not leaving and conditions.get("Ready") == "True",
        "created": pod["metadata"]["creationTimestamp"],
        "restarts": containers[0].get("restartCount", 0),
    }
