"""Fields of users' objects that something else sets: an admission webhook, or a tool that writes after each repair.

Without this module, the operator would apply such an object forever. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from userrealtime_operator.kube.types import NamespacedName
from userrealtime_operator.model.conditions import ConditionResult

REPAIRS: Final = 3
"""How often a field is repaired within `WINDOW_S` seconds before it is left unchanged."""
WINDOW_S: Final = 600.0
"""For how long it is left the first time. Each further time is twice as long: a repair may replace the user's pod."""
LONGEST_S: Final = 6 * 3600.0
"""The longest such time, and the time for a field that the API server itself stores with another value."""
_SHOWN: Final = 5

Fields = frozenset[str]
"""Paths of fields, as `kube.drift.differences` returns them."""


@dataclass(frozen=True, slots=True)
class _Contest:
    digest: str
    fields: Fields
    hold_s: float
    until: float


@dataclass(slots=True)
class _Repairs:
    digest: str
    since: float
    hold_s: float
    counts: Counter[str] = field(default_factory=Counter)


class Contests:
    """The contested fields of all objects, by user and part (see `model.naming`). `clock` returns seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._contests: dict[NamespacedName, dict[str, _Contest]] = {}
        self._repairs: dict[NamespacedName, dict[str, _Repairs]] = {}

    def accepts(self, user: NamespacedName, kind: str, digest: str, fields: Fields) -> bool:
        """Return whether an object with these differences from the manifest with this digest is left unchanged."""
        known = self._contests.get(user, {}).get(kind)
        return known is not None and known.digest == digest and fields <= known.fields and self._clock() < known.until

    def applied(self, user: NamespacedName, kind: str, digest: str, before: Fields, after: Fields) -> None:
        """Note that an object was applied.

        Args:
            before: the fields that had changed since the same manifest was applied; empty for another manifest.
            after: the fields that the API server has stored with other values than those of the manifest.
        """
        now = self._clock()
        contest = self._contests.get(user, {}).pop(kind, None)
        repairs = self._repairs.get(user, {}).pop(kind, None)
        if after:
            self._leave(user, kind, _Contest(digest, after, LONGEST_S, now + LONGEST_S))
            return
        if not before:
            return
        if contest is not None and contest.digest == digest:
            repairs = _Repairs(digest, now, min(LONGEST_S, 2 * contest.hold_s))
        elif repairs is None or repairs.digest != digest or now >= repairs.since + WINDOW_S:
            repairs = _Repairs(digest, now, WINDOW_S)
        repairs.counts.update(before)
        often = frozenset(name for name, count in repairs.counts.items() if count >= REPAIRS)
        if often:
            self._leave(user, kind, _Contest(digest, often, repairs.hold_s, now + repairs.hold_s))
        else:
            self._repairs.setdefault(user, {})[kind] = repairs

    def remaining_s(self, user: NamespacedName, kind: str) -> float | None:
        """Return the seconds after which a contested object is repaired again, None if it is not contested."""
        known = self._contests.get(user, {}).get(kind)
        return None if known is None else max(0.0, known.until - self._clock())

    def forget(self, user: NamespacedName) -> None:
        """Forget a user that is deleted."""
        self._contests.pop(user, None)
        self._repairs.pop(user, None)

    def _leave(self, user: NamespacedName, kind: str, contest: _Contest) -> None:
        self._contests.setdefault(user, {})[kind] = contest


def contested(fields: Iterable[tuple[str, str]]) -> ConditionResult:
    """Return the condition for these fields, each with the part that has it."""
    found = sorted(f"{kind} {name}" for kind, name in fields)
    more = f", and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ConditionResult(
        True,
        "FieldsContested",
        "an admission webhook or a tool sets these fields to other values, and the operator leaves them: "
        + ", ".join(found[:_SHOWN])
        + more,
    )
