"""How often something may be done: a token bucket, without a clock."""

from __future__ import annotations


class TokenBucket:
    """`rate` times a second, and as many at once after a second of nothing. `now` is in seconds, and only grows."""

    def __init__(self, rate: float, now: float) -> None:
        self._rate = rate
        self._left = rate
        self._since = now

    def take(self, now: float) -> bool:
        """Whether it may be done once more; if so, it counts."""
        self._left = min(self._rate, self._left + (now - self._since) * self._rate)
        self._since = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
