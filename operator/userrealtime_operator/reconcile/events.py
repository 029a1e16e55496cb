"""The Events of a resource: one for each new problem and for its end, and one for each sleep and wake. Pure.

The usual changes cause no Event, so thousands of users are created without one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from userrealtime_operator.kube.types import Object
from userrealtime_operator.manifests.metadata import digest
from userrealtime_operator.model.conditions import NORMAL_REASONS
from userrealtime_operator.model.resource import API_VERSION, KIND, ResourceIdentity

NOTE_LENGTH = 1024  # the API's own limit, in bytes
CONTROLLER = "userrealtime.dev/operator"

Conditions = Iterable[Mapping[str, Any]]


def events(
    resource: ResourceIdentity, before: Conditions, after: Conditions, now: str, instance: str
) -> Iterator[Object]:
    """Yield the Events for a change of conditions.

    Args:
        now: the time, as RFC 3339 with microseconds.
        instance: the name of this operator.
    """
    before = list(before)
    old = {condition["type"]: condition["reason"] for condition in before}
    new = {condition["type"]: condition for condition in after}
    told = set(old.values()) | NORMAL_REASONS
    for condition in new.values():
        if condition["reason"] not in told:
            told.add(condition["reason"])
            yield _event(resource, "Warning", condition["reason"], condition["message"], now, instance)
    if slept := transition(before, after):
        yield _event(resource, "Normal", slept, new["Asleep"]["message"], now, instance)
    for reason in sorted(set(old.values()) - NORMAL_REASONS - {condition["reason"] for condition in new.values()}):
        yield _event(resource, "Normal", "Resolved", f"{reason} is resolved", now, instance)


def transition(before: Conditions, after: Conditions) -> str | None:
    """Return `Slept` or `Woken` if the condition `Asleep` has changed, None also if it was unknown before."""
    was, is_ = ({each["status"] for each in conditions if each["type"] == "Asleep"} for conditions in (before, after))
    if not was or not is_ or was == is_:
        return None
    return "Slept" if is_ == {"True"} else "Woken"


def _event(resource: ResourceIdentity, kind: str, reason: str, note: str, now: str, instance: str) -> Object:
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {
            "name": f"{resource.name[:200]}.{digest([resource.uid, reason, now])}",
            "namespace": resource.namespace,
        },
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
