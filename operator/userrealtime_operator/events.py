"""The Events of a resource: one for each new trouble, and one for its end. Pure.

What goes its usual way makes no Event: thousands of users are created without one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from .desired import Object
from .resource import API_VERSION, KIND, UserRealtime

USUAL = frozenset(
    {
        "Creating",
        "PodAvailable",
        "PodMissing",
        "PodNotReady",
        "PodStarting",
        "Registered",
        "RollingOut",
        "RolloutWaiting",
    }
)
"""The reasons of conditions that are no trouble."""
NOTE_LENGTH = 1024  # the API's own limit, in bytes
CONTROLLER = "userrealtime.dev/operator"

Conditions = Iterable[Mapping[str, Any]]


def events(resource: UserRealtime, before: Conditions, after: Conditions, now: str, instance: str) -> Iterator[Object]:
    """What there is to say of a change of conditions. `now` is RFC 3339 with microseconds; `instance` says who."""
    old = {condition["type"]: condition["reason"] for condition in before}
    new = {condition["type"]: condition for condition in after}
    told = set(old.values()) | USUAL
    for condition in new.values():
        if condition["reason"] not in told:
            told.add(condition["reason"])
            yield _event(resource, "Warning", condition["reason"], condition["message"], now, instance)
    ready = new.get("Ready")
    if ready and ready["status"] == "True" and old.get("Ready", "PodAvailable") not in USUAL:
        yield _event(resource, "Normal", "Recovered", "the user's clients are served", now, instance)


def _event(resource: UserRealtime, kind: str, reason: str, note: str, now: str, instance: str) -> Object:
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"generateName": f"{resource.name[:200]}.", "namespace": resource.namespace},
        "eventTime": now,
        "type": kind,
        "reason": reason,
        "note": note.encode()[:NOTE_LENGTH].decode(errors="ignore"),
        "action": "Reconcile",
        "reportingController": CONTROLLER,
        "reportingInstance": instance[:128],
        "regarding": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "namespace": resource.namespace,
            "name": resource.name,
            "uid": resource.uid,
        },
    }
