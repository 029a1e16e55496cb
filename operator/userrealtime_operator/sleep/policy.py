"""Decides whether a user may sleep, from its pods and their presence rows. No I/O and no clock.

A user sleeps if nothing has needed the pod for `after` seconds: no client, no wake request, and no pod that has not
reported its clients yet. A user with clients is parked if no pod has had traffic for `parkAfter` seconds. Missing
information keeps a user awake.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from userrealtime_operator.model.presence import Presence

FRESH_S: Final = 180.0
"""Seconds for which a report of a pod is valid. A relay reports every minute."""


@dataclass(frozen=True, slots=True)
class Stay:
    """The user stays awake."""

    recheck_s: float | None
    """The time after which the decision may differ; None if that needs another spec."""


@dataclass(frozen=True, slots=True)
class Sleep:
    """No client needs the pod."""


def decide(
    pods: Sequence[str], presence: Sequence[Presence], after_s: float, awake_since: float, now: float, *, warm: bool
) -> Sleep | Stay:
    """Return whether a user that is awake may sleep.

    Args:
        pods: the names of the user's pods.
        presence: the rows of this user.
        after_s: `spec.idle.after`; 0 disables sleep.
        awake_since: the last wake request, or when the pod became ready, whichever is later.
        now: the time of the database's clock, as all times here.
    """
    if warm or after_s <= 0:
        return Stay(None)
    fresh = {row.instance: row for row in presence if row.seen_at > now - FRESH_S}
    # A pod that has not reported may have clients. A pod that cannot reach the database keeps its user awake.
    if not pods or any(name not in fresh for name in pods):
        return Stay(after_s)
    # A terminating pod counts until it has reported that its clients are gone.
    if any(row.clients > 0 for row in fresh.values()):
        return Stay(after_s)
    idle_since = max(awake_since, *(row.since for row in fresh.values()))
    left = idle_since + after_s - now
    return Stay(left) if left > 0 else Sleep()


@dataclass(frozen=True, slots=True)
class Park:
    """Clients are connected, and need no pod until something happens."""


def decide_parking(
    pods: Sequence[str], presence: Sequence[Presence], after_s: float, awake_since: float, now: float
) -> Park | Stay:
    """Return whether the connections of a user's clients may be moved to activators.

    Args:
        pods: the names of the user's pods.
        presence: the rows of these pods, and of those that have ended.
        after_s: `spec.idle.parkAfter`; 0 disables parking.
        awake_since: the last wake request.
        now: the time of the database's clock, as all times here.
    """
    if after_s <= 0:
        return Stay(None)
    fresh = {row.instance: row for row in presence if row.seen_at > now - FRESH_S}
    if not pods or any(name not in fresh for name in pods) or not any(row.clients for row in fresh.values()):
        return Stay(after_s)
    quiet_since = max(awake_since, *(row.active_at for row in fresh.values()))
    # A report may be a minute old. What happened since then is unknown.
    left = quiet_since + after_s - min(row.seen_at for row in fresh.values())
    return Stay(left) if left > 0 else Park()
