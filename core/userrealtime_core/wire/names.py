"""The rule for names: refs, and the names of events and broadcasts."""

from __future__ import annotations

import re
from typing import Any, Final, TypeGuard

LONGEST_NAME: Final = 253
"""Characters of a name, as userrealtime.is_name checks it."""


def is_name(value: Any) -> TypeGuard[str]:
    """Return whether a value is a text of 1 to `LONGEST_NAME` characters that Postgres can store, in one line."""
    # Half of a surrogate pair is a character to JSON, but not to UTF-8.
    return (
        isinstance(value, str)
        and 1 <= len(value) <= LONGEST_NAME
        and re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", value) is None
    )
