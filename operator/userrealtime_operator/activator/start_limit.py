"""How many pods may start at the same time. Pure: no clock, no I/O.

Starting pods compete for the CPUs of the nodes and of the API server. If twenty of them start together on two CPUs,
most are ready only at the end. If a few start at a time, half of the users are served in little more than half of the
time, and the last one is served hardly later.

The capacity of the cluster is unknown. Therefore the limit follows the durations of starts, as the congestion window of
TCP Vegas follows round-trip times (Brakmo and Peterson, 1995). A start that is about as fast as the fastest ones raises
the limit, so it doubles while the cluster has capacity. A start that takes more than twice as long lowers it.
"""

from __future__ import annotations

from collections import deque
from typing import Final

LEAST: Final = 2.0
"""The first limit, and the smallest one. One start alone would wait for volumes and networks without using a CPU."""
MOST: Final = 1000.0
TOLERANCE: Final = 2.0
"""The limit decreases if a start takes more than this many times as long as a fast one."""
LARGEST_DECREASE: Final = 0.5
"""The limit of ten starts is halved by ten that are very slow."""
RECENT: Final = 100
"""The number of starts that are remembered."""
FAST: Final = 0.1
"""The share of them that counts as fast; a single one may be an exception."""


class StartLimit:
    """The limit of the starts in progress, which need not be a whole number."""

    def __init__(self) -> None:
        self.value = LEAST
        self._durations: deque[float] = deque(maxlen=RECENT)

    def adjust(self, duration_s: float, in_progress: int) -> None:
        """Adjust the limit to a start.

        Args:
            in_progress: the number of starts in progress before the end of this one, which is included.
        """
        self._durations.append(duration_s)
        fast_s = sorted(self._durations)[int(FAST * len(self._durations))]
        speed = fast_s / duration_s if duration_s > fast_s else 1.0
        change = max(-LARGEST_DECREASE, TOLERANCE * speed - 1)
        value = self.value
        # Starts far below the limit show nothing about it if they are fast. If they are slow, it is much too large.
        if change < 0:
            value = min(value, in_progress)
        elif 2 * in_progress < value:
            return
        self.value = min(MOST, max(LEAST, value + change))
