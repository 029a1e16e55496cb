"""When the announcer polls: a pure decision, given the time."""

from __future__ import annotations

import pytest

from userrealtime_core.announcer.traffic import (
    BUSY_RINGS,
    BUSY_WINDOW,
    LONGEST_EMPTY_PAUSE,
    LONGEST_PAUSE,
    PAUSE_PER_LISTENER,
    QUIET_USERS,
    QUIET_WINDOW,
    SHORTEST_PAUSE,
    Traffic,
)


@pytest.mark.parametrize(
    ("rings", "interval", "busy"),
    [
        (BUSY_RINGS, 0.0, True),
        (BUSY_RINGS, BUSY_WINDOW / BUSY_RINGS, True),
        (BUSY_RINGS - 1, 0.0, False),
        (100 * BUSY_RINGS, BUSY_WINDOW / (BUSY_RINGS - 2), False),
    ],
)
def test_polling_starts_when_publishers_ring_often_enough(rings: int, interval: float, busy: bool) -> None:
    traffic = Traffic()
    for number in range(rings):
        traffic.rang(number * interval)
    assert traffic.is_busy((rings - 1) * interval) is busy


def test_rings_of_long_ago_do_not_count() -> None:
    traffic = Traffic()
    for _ in range(BUSY_RINGS):
        traffic.rang(0)
    assert traffic.is_busy(BUSY_WINDOW)
    assert not traffic.is_busy(BUSY_WINDOW + 0.001)
    traffic.begin(0)
    assert not traffic.is_busy(0)


def test_polling_ends_when_few_users_are_found_for_a_while() -> None:
    traffic = Traffic()
    traffic.begin(0)
    traffic.polled(0, 0)
    assert not traffic.is_quiet(QUIET_WINDOW / 2)  # not before a whole window has passed
    assert traffic.is_quiet(QUIET_WINDOW)
    traffic.polled(QUIET_WINDOW, QUIET_USERS)
    assert not traffic.is_quiet(QUIET_WINDOW)
    traffic.polled(2 * QUIET_WINDOW + 0.001, QUIET_USERS - 1)
    assert traffic.is_quiet(2 * QUIET_WINDOW + 0.001)


def test_more_users_and_more_listeners_make_longer_pauses() -> None:
    traffic = Traffic()
    assert SHORTEST_PAUSE < traffic.pause(1, 0) < traffic.pause(10, 0) < traffic.pause(10, 1000)
    assert traffic.pause(10, 300) == 300 * PAUSE_PER_LISTENER
    assert traffic.pause(10_000, 0) == traffic.pause(1, 100_000) == LONGEST_PAUSE


def test_empty_polls_make_longer_pauses_up_to_a_limit() -> None:
    traffic = Traffic()
    pauses = []
    for number in range(10):
        traffic.polled(number, 0)
        pauses.append(traffic.pause(0, 1000))
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_EMPTY_PAUSE
