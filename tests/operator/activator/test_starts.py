"""The queue of starts."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from testing.patience import PATIENCE_S
from userrealtime_operator.activator.metrics import Metrics
from userrealtime_operator.activator.start_limit import LEAST
from userrealtime_operator.activator.starts import Starts

pytestmark = pytest.mark.unit

AT_FIRST = int(LEAST)


async def test_starts_take_turns_in_the_order_of_their_arrival() -> None:
    metrics = Metrics()
    starts = Starts(metrics)
    with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
        begun = [first.enter_context(starts.enter()) for _ in range(AT_FIRST)]
        late = [second.enter_context(starts.enter()) for _ in range(3)]
        assert [start.turn.done() for start in (*begun, *late)] == [True] * AT_FIRST + [False] * 3
        assert (metrics.value("starts"), metrics.value("waiting_starts")) == (AT_FIRST, 3)
        first.close()
        assert [start.turn.done() for start in late] == [True] * AT_FIRST + [False] * (3 - AT_FIRST)
    assert (metrics.value("starts"), metrics.value("waiting_starts")) == (0, 0)


async def test_a_start_leaves_the_queue_before_its_turn() -> None:
    metrics = Metrics()
    starts = Starts(metrics)
    with contextlib.ExitStack() as begun:
        for _ in range(AT_FIRST):
            begun.enter_context(starts.enter())
        with pytest.raises(TimeoutError), starts.enter():
            raise TimeoutError
        with starts.enter() as last:
            assert metrics.value("waiting_starts") == 1
            begun.close()
            assert last.turn.done()
    assert metrics.value("starts") == 0


async def test_a_stuck_start_lets_others_begin_and_does_not_count_twice() -> None:
    metrics = Metrics()
    starts = Starts(metrics, stuck_s=0.05)
    with contextlib.ExitStack() as stuck:
        for start in [stuck.enter_context(starts.enter()) for _ in range(AT_FIRST)]:
            start.measured = True
        with starts.enter() as next_one:
            async with asyncio.timeout(PATIENCE_S):
                await next_one.turn
            await all_stuck(metrics)
            stuck.close()
            assert metrics.value("starts") == 0
        assert metrics.value("starts") == 0


async def test_a_stuck_start_raises_the_limit_if_no_start_was_faster() -> None:
    metrics = Metrics()
    with Starts(metrics, stuck_s=0.05).enter():
        await all_stuck(metrics)
    assert metrics.value("start_limit") > LEAST, "the cluster may just be slow"


async def all_stuck(metrics: Metrics) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while metrics.value("starts"):
            await asyncio.sleep(0.01)


async def test_only_a_measured_start_changes_the_limit() -> None:
    metrics = Metrics()
    starts = Starts(metrics)
    with starts.enter(), starts.enter():
        pass
    assert metrics.value("start_limit") == LEAST
    with starts.enter() as start:
        start.measured = True
    assert metrics.value("start_limit") > LEAST
