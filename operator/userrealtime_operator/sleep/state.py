"""The record of sleep in a user's Deployment, and the endpoints of connections during sleep. No I/O.

A Deployment with 0 replicas and the annotations below records that its user sleeps. One object holds the whole record,
and no two can disagree. Scaling it up by hand wakes the user. Scaling it down by hand is corrected, like any other
change.

A wake request changes only the replicas, and the annotations stay until the next sleep. The Deployment controller
copies changed annotations to the ReplicaSet first, and its second write, of the replicas, then conflicts with that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

SINCE: Final = "userrealtime.dev/asleep-since"
WAKE_SEEN: Final = "userrealtime.dev/wake-seen"
PARKED: Final = "userrealtime.dev/parked"
MAX_ADDRESSES: Final = 100
"""The number of activators in one slice. The API server accepts 1,000."""


@dataclass(frozen=True, slots=True)
class Asleep:
    """The record of a sleep."""

    since: str
    """The time from which connections could reach an activator: RFC 3339 with microseconds."""
    wake_seen: str
    """`status.wakeRequestedAt` at that time, empty if there was none. Any other value is a wake request.
    Therefore the clocks of two machines are never compared."""
    parked: bool = False
    """Whether clients are connected to activators, which keep their connections without a pod."""

    def annotations(self) -> dict[str, str]:
        """Return the annotations of the Deployment."""
        return {SINCE: self.since, WAKE_SEEN: self.wake_seen, **({PARKED: "true"} if self.parked else {})}


def asleep(deployment: Mapping[str, Any] | None) -> Asleep | None:
    """Return the sleep that a Deployment records, None if the user is awake."""
    if deployment is None or deployment["spec"].get("replicas", 1) != 0:
        return None
    return _record(deployment)


def ended_sleep(body: Mapping[str, Any], deployment: Mapping[str, Any] | None) -> Asleep | None:
    """Return the last sleep that a Deployment records, if a wake request has ended it."""
    last = None if deployment is None else _record(deployment)
    return last if last is not None and last.wake_seen != wake_requested(body) else None


def _record(deployment: Mapping[str, Any]) -> Asleep | None:
    annotations = deployment["metadata"].get("annotations", {})
    if SINCE not in annotations:
        return None
    return Asleep(annotations[SINCE], annotations.get(WAKE_SEEN, ""), annotations.get(PARKED) == "true")


def wake_requested(body: Mapping[str, Any]) -> str:
    """Return the last wake request of a resource, empty if there was none."""
    return str(body.get("status", {}).get("wakeRequestedAt") or "")


def wake_pending(body: Mapping[str, Any], deployment: Mapping[str, Any] | None) -> bool:
    """Return whether a sleeping user has a wake request."""
    sleeping = asleep(deployment)
    return sleeping is not None and wake_requested(body) != sleeping.wake_seen


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Addresses of one family (`IPv4` or `IPv6`, as in an EndpointSlice), and their port."""

    address_type: str
    addresses: tuple[str, ...]
    port: int
    standby: bool = False
    """Whether they are used only while the Service has no ready endpoint."""


def has_ready(endpoint_slice: Mapping[str, Any] | None) -> bool:
    """Return whether a slice has an endpoint that is ready, and not only on standby."""
    return endpoint_slice is not None and bool(ready_addresses([endpoint_slice]))


def ready_addresses(slices: Iterable[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Return the ready addresses of EndpointSlices, by family, in a fixed order."""
    found: dict[str, set[str]] = {}
    for each in slices:
        for endpoint in each.get("endpoints") or ():
            if endpoint.get("conditions", {}).get("ready") is not False:  # the API defines a missing value as ready
                found.setdefault(each["addressType"], set()).update(endpoint["addresses"][:1])
    return {family: tuple(sorted(addresses)[:MAX_ADDRESSES]) for family, addresses in found.items()}
