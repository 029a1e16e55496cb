"""Leader election with a Lease (coordination.k8s.io/v1): decides which of several operators works.

The clocks of two machines are never compared. A candidate measures on its local clock how long the Lease has not
changed, and takes it only after its whole duration. The holder measures from before it sent its last successful
renewal, and stops at the renew deadline, well before the duration ends. The two can therefore overlap only if a clock
drifts by the difference between the duration and the renew deadline.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from .timestamps import rfc3339
from .types import Object


@dataclass(frozen=True, slots=True)
class Settings:
    """Times in seconds. A leader that was killed is replaced within `duration` plus `retry`."""

    duration: float = 12.0
    """How long a candidate waits before it takes a Lease that is not renewed."""
    renew_deadline: float = 8.0
    """How long the holder works after it sent its last renewal. Its running work must end within the rest."""
    retry: float = 2.0
    """The interval between two reads or two renewals."""

    def __post_init__(self) -> None:
        if not 0 < self.retry < self.renew_deadline < self.duration:
            raise ValueError("a lease needs 0 < retry < renew_deadline < duration")


class Action(enum.Enum):
    """The next step of a candidate or of the holder."""

    ACQUIRE = "acquire"
    """Take the Lease: it has no holder, or it has expired."""
    RENEW = "renew"
    """Renew the Lease: this operator holds it."""
    WAIT = "wait"
    """Wait: another operator holds the Lease."""
    LOST = "lost"
    """Stop: another operator may hold the Lease now or soon."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The last known Lease, None if it does not exist, and the local time at which this version was first read."""

    lease: Mapping[str, Any] | None
    since: float

    def observe(self, lease: Mapping[str, Any] | None, now: float) -> Seen:
        """Return the value after another read at `now`."""
        return self if _version(lease) == _version(self.lease) else Seen(lease, now)


def holder(lease: Mapping[str, Any] | None) -> str:
    """Return the holder of a Lease, empty if it has none."""
    return (lease or {}).get("spec", {}).get("holderIdentity") or ""


def decide(seen: Seen, me: str, renewed: float | None, now: float, settings: Settings) -> Action:
    """Return the next step of the operator `me`.

    `renewed` is the time at which its last successful renewal was sent, None if it does not lead. Times are local.
    """
    if renewed is not None:
        if holder(seen.lease) == me and now < renewed + settings.renew_deadline:
            return Action.RENEW
        return Action.LOST
    # The Lease may name this operator although it does not lead: it has stopped, or missed the response to its request.
    if holder(seen.lease) in ("", me) or now >= seen.since + max(_duration(seen.lease), settings.duration):
        return Action.ACQUIRE
    return Action.WAIT


def lease_spec(lease: Mapping[str, Any] | None, me: str, at: datetime, settings: Settings) -> Object:
    """Return the spec with which `me` takes or renews a Lease. Its times are informational."""
    spec = dict((lease or {}).get("spec", {}))
    now = rfc3339(at, "microseconds")
    if holder(lease) != me:
        spec["acquireTime"] = now
        spec["leaseTransitions"] = spec.get("leaseTransitions", -1) + 1
    return {**spec, "holderIdentity": me, "leaseDurationSeconds": round(settings.duration), "renewTime": now}


def boot_clock() -> float:
    """Return seconds, which on Linux also pass while the machine is suspended."""
    boot: int | None = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot is None else time.clock_gettime(boot)


def _version(lease: Mapping[str, Any] | None) -> str | None:
    return None if lease is None else lease["metadata"]["resourceVersion"]


def _duration(lease: Mapping[str, Any] | None) -> float:
    return float((lease or {}).get("spec", {}).get("leaseDurationSeconds") or 0)
