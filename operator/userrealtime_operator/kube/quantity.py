"""Resource quantities ("500m", "128Mi") in the one form that the API server leaves as it is. Pure.

What is applied in another form ("0.5") comes back rewritten, and would look like drift for ever.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from math import ceil
from typing import Any

_BINARY = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}
_DECIMAL = {"E": 18, "P": 15, "T": 12, "G": 9, "M": 6, "k": 3, "": 0, "m": -3, "u": -6, "n": -9}
_FORM = re.compile(
    r"(?P<number>[+-]?(?:\d{1,40}(?:\.\d{0,40})?|\.\d{1,40}))"
    rf"(?:(?P<suffix>{'|'.join([*_BINARY, *_DECIMAL])})|[eE](?P<exponent>[+-]?\d{{1,2}}))"
)
_MOST = 2**63 - 1


def canonicalize(quantity: str | float) -> str:
    """The same quantity with no fraction and the largest suffix possible, rounded up to a thousandth, as the API server
    does in pods; a decimal one if it is no whole number of Ki. What is none, or too large for one, is left as it is:
    the API server says what is wrong with it."""
    text = str(quantity)
    match = _FORM.fullmatch(text)
    if match is None:
        return text
    suffix = match["suffix"]
    scale = Fraction(1024) ** _BINARY[suffix] if suffix in _BINARY else Fraction(10) ** _exponent(match)
    value = Fraction(match["number"].rstrip(".")) * scale
    if abs(value) > _MOST:
        return text
    sign = "-" if value < 0 else ""
    if suffix in _BINARY and value and value % 1024 == 0:
        return sign + _binary(abs(int(value)))
    return sign + _decimal(ceil(abs(value) * 1000))


def canonicalize_resources(resources: Mapping[str, Any]) -> dict[str, Any]:
    """A container's resources with every quantity of `requests` and `limits` in canonical form."""
    return {
        key: {name: canonicalize(quantity) for name, quantity in value.items()}
        if key in ("requests", "limits")
        else value
        for key, value in resources.items()
    }


def _exponent(match: re.Match[str]) -> int:
    return _DECIMAL[match["suffix"]] if match["exponent"] is None else int(match["exponent"])


def _binary(value: int) -> str:
    suffix = ""
    for larger in _BINARY:
        if value % 1024:
            break
        value, suffix = value // 1024, larger
    return f"{value}{suffix}"


def _decimal(thousandths: int) -> str:
    if thousandths == 0:
        return "0"
    suffix, power = next((s, e + 3) for s, e in _DECIMAL.items() if thousandths % 10 ** (e + 3) == 0)
    return f"{thousandths // 10**power}{suffix}"
