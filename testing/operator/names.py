"""The names of users' objects in tests: readable names, and opaque names with a key."""

from __future__ import annotations

from typing import Final

from userrealtime_operator.model.naming import Naming

NAMES: Final = Naming()
child_name: Final = NAMES.child_name
NAMES_KEY: Final = "the key of opaque names in tests"
OPAQUE: Final = Naming(NAMES_KEY)
