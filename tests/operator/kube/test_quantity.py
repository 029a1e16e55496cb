"""Resource quantities in their canonical form."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from userrealtime_operator.kube.quantity import canonicalize, canonicalize_resources

UNITS: dict[str, Fraction | int] = {"": 1, "n": Fraction(1, 10**9), "u": Fraction(1, 10**6), "m": Fraction(1, 1000)}
UNITS |= {unit: 1000**power for power, unit in enumerate("kMGTPE", 1)}
UNITS |= {f"{unit}i": 1024**power for power, unit in enumerate("KMGTPE", 1)}


def value_of(quantity: str) -> Fraction:
    """Return the value of a quantity without an exponent."""
    match = re.fullmatch(r"([+-]?[0-9.]+)([A-Za-z]*)", quantity)
    assert match is not None, quantity
    return Fraction(match[1].rstrip(".")) * UNITS[match[2]]


quantities = st.builds(
    lambda sign, whole, fraction, unit: f"{sign}{whole}{fraction}{unit}",
    st.sampled_from(["", "+", "-"]),
    st.integers(0, 5000),
    st.sampled_from(["", ".", ".0", ".5", ".25", ".125", ".10", ".001", ".123456789", ".0000000001"]),
    st.sampled_from([*UNITS]),
)


@pytest.mark.parametrize(
    ("given_as", "stored_as"),
    [
        ("0.5", "500m"),
        (0.5, "500m"),
        (1, "1"),
        ("1000m", "1"),
        ("1500m", "1500m"),
        ("1024Mi", "1Gi"),
        ("1.5Gi", "1536Mi"),
        ("0.5Ki", "512"),
        ("437.5Ki", "448k"),
        ("1024", "1024"),
        ("1000k", "1M"),
        ("1e3", "1k"),
        ("1E3", "1k"),
        ("12e-1", "1200m"),
        ("2E", "2E"),
        ("0Gi", "0"),
        ("-0.5", "-500m"),
        ("0.0105", "11m"),
        ("0.1n", "1m"),
        ("128Mi", "128Mi"),
    ],
)
def test_quantities_become_as_the_api_server_stores_them(given_as: str | float, stored_as: str) -> None:
    assert canonicalize(given_as) == stored_as


@given(quantities)
def test_the_form_changes_and_the_value_does_not(quantity: str) -> None:
    result = canonicalize(quantity)
    before = value_of(quantity)
    if abs(before) < 2**63:
        exact = before * 1000
        up = -(-exact.numerator // exact.denominator) if exact >= 0 else exact.numerator // exact.denominator
        assert value_of(result) == Fraction(up, 1000)
        assert re.fullmatch(r"-?(0|[1-9][0-9]*)([mkMGTPE]|[KMGTPE]i)?", result)
    assert canonicalize(result) == result


@given(st.text(max_size=12) | st.from_regex(r"[0-9.eE+-]{1,12}", fullmatch=True))
def test_whatever_is_no_quantity_is_left_to_the_api_server(text: str) -> None:
    assert canonicalize(canonicalize(text)) == canonicalize(text)


@pytest.mark.parametrize("text", ["a lot", "", "1e99999999", "10E", "1Gib", "1 Gi"])
def test_it_is_left_as_it_is(text: str) -> None:
    assert canonicalize(text) == text


def test_requests_and_limits_are_rewritten_and_nothing_else() -> None:
    resources = {"requests": {"cpu": "0.5"}, "limits": {"memory": "1024Mi"}, "claims": [{"name": "1024Mi"}]}
    assert canonicalize_resources(resources) == {
        "requests": {"cpu": "500m"},
        "limits": {"memory": "1Gi"},
        "claims": [{"name": "1024Mi"}],
    }
