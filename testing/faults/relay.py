"""The relay's process, with short time limits where no variable sets them: a plan takes seconds, not minutes.

Nothing else differs from `python -m userrealtime_relay`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Final

from userrealtime_core import backoff
from userrealtime_core.announcer import loop
from userrealtime_relay.__main__ import main
from userrealtime_relay.log import log

SHORT: Final[tuple[tuple[ModuleType, str, float], ...]] = (
    (log, "CONNECT_TIMEOUT", 2),
    (log, "QUERY_TIMEOUT", 1.5),
    (loop, "CONNECT_TIMEOUT", 2),
    (loop, "QUERY_TIMEOUT", 1.5),
    (backoff, "LAST", 1),
)


def shorten() -> None:
    """Set short time limits in this process."""
    for module, name, seconds in SHORT:
        assert hasattr(module, name), f"{module.__name__} has no {name} any more"
        setattr(module, name, seconds)


if __name__ == "__main__":
    shorten()
    sys.exit(main())
