"""Resource quantities ("500m", "128Mi") in the canonical form of the API server. Pure.

The API server rewrites other forms ("0.5"), which would be reported as drift at every comparison.
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
    """Return a quantity without a fraction and with the largest possible suffix, rounded up to a thousandth.

    The suffix is decimal if the quantity is not a whole number of Ki. An invalid quantity is returned unchanged,
    because the API server rejects it with a message.
    """
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
    """Return a container's resources with all quantities of `requests` and `limits` in canonical form."""
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
