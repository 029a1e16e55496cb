"""When the announcer polls the queue, and how often. Pure: the caller passes the time, in seconds of any clock."""

from __future__ import annotations

from collections import deque
from typing import Final

BUSY_RINGS: Final = 8
BUSY_WINDOW: Final = 0.1
"""So many rings within so many seconds start the polling: 80 a second, when commits begin to wait for one another."""
QUIET_USERS: Final = 30
QUIET_WINDOW: Final = 1.0
"""Fewer users than this within so many seconds end it."""
SHORTEST_PAUSE: Final = 0.001
LONGEST_EMPTY_PAUSE: Final = 0.002
LONGEST_PAUSE: Final = 0.05
PAUSE_PER_USER: Final = 0.0001
"""Seconds between two polls. The pause after a poll grows with the number of users it found."""
PAUSE_PER_LISTENER: Final = 0.00004
"""Postgres wakes every listening connection at each notification, which takes it about this long."""


class Traffic:
    """How much is published, as the announcer sees it."""

    def __init__(self) -> None:
        self._rings: deque[float] = deque(maxlen=BUSY_RINGS)
        self._polls: deque[tuple[float, int]] = deque()
        self._recent = 0
        self._empty = 0
        self._polling_since = 0.0

    def rang(self, now: float) -> None:
        """Note that a publisher rang."""
        self._rings.append(now)

    def is_busy(self, now: float) -> bool:
        """Whether publishers ring so often that the announcer should poll instead."""
        return len(self._rings) == BUSY_RINGS and now - self._rings[0] <= BUSY_WINDOW

    def begin(self, now: float) -> None:
        """Note that polling begins."""
        self._rings.clear()
        self._polls.clear()
        self._recent = self._empty = 0
        self._polling_since = now

    def polled(self, now: float, users: int) -> None:
        """Note that a poll has found this many users."""
        self._empty = 0 if users else self._empty + 1
        if users:
            self._polls.append((now, users))
            self._recent += users
        while self._polls and self._polls[0][0] < now - QUIET_WINDOW:
            self._recent -= self._polls.popleft()[1]

    @property
    def recent(self) -> int:
        """What the polls within `QUIET_WINDOW` have found, until the last poll that was noted."""
        return self._recent

    def is_quiet(self, now: float) -> bool:
        """Whether so little is published that publishers may ring again."""
        return now - self._polling_since >= QUIET_WINDOW and self._recent < QUIET_USERS

    def pause(self, users: int, listeners: int) -> float:
        """Return the seconds until the next poll, after a poll with this number of users and of listening relays."""
        if not users:
            return min(SHORTEST_PAUSE * (1 + self._empty), LONGEST_EMPTY_PAUSE)
        pause = max(SHORTEST_PAUSE + users * PAUSE_PER_USER, listeners * PAUSE_PER_LISTENER)
        return min(pause, LONGEST_PAUSE)
