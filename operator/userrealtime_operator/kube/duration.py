"""Durations in the notation of Kubernetes and Go, such as 90s, 1h30m or 720h (GEP-2257 without its limits). Pure."""

from __future__ import annotations

import re
from typing import Final

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_NUMBER = r"[0-9]{1,9}([.][0-9]{1,6})?"
_PART = re.compile(rf"({_NUMBER})(ms|[hms])")
DURATION: Final = rf"(0|({_NUMBER}(ms|[hms]))+)"
"""A regular expression, which the CRD and the chart's values.schema.json also contain."""


def parse_duration(text: str) -> float:
    """Return the seconds of a duration. A bare 0 is a duration.

    Raises:
        ValueError: not a duration.
    """
    if re.fullmatch(DURATION, text) is None:
        raise ValueError(f"{text!r} is not a duration such as 90s, 15m or 1h30m")
    return sum(float(number) * _UNITS[unit] for number, _, unit in _PART.findall(text))
