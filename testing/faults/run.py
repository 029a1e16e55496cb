"""Runs a plan and checks its result, and finds the smallest part of a plan that still fails."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from testing.local.brokers import LocalBroker
from testing.local.postgres import LocalPostgres

from .client import Heard
from .environment import FaultEnvironment
from .steps import Step

PLAN_LENGTH: Final = 40
STEP_S: Final = 0.03
"""The pause between steps: about the time that an event needs to arrive, so both orders occur."""
LIMIT_S: Final = 240
"""The time limit of a plan."""


@dataclass(frozen=True)
class Outcome:
    """The result of a successful plan."""

    committed: int
    """The number of events that were ever in the log, in all epochs."""
    delivered: int
    """The number of events that clients received, of all clients."""
    connections: int
    resets: dict[str, int]
    """The number of resets, by reason."""


async def run_plan(server: LocalPostgres, plan: Sequence[Step], broker: LocalBroker | None = None) -> Outcome:
    """Raises Violation, or whatever else went wrong, TimeoutError included. A given broker is running."""
    async with asyncio.timeout(LIMIT_S), FaultEnvironment(server, broker) as world:
        for step in plan:
            await step.run(world)
            await asyncio.sleep(STEP_S)
        await world.settle()
        world.judge()
        entries = [entry for client in world.clients for entry in client.transcript]
        messages = [entry.message for entry in entries if isinstance(entry, Heard)]
        resets: dict[str, int] = {}
        for message in messages:
            if message["type"] == "reset":
                resets[message["reason"]] = resets.get(message["reason"], 0) + 1
        return Outcome(
            committed=sum(len(rows) for rows in world.history.epochs.values()),
            delivered=sum(message["type"] == "event" for message in messages),
            connections=len(entries) - len(messages),
            resets=resets,
        )


async def shrink(kept: list[int], fails: Callable[[list[int]], Awaitable[bool]]) -> list[int]:
    """The fewest steps found that still fail, by leaving out ever smaller runs of them (Zeller's ddmin, simplified).

    `fails` may err, because timing matters. A part that does not fail when it is tried is kept.
    """
    size = max(1, len(kept) // 2)
    while True:
        start = 0
        while start < len(kept):
            rest = kept[:start] + kept[start + size :]
            if await fails(rest):
                kept = rest
            else:
                start += size
        if size == 1:
            return kept
        size //= 2
