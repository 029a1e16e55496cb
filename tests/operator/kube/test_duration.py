"""Durations as text."""

from __future__ import annotations

import pytest

from userrealtime_operator.kube.duration import parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("0s", 0), ("90s", 90), ("1.5s", 1.5), ("250ms", 0.25), ("2m", 120), ("1h30m", 5400), ("720h", 2592000)],
)
def test_a_duration_has_its_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "1", "s", "-1s", "1 h", "1d", "1h 30m", "1hs", "abc1s", "1s\n"])
def test_what_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration such as 90s"):
        parse_duration(text)
