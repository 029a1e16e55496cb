"""The findings of `userrealtime doctor`, with advice. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

Verdict = Literal["ok", "note", "error"]

ADVICE: Final[Mapping[str, str]] = {
    "ActivatorUnavailable": "check the pods of the activator; sleep is disabled until one is ready",
    "Creating": "wait; if it persists, check the operator's log",
    "PodMissing": "wait; if it persists, check the operator's log",
    "PodStarting": "wait; if it persists, the pod cannot connect to the database: check the pod's log",
    "PodNotReady": "wait; if it persists, the pod cannot connect to the database: check the pod's log",
    "RollingOut": "wait; if it persists, check the new pod: kubectl describe pod",
    "RolloutWaiting": "wait for the pods of other users; if it persists, check the resources that are Progressing",
    "ImagePullFailed": "correct spec.relay.image, or the chart's relay.image and imagePullSecrets",
    "Unschedulable": "add nodes, or lower the requests in spec.relay.resources",
    "QuotaExceeded": "raise the namespace's ResourceQuota, or remove users",
    "PodSecurityViolation": "the namespace's Pod Security Standard rejects the pod: see the message",
    "PodRefused": "admission control rejects the pod: see the message",
    "CrashLoopBackOff": "the pod's log contains the cause: kubectl logs",
    "OOMKilled": "raise spec.relay.resources.limits.memory",
    "CreateContainerConfigError": "the kubelet cannot start the container: see the message",
    "CreateContainerError": "the kubelet cannot start the container: see the message",
    "RunContainerError": "the kubelet cannot start the container: see the message",
    "DuplicateUserId": "delete one of the two resources of this user; the older one still works",
    "UserServedElsewhere": "another namespace or cluster serves this userId: delete that resource, or change userId",
    "NotRegistered": "the user is not registered in the database: see the condition Ready",
    "ImageNotAllowed": "remove spec.relay.image, or add the image to relay.allowedImages of the chart",
    "RouteNotAllowed": "remove spec.route.url, or add the host to route.allowedHosts of the chart",
    "RouteConflict": "select another spec.route.url: this one overlaps the URL of another user",
    "InvalidSignal": "remove spec.relay.signal, or set it to auto, listen or poll",
    "TooManyListeners": "set up a broker (docs/signals.md): latency grows with the number of pods that LISTEN",
    "FieldsContested": "let the webhook or the tool skip the operator's objects, or set its values in spec.relay",
    "InvalidSpec": "apply the CRD of the operator's version, and correct the field that the message names",
    "InvalidRoute": "correct spec.route: see the message",
    "Refused": "the API server rejected one of the user's objects: see the message",
    "DatabaseUnavailable": "the operator cannot reach the database, or its schema is missing: see the message",
}
"""Advice for each reason of a condition, in one line. docs/status.md has more."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    what: str
    verdict: Verdict
    message: str
    advice: str = ""

    def __str__(self) -> str:
        text = f"{self.verdict:5}  {self.what}: {self.message}"
        return f"{text}\n       {self.advice}" if self.advice else text


def of_resource(resource: Mapping[str, Any]) -> list[Finding]:
    """Return the findings about the operator, the database and the pod from a resource's status."""
    name, status = resource["metadata"]["name"], resource.get("status", {})
    conditions = {condition["type"]: condition for condition in status.get("conditions", ())}
    if not conditions:
        return [
            Finding(
                "operator",
                "error",
                f"it has not processed {name}",
                "is it running, and does it serve this namespace? check its Deployment, and `namespaces` in the "
                "chart's values",
            )
        ]
    behind = status.get("observedGeneration") != resource["metadata"].get("generation")
    operator = Finding("operator", "ok", "it has processed the latest version of the resource")
    if behind:
        operator = Finding(
            "operator",
            "error",
            "it has not processed the latest version of the resource",
            "wait some seconds; if it persists, check the operator's log",
        )
    found = [operator]
    if (database := conditions.get("DatabaseReady")) is not None:
        found.append(_of_condition("database", database, "the user is registered"))
    if conditions.get("Asleep", {}).get("status") == "True":
        found.append(Finding("pod", "ok", "the user has no pod; the next connection or event starts it"))
        return found
    ready = conditions.get("Ready", {"status": "Unknown", "reason": "", "message": ""})
    found.append(_of_condition("pod", ready, "it serves clients"))
    progress = conditions.get("Progressing", {})
    if progress.get("status") == "True" and ready["status"] == "True":
        found.append(
            Finding(
                "new pod",
                "note",
                _text(progress),
                ADVICE.get(progress.get("reason", ""), "see: kubectl describe urt"),
            )
        )
    for what, kind, reason in (
        ("sleep", "Asleep", "ActivatorUnavailable"),
        ("signals", "ListenersWithinLimit", "TooManyListeners"),
        ("objects", "Contested", "FieldsContested"),
    ):
        if conditions.get(kind, {}).get("reason") == reason:
            found.append(Finding(what, "note", _text(conditions[kind]), ADVICE[reason]))
    return found


def _of_condition(what: str, condition: Mapping[str, Any], good: str) -> Finding:
    if condition["status"] == "True":
        return Finding(what, "ok", good)
    do = ADVICE.get(condition["reason"], "see: kubectl describe urt")
    return Finding(what, "error", _text(condition), do)


def _text(condition: Mapping[str, Any]) -> str:
    return ": ".join(part for part in (condition.get("reason", ""), condition.get("message", "")) if part)


def of_answer(status: int, from_relay: bool) -> Finding:
    """Return the finding from the response to a request without a token. The relay responds with 401.

    Args:
        from_relay: whether the response has the challenge that the relay sends.
    """
    if status == 401 and from_relay:
        return Finding("route", "ok", "it reaches the relay")
    if status in (502, 503, 504):
        return Finding(
            "route",
            "error",
            f"HTTP {status}: no pod answers behind it",
            "if the pod has just started, wait; otherwise check the user's Service, its EndpointSlices and the "
            "NetworkPolicy",
        )
    if status == 404:
        return Finding(
            "route",
            "error",
            "HTTP 404: there is no route for this URL",
            "does the ingress controller or Gateway accept this route? check the user's Ingress or HTTPRoute, "
            "route.className, and the address of the host",
        )
    return Finding(
        "route",
        "error",
        f"HTTP {status}, which is not a response of the relay",
        "a proxy responds instead, such as a login or a filter: let requests to this URL pass unchanged",
    )


def of_token(status: int, error: str) -> Finding:
    """Return the finding from the response to a poll with a token that is signed with the user's key."""
    if status == 200:
        return Finding("token", "ok", "the relay accepts a token that is signed with the user's key")
    if status == 401:
        return Finding(
            "token",
            "error",
            "the relay rejects a token that is signed with the user's key",
            "does the platform require claims (relay.auth.issuer, audience: pass them with --claim), or tokens of "
            "another issuer (jwksUrl)? is the clock of this machine correct? was the key just replaced by hand?",
        )
    if status == 503:
        return Finding(
            "relay", "error", f"it is not ready: {error}", "the pod cannot use the database: check the pod's log"
        )
    return Finding("token", "error", f"HTTP {status} {error}".rstrip(), "check the relay's log")
