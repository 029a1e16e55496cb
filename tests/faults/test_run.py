"""The search for the smallest failing part of a plan, and the generation of a plan from its seed."""

from __future__ import annotations

import pytest

from testing.faults.run import PLAN_LENGTH, shrink
from testing.faults.steps import random_plan


@pytest.mark.parametrize("needed", [{0}, {39}, {3, 17}, {0, 1, 2, 38, 39}, set()])
async def test_what_is_not_needed_is_left_out(needed: set[int]) -> None:
    async def fails(part: list[int]) -> bool:
        return needed <= set(part)

    assert set(await shrink(list(range(PLAN_LENGTH)), fails)) == needed


def test_a_seed_is_a_plan() -> None:
    assert random_plan(7, PLAN_LENGTH) == random_plan(7, PLAN_LENGTH)
    assert random_plan(7, PLAN_LENGTH) != random_plan(8, PLAN_LENGTH)
    assert len(random_plan(7, PLAN_LENGTH)) == PLAN_LENGTH + 2  # the clients it begins with
