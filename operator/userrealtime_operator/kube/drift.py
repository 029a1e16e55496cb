"""Whether a live object still is what was applied, without a request to the API server.

A dry-run apply would cost as much as a create, so two other things are compared. Each applied object has the digest of
its manifest, which also detects fields that are no longer desired. And all desired fields must be in the live object.
Fields that other managers added are left unchanged.
"""

from __future__ import annotations

from typing import Any

# Mappings that are replaced as a whole: selectors by the API server, a Secret's data by the operator. An added key
# changes their meaning.
ATOMIC = frozenset({"selector", "data"})


def is_subset(desired: Any, live: Any) -> bool:
    """Return whether `live` has everything that `desired` has.

    Mappings of `live` may have more keys. Lists and plain values must be equal, including the order of lists.
    An empty mapping or list of `desired` may be absent in `live`.
    """
    if isinstance(desired, dict):
        if not desired and live is None:
            return True
        return isinstance(live, dict) and all(
            live.get(key) == value if key in ATOMIC else is_subset(value, live.get(key))
            for key, value in desired.items()
        )
    if isinstance(desired, list):
        if not desired and live is None:
            return True
        return (
            isinstance(live, list)
            and len(live) == len(desired)
            and all(is_subset(wanted, actual) for wanted, actual in zip(desired, live, strict=True))
        )
    return bool(live == desired)
