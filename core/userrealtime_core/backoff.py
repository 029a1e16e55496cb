"""The delay before a failed operation is retried: exponential, with jitter."""

from __future__ import annotations

import random
from typing import Final

FIRST: Final = 0.2
LAST: Final = 15.0
"""Seconds."""


def backoff(attempt: int) -> float:
    """Seconds before the next attempt, after `attempt` earlier failures.

    The jitter spreads the reconnections of a fleet.
    """
    longest = min(LAST, FIRST * 2 ** min(attempt, 16))
    return random.uniform(longest / 4, longest)  # noqa: S311 (no secret)
