"""Whether a live object still is what was applied, told without asking the API server.

A dry-run apply would cost as much as a create. So two things are looked at: the digest that every applied object
carries says whether *this* desired state was the one applied, which also covers fields that are no longer wanted;
and everything desired must stand in the live object. Fields that others added beside ours are left to them.
"""

from __future__ import annotations

from typing import Any

# Maps that are replaced as a whole (selectors by the API server, a Secret's data by us): what somebody adds to one is a
# change of its meaning.
ATOMIC = frozenset({"selector", "data"})


def contains(live: Any, desired: Any) -> bool:
    """Whether `live` has all of `desired`: mappings may hold more, lists and plain values must be equal in length and
    order. Keys for which nothing is desired (an empty mapping or list) may be absent."""
    if isinstance(desired, dict):
        if not desired and live is None:
            return True
        return isinstance(live, dict) and all(
            live.get(key) == value if key in ATOMIC else contains(live.get(key), value)
            for key, value in desired.items()
        )
    if isinstance(desired, list):
        if not desired and live is None:
            return True
        return (
            isinstance(live, list)
            and len(live) == len(desired)
            and all(contains(mine, wanted) for mine, wanted in zip(live, desired, strict=True))
        )
    return bool(live == desired)
