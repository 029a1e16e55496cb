"""Limits the rollouts that the resource itself did not request: a new relay image, or another setting. Pure.

If all pods were replaced together, the number of pods would double, and all clients would reconnect within seconds.
A rollout that does not complete keeps its place, so a relay that does not start stops at the first few users, whose
old pods continue to serve. The reconciler ends a rollout that is not the relay's fault: of an object that the API
server rejects, or of a Deployment that something else modifies. An operator that restarts resumes the rollouts that
have begun.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from userrealtime_operator.kube.types import NamespacedName


class Rollouts:
    """Allows `limit` rollouts at the same time, in the order in which they were requested. `clock` returns seconds."""

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._active: dict[NamespacedName, float] = {}
        """The users with a rollout, and when each began."""
        self._waiting: dict[NamespacedName, None] = {}

    def resume(self, user: NamespacedName) -> None:
        """Count a rollout that began before this object existed, even beyond the limit."""
        self._active.setdefault(user, self._clock())

    def begin(self, user: NamespacedName) -> bool:
        """Return whether the rollout of a user may begin now. If not, `end` later returns the user."""
        if user in self._active or len(self._active) < self._limit:
            self._active.setdefault(user, self._clock())
            self._waiting.pop(user, None)
            return True
        self._waiting[user] = None
        return False

    def end(self, user: NamespacedName) -> list[NamespacedName]:
        """Record that a user has no rollout; return the users whose rollout may begin now."""
        self._waiting.pop(user, None)
        self._active.pop(user, None)
        return self._next()

    def withdraw(self, user: NamespacedName) -> list[NamespacedName]:
        """Note that a user no longer waits; return the users whose rollout may begin now."""
        if user not in self._waiting:
            return []
        del self._waiting[user]
        return self._next()

    def active_s(self, user: NamespacedName) -> float:
        """Return for how many seconds a user has had a rollout, 0 without one."""
        began = self._active.get(user)
        return 0.0 if began is None else self._clock() - began

    def _next(self) -> list[NamespacedName]:
        return list(self._waiting)[: max(0, self._limit - len(self._active))]
