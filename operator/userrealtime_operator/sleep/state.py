"""What says that a user sleeps, and where the user's connections go meanwhile. Pure.

The user's Deployment says it, by annotations beside its 0 replicas: one object, so that no two can disagree. Whoever
scales it up by hand has woken the user; one that was scaled down by hand is put right like any other change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

SINCE: Final = "userrealtime.dev/asleep-since"
WAKE_SEEN: Final = "userrealtime.dev/wake-seen"
MAX_ADDRESSES: Final = 100
"""Of activators in one slice; the API server takes 1,000."""


@dataclass(frozen=True, slots=True)
class Asleep:
    """A user sleeps."""

    since: str
    """RFC 3339 with microseconds: when connections began to go to the activator."""
    wake_seen: str
    """`status.wakeRequestedAt` as it was then, empty if there was none. Any other is a request to wake, whatever the
    clock of whoever wrote it."""

    def annotations(self) -> dict[str, str]:
        """Those of the Deployment."""
        return {SINCE: self.since, WAKE_SEEN: self.wake_seen}


def asleep(deployment: Mapping[str, Any] | None) -> Asleep | None:
    """Whether a user sleeps, by their Deployment."""
    if deployment is None or deployment["spec"].get("replicas", 1) != 0:
        return None
    annotations = deployment["metadata"].get("annotations", {})
    return Asleep(annotations[SINCE], annotations.get(WAKE_SEEN, "")) if SINCE in annotations else None


def wake_requested(body: Mapping[str, Any]) -> str:
    """What the resource says of the last wake request; empty if there was none."""
    return str(body.get("status", {}).get("wakeRequestedAt") or "")


def wake_pending(body: Mapping[str, Any], deployment: Mapping[str, Any] | None) -> bool:
    """Whether somebody wants a user awake who sleeps."""
    sleeping = asleep(deployment)
    return sleeping is not None and wake_requested(body) != sleeping.wake_seen


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Addresses of one family (`IPv4` or `IPv6`, as an EndpointSlice has it), and the port of them all."""

    address_type: str
    addresses: tuple[str, ...]
    port: int


def ready_addresses(slices: Iterable[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """The addresses of the pods of EndpointSlices that are ready, by family, in a fixed order."""
    found: dict[str, set[str]] = {}
    for each in slices:
        for endpoint in each.get("endpoints") or ():
            if endpoint.get("conditions", {}).get("ready") is not False:  # unknown counts as ready, says the API
                found.setdefault(each["addressType"], set()).update(endpoint["addresses"][:1])
    return {family: tuple(sorted(addresses)[:MAX_ADDRESSES]) for family, addresses in found.items()}
