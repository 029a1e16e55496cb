"""Limits the rollouts that the resource itself did not request: a new relay image, or another setting. Pure.

If all pods were replaced together, the number of pods would double, and all clients would reconnect within seconds.
A rollout that does not complete keeps its place, so a relay that does not start stops at the first few users, whose
old pods continue to serve. An operator that restarts resumes the rollouts that have begun.
"""

from __future__ import annotations

from userrealtime_operator.kube.types import NamespacedName


class Rollouts:
    """Allows `limit` rollouts at the same time, in the order in which they were requested."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._active: set[NamespacedName] = set()
        self._waiting: dict[NamespacedName, None] = {}

    def resume(self, user: NamespacedName) -> None:
        """Count a rollout that began before this object existed, even beyond the limit."""
        self._active.add(user)

    def begin(self, user: NamespacedName) -> bool:
        """Return whether the rollout of a user may begin now. If not, `end` later returns the user."""
        if user in self._active or len(self._active) < self._limit:
            self._active.add(user)
            self._waiting.pop(user, None)
            return True
        self._waiting[user] = None
        return False

    def end(self, user: NamespacedName) -> list[NamespacedName]:
        """Record that a user has no rollout; return the users whose rollout may begin now."""
        self._waiting.pop(user, None)
        self._active.discard(user)
        return list(self._waiting)[: max(0, self._limit - len(self._active))]
