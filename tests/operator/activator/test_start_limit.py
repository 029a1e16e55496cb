"""The limit of starts, on simulated clusters whose CPUs are shared by all pods that start."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import pytest

from userrealtime_operator.activator.start_limit import LEAST, MOST, StartLimit

pytestmark = pytest.mark.unit

STEP_S: Final = 0.02
WAIT_S: Final = 0.35
"""Seconds of a start without any CPU, as for volumes."""
CPU_S: Final = (0.45, 0.55, 0.65, 0.75, 0.85)
"""Seconds of CPU of a start, in turn."""
RATE: Final = 1.5
"""The CPUs that a start can use at the same time."""


class Activator:
    """An activator with users that wait for their turn."""

    def __init__(self, limit: StartLimit | None) -> None:
        self.limit = limit
        self.waiting = 0
        self.jobs: list[Job] = []
        self._cpu_s = itertools.cycle(CPU_S)

    def begin(self, now: float) -> None:
        while self.waiting and (self.limit is None or len(self.jobs) < self.limit.value):
            self.waiting -= 1
            self.jobs.append(Job(now, next(self._cpu_s)))

    def end(self, job: Job, now: float) -> None:
        if self.limit is not None:
            self.limit.adjust(now - job.began, len(self.jobs))
        self.jobs.remove(job)


@dataclass(eq=False)
class Job:
    """The start of a pod."""

    began: float
    left_s: float


def limits() -> list[StartLimit | None]:
    """Return the limits of two activators, as the chart has by default."""
    return [StartLimit(), StartLimit()]


def served(cpus: float, users: int, limits: Sequence[StartLimit | None] = (None,)) -> list[float]:
    """Return the seconds until each of some users is served who all connect at the same moment."""
    now, found = 0.0, list[float]()
    activators = [Activator(limit) for limit in limits]
    for user in range(users):
        activators[user % len(activators)].waiting += 1
    while len(found) < users:
        for activator in activators:
            activator.begin(now)
        now += STEP_S
        working = [(each, job) for each in activators for job in each.jobs if now - job.began >= WAIT_S]
        for activator, job in working:
            job.left_s -= STEP_S * min(RATE, cpus / len(working))
            if job.left_s <= 0:
                activator.end(job, now)
                found.append(now)
    return found


@pytest.mark.parametrize("wakes_before", [0, 20])
def test_a_small_cluster_serves_half_of_the_users_sooner_and_the_last_one_hardly_later(wakes_before: int) -> None:
    ours = limits()
    for _ in range(wakes_before):
        served(2, 2, ours)
    together, limited = served(2, 20), served(2, 20, ours)
    assert statistics.median(limited) < 0.8 * statistics.median(together)
    assert max(limited) < 1.1 * max(together)


def test_a_large_cluster_serves_many_users_at_the_same_time() -> None:
    with_first_limit = 1000 / (2 * LEAST) * (WAIT_S + min(CPU_S) / RATE)
    limited = max(served(100, 1000, limits()))
    assert limited < 2 * max(served(100, 1000))
    assert limited < with_first_limit / 10


def test_a_large_limit_soon_fits_a_cluster_that_has_become_small() -> None:
    ours = [limit := StartLimit()]
    served(100, 1000, ours)
    assert limit.value > 50
    served(2, 100, ours)
    assert limit.value < 20


def test_single_wakes_do_not_change_the_limit() -> None:
    limit = StartLimit()
    for _ in range(1000):
        served(2, 1, [limit])
    assert limit.value <= LEAST + 1


def test_a_single_fast_start_does_not_lower_the_limit_for_all_others() -> None:
    limit = StartLimit()
    for duration_s in (0.7, 0.01, *[0.7] * 100):
        limit.adjust(duration_s, 1000)
    assert limit.value > 50


def test_the_limit_has_bounds_and_takes_any_duration() -> None:
    limit = StartLimit()
    for duration_s in (*[0.0] * 3, *[1.0] * 3000):
        limit.adjust(duration_s, 10_000)
    assert limit.value == MOST
    for _ in range(3000):
        limit.adjust(100.0, 10_000)
        limit.adjust(0.1, 0)
    assert limit.value == LEAST
