"""How many users get a new pod at once when it is not they who asked for it: a new relay image, another setting.

All of them at once would double the pods of the cluster, and have every client reconnect within the same seconds. One
that does not arrive keeps its turn, so a relay that does not start stops at the first few users, whose old pods go
on serving. An operator that restarts resumes what it finds under way. Pure.
"""

from __future__ import annotations

from userrealtime_operator.kube.types import NamespacedName


class Rollouts:
    """At most `limit` users at once; those who wait are let in in the order they came."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._active: set[NamespacedName] = set()
        self._waiting: dict[NamespacedName, None] = {}

    def resume(self, user: NamespacedName) -> None:
        """A user's rollout has begun already, before this was made. Counts, even beyond the limit."""
        self._active.add(user)

    def begin(self, user: NamespacedName) -> bool:
        """Whether a user's rollout may begin now. If not, `end` will name the user when it is their turn."""
        if user in self._active or len(self._active) < self._limit:
            self._active.add(user)
            self._waiting.pop(user, None)
            return True
        self._waiting[user] = None
        return False

    def end(self, user: NamespacedName) -> list[NamespacedName]:
        """A user has no rollout, or no longer. Gives those whose turn may have come."""
        self._waiting.pop(user, None)
        self._active.discard(user)
        return list(self._waiting)[: max(0, self._limit - len(self._active))]
