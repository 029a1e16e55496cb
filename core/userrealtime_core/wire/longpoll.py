"""The parameters of a long poll."""

from __future__ import annotations

import re
from typing import Final

DEFAULT_TIMEOUT: Final = 25
LONGEST_TIMEOUT: Final = 60
"""Seconds. Proxies commonly end a request after 30 or 60."""


def parse_timeout(text: str) -> float | None:
    """Return the timeout of a request in seconds; None if it is invalid."""
    if not text:
        return DEFAULT_TIMEOUT
    if not re.fullmatch(r"[0-9]{1,2}(\.[0-9]{1,3})?", text) or float(text) > LONGEST_TIMEOUT:
        return None
    return float(text)
