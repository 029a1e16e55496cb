"""What a relay, or an activator, reports about clients."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Presence:
    """A row of `userrealtime.presence`. Times are in seconds since 1970, by the database's clock.

    `since` is when the number of the pod's clients changed from or to zero, and `active_at` when it last had traffic.
    """

    instance: str
    clients: int
    since: float
    seen_at: float
    active_at: float = math.inf
    parked: bool = False
    """Whether the row is an activator's, which keeps the clients without a pod."""
