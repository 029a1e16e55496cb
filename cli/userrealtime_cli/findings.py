"""What is found between a user and their events, and what to do about it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

Verdict = Literal["ok", "note", "wrong"]

ADVICE: Final[Mapping[str, str]] = {
    "ActivatorUnavailable": "look at the pods of the activator, without which nobody sleeps",
    "Creating": "wait; if it stays, look at the operator's log",
    "PodMissing": "wait; if it stays, look at the operator's log",
    "PodStarting": "wait; if it stays, the relay runs and cannot reach the database: look at the pod's log",
    "PodNotReady": "wait; if it stays, the relay runs and cannot reach the database: look at the pod's log",
    "RollingOut": "wait; if it stays, look at the new pod: kubectl describe pod",
    "RolloutWaiting": "wait: others have their turn; if it stays, look at those that are Progressing",
    "ImagePullFailed": "correct spec.relay.image, or the chart's relay.image and imagePullSecrets",
    "Unschedulable": "add nodes, or ask for less in spec.relay.resources",
    "QuotaExceeded": "raise the namespace's ResourceQuota, or remove users",
    "PodSecurityViolation": "the namespace does not admit the pod: see the message",
    "PodRefused": "admission refuses the pod: see the message",
    "CrashLoopBackOff": "the pod's log says why it ends: kubectl logs",
    "OOMKilled": "raise spec.relay.resources.limits.memory",
    "CreateContainerConfigError": "the kubelet cannot start the container: see the message",
    "CreateContainerError": "the kubelet cannot start the container: see the message",
    "RunContainerError": "the kubelet cannot start the container: see the message",
    "DuplicateUserId": "delete one of the two resources of this user; nothing was taken from the first",
    "InvalidSignal": "leave spec.relay.signal out, or take auto, listen or poll",
    "ListenPastRange": "set up a broker (docs/signals.md): events come later the more pods LISTEN",
    "InvalidRoute": "correct spec.route as the message says",
    "Refused": "the API server refused one of the user's objects: see the message",
    "DatabaseUnavailable": "the operator cannot reach the database, or its schema is missing: see the message",
}
"""What to do about the reason of a condition: docs/status.md, in a line."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one look."""

    what: str
    verdict: Verdict
    says: str
    do: str = ""
    """What to do about it."""

    def __str__(self) -> str:
        text = f"{self.verdict:5}  {self.what}: {self.says}"
        return f"{text}\n       {self.do}" if self.do else text


def of_resource(resource: Mapping[str, Any]) -> list[Finding]:
    """What a resource says of itself: whether the operator has seen it, its database and its pod."""
    name, status = resource["metadata"]["name"], resource.get("status", {})
    conditions = {condition["type"]: condition for condition in status.get("conditions", ())}
    if not conditions:
        return [
            Finding(
                "operator",
                "wrong",
                f"it has not seen {name}",
                "is it running, and does it serve this namespace? look at its Deployment, and at `namespaces` in the "
                "chart's values",
            )
        ]
    behind = status.get("observedGeneration") != resource["metadata"].get("generation")
    operator = Finding("operator", "ok", "it has seen the resource as it is")
    if behind:
        operator = Finding(
            "operator",
            "wrong",
            "it has not seen the resource as it is now",
            "wait some seconds; if it stays, look at the operator's log",
        )
    found = [operator]
    if (database := conditions.get("DatabaseReady")) is not None:
        found.append(_of_condition("database", database, "it knows the user"))
    if conditions.get("Asleep", {}).get("status") == "True":
        found.append(Finding("pod", "ok", "it sleeps, and wakes for whoever connects"))
        return found
    ready = conditions.get("Ready", {"status": "Unknown", "reason": "", "message": ""})
    found.append(_of_condition("pod", ready, "it serves clients"))
    progress = conditions.get("Progressing", {})
    if progress.get("status") == "True" and ready["status"] == "True":
        found.append(
            Finding(
                "new pod",
                "note",
                _told(progress),
                ADVICE.get(progress.get("reason", ""), "see: kubectl describe urt"),
            )
        )
    for what, kind, reason in (
        ("sleep", "Asleep", "ActivatorUnavailable"),
        ("signals", "SignalRange", "ListenPastRange"),
    ):
        if conditions.get(kind, {}).get("reason") == reason:
            found.append(Finding(what, "note", _told(conditions[kind]), ADVICE[reason]))
    return found


def _of_condition(what: str, condition: Mapping[str, Any], good: str) -> Finding:
    if condition["status"] == "True":
        return Finding(what, "ok", good)
    do = ADVICE.get(condition["reason"], "see: kubectl describe urt")
    return Finding(what, "wrong", _told(condition), do)


def _told(condition: Mapping[str, Any]) -> str:
    return ": ".join(part for part in (condition.get("reason", ""), condition.get("message", "")) if part)


def of_answer(status: int, from_relay: bool) -> Finding:
    """What a request without a token says of the route: the relay answers it with 401.

    Args:
        from_relay: whether the answer asks for a token as the relay does.
    """
    if status == 401 and from_relay:
        return Finding("route", "ok", "it leads to the relay")
    if status in (502, 503, 504):
        return Finding(
            "route",
            "wrong",
            f"HTTP {status}: it leads to no pod that answers",
            "wait, if the pod has just begun; else look at the user's Service and its EndpointSlices, and at what the "
            "NetworkPolicy lets in",
        )
    if status == 404:
        return Finding(
            "route",
            "wrong",
            "HTTP 404: nothing is routed at this URL",
            "does the ingress controller or Gateway take this route? look at the user's Ingress or HTTPRoute, at "
            "route.className, and at whose host this is",
        )
    return Finding(
        "route",
        "wrong",
        f"HTTP {status}, which the relay would not say",
        "something in between answers in its place, such as a login or a filter: let this URL through as it is",
    )


def of_token(status: int, error: str) -> Finding:
    """What the relay says to a poll with a token made of the user's key."""
    if status == 200:
        return Finding("token", "ok", "the relay takes one made of the user's key")
    if status == 401:
        return Finding(
            "token",
            "wrong",
            "the relay refuses one made of the user's key",
            "does the platform ask for claims (relay.auth.issuer, audience: give them with --claim), or for another "
            "issuer's tokens (jwksUrl)? is the clock of this machine right? was the key replaced by hand a moment ago?",
        )
    if status == 503:
        return Finding(
            "relay", "wrong", f"it is not ready: {error}", "the relay's log says why it cannot reach the database"
        )
    return Finding("token", "wrong", f"HTTP {status} {error}".rstrip(), "the relay's log may say more")
