"""The URLs that users have, and which user has precedence if two of them overlap. Pure.

Two URLs overlap if their hosts are equal and the path of one is the path of the other, or begins with it. At an
ingress controller the longest path wins, so a URL below that of another user would take over clients of that user.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from userrealtime_operator.kube.types import NamespacedName
from userrealtime_operator.model.routes import Route


class Rank(NamedTuple):
    """The precedence of a URL. The smallest one wins."""

    custom: bool
    """Whether the resource selects the URL. A URL from the platform's template has precedence."""
    created: str
    """The creation time of the resource: the older resource has precedence."""
    uid: str


class _Claim(NamedTuple):
    host: str
    path: str
    rank: Rank


class RouteClaims:
    """The URLs of all users of a release."""

    def __init__(self) -> None:
        self._claims: dict[NamespacedName, _Claim] = {}
        self._at: dict[tuple[str, str], set[NamespacedName]] = {}
        """The users with exactly this host and path."""
        self._below: dict[tuple[str, str], set[NamespacedName]] = {}
        """The users with this host and path, or a path below it."""

    def put(self, user: NamespacedName, route: Route | None, rank: Rank) -> set[NamespacedName]:
        """Note the URL that a user is to have, None without one.

        Return the other users for whom this can change the result of `winner`: those over whom the user has precedence.
        """
        claim = None if route is None else _Claim(route.host, route.path, rank)
        if self._claims.get(user) == claim:
            return set()
        affected = self.remove(user)
        if claim is not None:
            self._claims[user] = claim
            self._at.setdefault((claim.host, claim.path), set()).add(user)
            for prefix in _prefixes(claim.path):
                self._below.setdefault((claim.host, prefix), set()).add(user)
            affected |= self._inferior(user)
        return affected

    def remove(self, user: NamespacedName) -> set[NamespacedName]:
        """Remove the URL of a user; return the other users over whom it had precedence."""
        affected = self._inferior(user)
        claim = self._claims.pop(user, None)
        if claim is not None:
            _discard(self._at, (claim.host, claim.path), user)
            for prefix in _prefixes(claim.path):
                _discard(self._below, (claim.host, prefix), user)
        return affected

    def winner(self, user: NamespacedName) -> NamespacedName | None:
        """Return a user whose URL overlaps that of `user` and has precedence, or None."""
        claim = self._claims.get(user)
        if claim is None:
            return None
        return next((each for each in self._overlapping(user) if self._claims[each].rank < claim.rank), None)

    def _inferior(self, user: NamespacedName) -> set[NamespacedName]:
        return {each for each in self._overlapping(user) if self._claims[each].rank > self._claims[user].rank}

    def _overlapping(self, user: NamespacedName) -> Iterator[NamespacedName]:
        claim = self._claims.get(user)
        if claim is None:
            return
        for prefix in _prefixes(claim.path):
            if prefix != claim.path:
                yield from self._at.get((claim.host, prefix), ())
        for each in self._below[claim.host, claim.path]:
            if each != user:
                yield each


def _prefixes(path: str) -> Iterator[str]:
    """Yield a path and all paths above it, which end with the empty path."""
    while path:
        yield path
        path = path.rpartition("/")[0]
    yield ""


def _discard(index: dict[tuple[str, str], set[NamespacedName]], place: tuple[str, str], user: NamespacedName) -> None:
    index[place].discard(user)
    if not index[place]:
        del index[place]
