"""A rate limit."""

from __future__ import annotations


class TokenBucket:
    """Allows `rate` uses a second, and a burst of as many. Times are in seconds of any clock that only grows."""

    __slots__ = ("_left", "_rate", "_since")

    def __init__(self, rate: float, now: float) -> None:
        self._rate = rate
        self._left = rate
        self._since = now

    def take(self, now: float) -> bool:
        """Count one use. Return whether it is allowed."""
        self._left = min(self._rate, self._left + (now - self._since) * self._rate)
        self._since = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
