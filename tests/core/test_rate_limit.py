"""The token bucket, without a clock."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from userrealtime_core.wire.rate_limit import TokenBucket


def test_a_burst_then_the_rate() -> None:
    allowance = TokenBucket(2, 0)
    assert [allowance.take(0) for _ in range(3)] == [True, True, False]
    assert not allowance.take(0.25)
    assert allowance.take(0.5)
    assert not allowance.take(0.75)
    assert [allowance.take(100) for _ in range(3)] == [True, True, False]


def test_without_a_limit() -> None:
    allowance = TokenBucket(math.inf, 0)
    assert all(allowance.take(now) for now in (0, 0, 1, 1))


@given(st.integers(1, 50), st.lists(st.floats(0, 3), max_size=200))
def test_never_more_than_the_rate_and_a_burst(rate: int, waits: list[float]) -> None:
    allowance, now, taken = TokenBucket(rate, 0), 0.0, 0
    for wait in waits:
        now += wait
        taken += allowance.take(now)
    assert taken <= rate * (now + 1) + 1e-6
