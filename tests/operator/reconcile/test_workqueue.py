"""The queue of keys to reconcile."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from testing.patience import PATIENCE_S
from userrealtime_operator.kube.types import TryLater
from userrealtime_operator.reconcile import workqueue
from userrealtime_operator.reconcile.workqueue import WorkQueue


@contextlib.asynccontextmanager
async def running(
    queue: WorkQueue[str], work: Callable[[str], Awaitable[float | None]], workers: int = 2
) -> AsyncIterator[None]:
    task = asyncio.create_task(queue.run(work, workers))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def recording() -> tuple[list[str], Callable[[str], Awaitable[None]]]:
    """Return the keys that were processed, and the work that records them."""
    done: list[str] = []

    async def work(key: str) -> None:
        done.append(key)

    return done, work


async def eventually(condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_key_added_often_is_worked_on_once() -> None:
    done, work = recording()
    queue: WorkQueue[str] = WorkQueue()
    for _ in range(5):
        queue.add("a")
    queue.add("b")
    async with running(queue, work):
        await eventually(lambda: len(done) == 2)
        await asyncio.sleep(0.05)
    assert sorted(done) == ["a", "b"]


async def test_one_worker_a_key_and_once_more_for_what_came_meanwhile() -> None:
    release = asyncio.Event()
    active = 0
    most = 0
    rounds = 0

    async def work(_key: str) -> None:
        nonlocal active, most, rounds
        active += 1
        most = max(most, active)
        rounds += 1
        await release.wait()
        active -= 1

    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    async with running(queue, work, workers=4):
        await eventually(lambda: rounds == 1)
        for _ in range(3):
            queue.add("a")
        await asyncio.sleep(0.05)
        assert rounds == 1
        release.set()
        await eventually(lambda: rounds == 2)
        await asyncio.sleep(0.05)
    assert (rounds, most) == (2, 1)


async def test_a_failing_key_comes_back_and_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workqueue, "FIRST_DELAY_S", 0.01)
    attempts: list[str] = []

    async def work(key: str) -> None:
        attempts.append(key)
        if key == "bad" and attempts.count("bad") < 4:
            raise RuntimeError("not yet")

    queue: WorkQueue[str] = WorkQueue()
    queue.add("bad")
    queue.add("good")
    async with running(queue, work, workers=1):
        await eventually(lambda: attempts.count("bad") == 4)
    assert attempts.index("good") == 1


async def test_a_key_may_ask_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = 0

    async def work(_key: str) -> float | None:
        nonlocal rounds
        rounds += 1
        return 0.01 if rounds < 3 else None

    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    async with running(queue, work):
        await eventually(lambda: rounds == 3)


def test_delays_grow_up_to_a_limit() -> None:
    delays = [workqueue.retry_delay(failures) for failures in range(40)]
    assert delays[0] < delays[3] < delays[6]
    assert max(delays) <= workqueue.LAST_DELAY_S * 1.2


async def test_a_failure_may_say_when_to_try_again() -> None:
    failed_at: list[float] = []

    async def work(_key: str) -> None:
        failed_at.append(asyncio.get_running_loop().time())
        if len(failed_at) == 1:
            raise TryLater("overloaded", after_s=1.0)

    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    async with running(queue, work):
        await eventually(lambda: len(failed_at) == 2)
    # The first delay without `after_s` is at most 0.6 s.
    assert failed_at[1] - failed_at[0] >= 1.0


async def test_work_may_stop_and_go_on_and_no_key_is_forgotten() -> None:
    started: list[str] = []
    done: list[str] = []
    release = asyncio.Event()

    async def work(key: str) -> float | None:
        started.append(key)
        if key == "in work":
            await release.wait()
        done.append(key)
        return 3600.0

    queue: WorkQueue[str] = WorkQueue()
    queue.add("in work")
    queue.add("has a timer")
    async with running(queue, work):
        await eventually(lambda: len(started) == 2 and done == ["has a timer"])
    queue.add("new")
    release.set()
    assert len(queue) == 3
    started.clear()
    async with running(queue, work):
        await eventually(lambda: len(started) == 3)
    assert sorted(started) == ["has a timer", "in work", "new"]


async def test_waits_and_failures_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workqueue, "FIRST_DELAY_S", 0.01)
    waits: list[float] = []
    failures: list[None] = []

    async def work(_key: str) -> None:
        if not failures:
            raise RuntimeError("not yet")

    queue: WorkQueue[str] = WorkQueue(waits.append, lambda: failures.append(None))
    queue.add("a")
    async with running(queue, work):
        await eventually(lambda: len(waits) == 2)
    assert len(failures) == 1
    assert min(waits) >= 0


async def test_what_is_urgent_goes_first_and_once() -> None:
    done, work = recording()
    queue: WorkQueue[str] = WorkQueue()
    for key in "abc":
        queue.add(key)
    queue.add("c", urgent=True)
    queue.add("d", urgent=True)
    queue.add("c", urgent=True)
    assert len(queue) == 4
    async with running(queue, work, workers=1):
        await eventually(lambda: len(done) == 4)
        await asyncio.sleep(0.05)
    assert done == ["c", "d", "a", "b"]


async def test_what_becomes_urgent_while_it_is_worked_on_comes_back_first() -> None:
    done: list[str] = []
    release = asyncio.Event()

    async def work(key: str) -> None:
        done.append(key)
        await release.wait()

    queue: WorkQueue[str] = WorkQueue()
    async with running(queue, work, workers=1):
        queue.add("a")
        await eventually(lambda: done == ["a"])
        queue.add("b")
        queue.add("a", urgent=True)
        queue.add("a")
        release.set()
        await eventually(lambda: len(done) == 3)
    assert done == ["a", "a", "b"]


async def test_changes_are_gathered_for_a_while() -> None:
    done, work = recording()
    queue: WorkQueue[str] = WorkQueue()
    async with running(queue, work):
        for _ in range(5):
            queue.add_later("a", 0.05)
        queue.add_later("b", 600)
        assert len(queue) == 0
        await eventually(lambda: done == ["a"])
        # A shorter delay replaces a longer one, and the key itself replaces both.
        queue.add_later("b", 0.01)
        queue.add_later("b", 600)
        await eventually(lambda: done == ["a", "b"])
        queue.add_later("c", 600)
        queue.add("c")
        queue.add_later("c", 0)  # it waits for a worker already
        await eventually(lambda: done == ["a", "b", "c"])
        await asyncio.sleep(0.1)
    assert done == ["a", "b", "c"]


async def test_a_change_during_the_work_is_gathered_with_later_ones() -> None:
    release, began = asyncio.Event(), 0

    async def work(_key: str) -> float | None:
        nonlocal began
        began += 1
        await release.wait()
        return 600

    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    async with running(queue, work):
        await eventually(lambda: began == 1)
        queue.add_later("a", 0.05)
        queue.add_later("a", 0.05)
        release.set()
        await eventually(lambda: began == 2)
        await asyncio.sleep(0.1)
    assert began == 2


async def test_a_key_that_is_gathered_is_not_lost_when_the_work_stops() -> None:
    done, work = recording()
    queue: WorkQueue[str] = WorkQueue()
    async with running(queue, work):
        await asyncio.sleep(0)  # the work begins
        queue.add_later("a", 600)
    assert len(queue) == 1
    async with running(queue, work):
        await eventually(lambda: done == ["a"])
