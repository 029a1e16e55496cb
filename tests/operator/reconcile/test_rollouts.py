"""The number of simultaneous rollouts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from userrealtime_operator.kube.types import NamespacedName
from userrealtime_operator.reconcile.rollouts import Rollouts

STEPS = st.lists(st.tuples(st.sampled_from(["begin", "end"]), st.integers(0, 5)), max_size=60)


@given(st.integers(1, 3), STEPS)
def test_never_too_many_and_nobody_is_forgotten(limit: int, steps: list[tuple[str, int]]) -> None:
    rollouts = Rollouts(limit)
    users = [NamespacedName("n", str(number)) for number in range(6)]
    active: set[NamespacedName] = set()
    waiting: set[NamespacedName] = set()
    for step, number in steps:
        user = users[number]
        if step == "begin":
            began = rollouts.begin(user)
            (active if began else waiting).add(user)
            waiting -= active
            woken = []
        else:
            woken = rollouts.end(user)
            active.discard(user)
            waiting.discard(user)
        for next_user in woken:
            assert next_user in waiting
            if rollouts.begin(next_user):
                active.add(next_user)
                waiting.discard(next_user)
        assert len(active) <= limit
    # The next waiting user may begin when an earlier rollout has ended.
    while active:
        user = active.pop()
        for next_user in rollouts.end(user):
            assert rollouts.begin(next_user)
            active.add(next_user)
            waiting.discard(next_user)
    assert not waiting


def test_first_come_first_served() -> None:
    rollouts = Rollouts(1)
    a, b, c = (NamespacedName("n", name) for name in "abc")
    assert [rollouts.begin(user) for user in (a, c, b)] == [True, False, False]
    assert rollouts.begin(a)
    assert rollouts.end(a) == [c]


def test_a_user_that_no_longer_waits_lets_the_next_one_begin() -> None:
    rollouts = Rollouts(1)
    a, b, c = (NamespacedName("n", name) for name in "abc")
    assert [rollouts.begin(user) for user in (a, b, c)] == [True, False, False]
    assert rollouts.end(a) == [b]  # and b does not begin
    assert rollouts.withdraw(b) == [c]
    assert rollouts.withdraw(b) == []
    assert rollouts.begin(c)
    assert rollouts.withdraw(c) == []
    assert not rollouts.begin(a)


def test_the_time_of_a_rollout_counts_from_its_turn() -> None:
    now = 0.0
    rollouts = Rollouts(1, lambda: now)
    a, b = (NamespacedName("n", name) for name in "ab")
    rollouts.begin(a)
    rollouts.begin(b)
    now = 5.0
    assert (rollouts.active_s(a), rollouts.active_s(b)) == (5.0, 0.0)
    rollouts.begin(a)
    rollouts.resume(a)
    assert rollouts.active_s(a) == 5.0
    rollouts.end(a)
    assert rollouts.active_s(a) == 0.0


def test_what_was_under_way_before_counts() -> None:
    rollouts = Rollouts(2)
    a, b, c, d = (NamespacedName("n", name) for name in "abcd")
    for user in (a, b, c):  # the limit was higher then
        rollouts.resume(user)
    assert [rollouts.begin(user) for user in (d, a)] == [False, True]
    assert rollouts.end(a) == []
    assert rollouts.end(b) == [d]
