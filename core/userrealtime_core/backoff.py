"""How long to wait before something that failed is tried again."""

from __future__ import annotations

import random
from typing import Final

FIRST: Final = 0.2
LAST: Final = 15.0
"""Seconds."""


def backoff(attempt: int) -> float:
    """Seconds before the next attempt, after `attempt` of them before this one have failed, too.

    Random, so that a fleet does not come back all at once.
    """
    longest = min(LAST, FIRST * 2 ** min(attempt, 16))
    return random.uniform(longest / 4, longest)  # noqa: S311 (no secret)
