"""When a user may sleep. Pure: no cluster, no database, no clock.

A user sleeps once nothing has needed the pod for `after` seconds: no client, no wake request, no pod that has yet to
say how many clients it has. What is not known counts as a reason to stay awake.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from userrealtime_operator.model.presence import Presence

FRESH_S: Final = 180.0
"""Seconds for which what a pod has said of its clients holds; a relay speaks every minute."""


@dataclass(frozen=True, slots=True)
class Stay:
    """Awake. `look_again_s`: seconds after which the answer may be another, None if only another spec changes it."""

    look_again_s: float | None


@dataclass(frozen=True, slots=True)
class Sleep:
    """Nobody needs the pod."""


def decide(
    pods: Sequence[str], presence: Sequence[Presence], after_s: float, awake_since: float, now: float, *, warm: bool
) -> Sleep | Stay:
    """Whether a user who is awake may sleep.

    Args:
        pods: the names of the pods that the user has now.
        presence: what pods have said, of this user alone.
        after_s: `spec.idle.after`; 0 switches sleep off.
        awake_since: the last wake request, or when the pod became ready, whichever is later.
        now: by the database's clock, as all times here.
    """
    if warm or after_s <= 0:
        return Stay(None)
    fresh = {row.instance: row for row in presence if row.seen_at > now - FRESH_S}
    # A pod that has not spoken may have clients: one that cannot reach the database keeps its user awake.
    if not pods or any(name not in fresh for name in pods):
        return Stay(after_s)
    # A pod that is going still counts, until it has said that its clients are gone.
    if any(row.clients > 0 for row in fresh.values()):
        return Stay(after_s)
    idle_since = max(awake_since, *(row.since for row in fresh.values()))
    left = idle_since + after_s - now
    return Stay(left) if left > 0 else Sleep()
