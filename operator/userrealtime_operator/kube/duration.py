"""Durations as Kubernetes and Go write them: "90s", "1h30m", "720h". Pure."""

from __future__ import annotations

import re

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_PART = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(ms|[hms])")


def parse_duration(text: str) -> float:
    """The seconds of a duration. A bare 0 is one too.

    Raises:
        ValueError: not a duration.
    """
    if text == "0":
        return 0.0
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is not a duration such as 90s, 15m or 1h30m")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)
