"""When a user may sleep."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from userrealtime_operator.model.presence import Presence
from userrealtime_operator.sleep.policy import FRESH_S, Park, Sleep, Stay, decide, decide_parking

NOW = 1_000_000.0
ROWS = st.lists(
    st.builds(
        Presence,
        instance=st.sampled_from(["a", "b"]),
        clients=st.integers(0, 2),
        since=st.floats(NOW - 1000, NOW),
        seen_at=st.floats(NOW - 1000, NOW),
    ),
    max_size=2,
    unique_by=lambda row: row.instance,
)


def row(clients: int = 0, idle_s: float = 100, heard_s: float = 1, instance: str = "a") -> Presence:
    return Presence(instance, clients, NOW - idle_s, NOW - heard_s)


def look(*rows: Presence, pods: tuple[str, ...] = ("a",), after_s: float = 60, awake_s: float = 500) -> Sleep | Stay:
    return decide(pods, rows, after_s, NOW - awake_s, NOW, warm=False)


def test_sleeps_once_idle_for_long_enough() -> None:
    assert look(row(idle_s=60)) == Sleep()
    assert look(row(idle_s=59)) == Stay(1)


def test_a_wake_request_counts_as_use() -> None:
    assert look(row(idle_s=100), awake_s=10) == Stay(50)


def test_a_pod_that_has_not_spoken_may_have_clients() -> None:
    assert look() == Stay(60)
    assert look(row(), pods=("a", "b")) == Stay(60)
    assert look(row(heard_s=FRESH_S)) == Stay(60)


def test_without_a_pod_there_is_nothing_to_put_to_sleep() -> None:
    assert look(row(), pods=()) == Stay(60)


def test_the_clients_of_a_pod_that_is_going_count() -> None:
    assert look(row(), row(clients=1, instance="old")) == Stay(60)
    assert look(row(), row(clients=1, instance="dead", heard_s=FRESH_S + 1)) == Sleep()


def test_sleep_can_be_switched_off() -> None:
    assert look(row(), after_s=0) == Stay(None)
    assert decide(("a",), [row()], 60, 0, NOW, warm=True) == Stay(None)


@given(ROWS, st.floats(1, 500), st.floats(0, 1000))
def test_nobody_with_a_client_or_of_late_sleeps(rows: list[Presence], after_s: float, awake_s: float) -> None:
    answer = decide(("a",), rows, after_s, NOW - awake_s, NOW, warm=False)
    if isinstance(answer, Sleep):
        fresh = [each for each in rows if each.seen_at > NOW - FRESH_S]
        assert "a" in {each.instance for each in fresh}
        assert all(each.clients == 0 and NOW - each.since >= after_s - 1e-3 for each in fresh)
        assert awake_s >= after_s - 1e-3
    else:
        assert answer.recheck_s is not None
        assert 0 < answer.recheck_s <= after_s + 1e-3


def quiet(*rows: Presence, pods: tuple[str, ...] = ("a",), after_s: float = 60, awake_s: float = 500) -> Park | Stay:
    return decide_parking(pods, rows, after_s, NOW - awake_s, NOW)


def pod(clients: int = 1, quiet_s: float = 100, heard_s: float = 0, instance: str = "a") -> Presence:
    return Presence(instance, clients, NOW - 500, NOW - heard_s, NOW - quiet_s)


def test_quiet_clients_are_parked() -> None:
    assert quiet(pod(quiet_s=60)) == Park()
    assert quiet(pod(quiet_s=59)) == Stay(1)
    assert quiet(pod(quiet_s=59), after_s=0) == Stay(None)


def test_only_the_silence_that_was_reported_counts() -> None:
    assert quiet(pod(quiet_s=100, heard_s=50)) == Stay(10)
    assert quiet(pod(quiet_s=100, heard_s=40)) == Park()
    assert quiet(pod(quiet_s=1000, heard_s=FRESH_S)) == Stay(60)


def test_all_pods_must_be_quiet() -> None:
    assert quiet(pod(), pods=("a", "b")) == Stay(60)
    assert quiet(pod(), pod(quiet_s=10, instance="b")) == Stay(50)
    assert quiet(pod(), pod(clients=0, instance="b"), pods=("a", "b")) == Park()
    assert quiet(pod(), row(clients=1, heard_s=0, instance="b")).recheck_s is not None  # type: ignore[union-attr]


def test_a_user_without_clients_or_pods_is_not_parked() -> None:
    assert quiet(pod(clients=0)) == Stay(60)
    assert quiet(pod(), pods=()) == Stay(60)


def test_a_user_that_was_just_woken_is_not_parked() -> None:
    assert quiet(pod(), awake_s=10) == Stay(50)
