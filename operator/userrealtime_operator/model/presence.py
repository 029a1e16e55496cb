"""What a relay reports about its clients."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Presence:
    """A row of `userrealtime.presence`. Times are in seconds since 1970, by the database's clock.

    `since` is when the number of the pod's clients changed from or to zero.
    """

    instance: str
    clients: int
    since: float
    seen_at: float
