"""Who of several operators works: a Lease of the API server (coordination.k8s.io/v1), held by one at a time.

Nobody's clock is compared with anybody else's. Whoever waits notes, on its own clock, when it last saw the Lease
change, and takes it only after it has not changed for its whole duration. The holder counts from before it asked for
its last renewal, and stops well before that duration is over. So the two can overlap only if a clock runs wrong by
the part of the duration that lies between.
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
    """All in seconds. A leader that was killed is replaced within `duration` and `retry`."""

    duration: float = 12.0
    """For how long nobody takes a Lease that was not renewed."""
    renew_deadline: float = 8.0
    """For how long the holder works after it asked for its last renewal; what it had begun then has the rest."""
    retry: float = 2.0
    """Between two looks, or two renewals."""

    def __post_init__(self) -> None:
        if not 0 < self.retry < self.renew_deadline < self.duration:
            raise ValueError("a lease needs 0 < retry < renew_deadline < duration")


class Action(enum.Enum):
    """What to do about the Lease now."""

    ACQUIRE = "acquire"
    """Take it: it is nobody's, or its holder let it expire."""
    RENEW = "renew"
    """It is ours."""
    WAIT = "wait"
    """It is another's."""
    LOST = "lost"
    """It was ours, and may be another's by now, or soon."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The Lease as it was last read (None: there is none), and when, on our own clock, it was first read like this."""

    lease: Mapping[str, Any] | None
    since: float

    def observe(self, lease: Mapping[str, Any] | None, now: float) -> Seen:
        """After another look."""
        return self if _version(lease) == _version(self.lease) else Seen(lease, now)


def holder(lease: Mapping[str, Any] | None) -> str:
    """Who holds a Lease; empty for nobody."""
    return (lease or {}).get("spec", {}).get("holderIdentity") or ""


def decide(seen: Seen, me: str, renewed: float | None, now: float, settings: Settings) -> Action:
    """`renewed` is when our last successful renewal was asked for, None if we do not lead. Times are on our clock."""
    if renewed is not None:
        if holder(seen.lease) == me and now < renewed + settings.renew_deadline:
            return Action.RENEW
        return Action.LOST
    # Held by us though we do not lead: we had stopped, or never got the answer. Nobody else took it since.
    if holder(seen.lease) in ("", me) or now >= seen.since + max(_duration(seen.lease), settings.duration):
        return Action.ACQUIRE
    return Action.WAIT


def lease_spec(lease: Mapping[str, Any] | None, me: str, at: datetime, settings: Settings) -> Object:
    """The spec with which `me` takes or renews a Lease. The times are for people to read."""
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
