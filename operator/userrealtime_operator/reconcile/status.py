"""The status of a resource, with conditions as the API conventions define them. Pure.

`Ready` is the summary; `Progressing`, `DatabaseReady` and `Asleep` have the details. A condition keeps the time of its
last change of status, and an unchanged status is not written, so there are no heartbeats.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from userrealtime_operator.kube.types import Object
from userrealtime_operator.model.conditions import ConditionResult
from userrealtime_operator.model.resource import ResourceIdentity
from userrealtime_operator.model.routes import Route
from userrealtime_operator.secrets.token_keys import TOKEN_KEY

TOO_MANY_LISTENERS = ConditionResult(
    False,
    "TooManyListeners",
    "more pods LISTEN than signals.maxListeners, and every notification wakes all of them; set up a broker "
    "(signals.type of the chart, docs/scale.md)",
)


def _conditions(
    generation: int, now: str, previous: Iterable[Mapping[str, Any]], findings: Mapping[str, ConditionResult]
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
    resource: ResourceIdentity,
    previous: Mapping[str, Any],
    route: Route | None,
    findings: Mapping[str, ConditionResult],
    now: str,
    asleep_since: str | None = None,
    state: str | None = None,
) -> Object:
    """Return the operator's fields of the status. They equal those of `previous` if nothing has changed.

    Absent values are None, which removes a field in a merge patch.

    Args:
        previous: the current status.
        now: the current time, RFC 3339.
        state: Awake, Parked or Asleep; None if it is unknown.
    """
    status: Object = {
        "observedGeneration": resource.generation,
        "name": resource.child_name,
        "url": route.url if route else None,
        "state": state,
        "asleepSince": asleep_since,
        "tokenSecret": {"name": resource.child_name, "key": TOKEN_KEY},
        "conditions": _conditions(resource.generation, now, previous.get("conditions", ()), findings),
    }
    return status


def differs(status: Mapping[str, Any], previous: Mapping[str, Any]) -> bool:
    """Return whether a status must be written."""
    return any(previous.get(key) != value for key, value in status.items())
