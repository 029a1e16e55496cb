"""A plan, from its start to its judgement, and the search for the smallest part of it that still fails."""

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
"""Between steps: about the time an event needs to arrive: sometimes it has, and sometimes it has not."""
LIMIT_S: Final = 240
"""A plan that takes longer hangs."""


@dataclass(frozen=True)
class Outcome:
    """What a plan that was kept came to."""

    committed: int
    """Events that were ever in the log, each epoch's counted."""
    delivered: int
    """Events that clients received, each client's counted."""
    connections: int
    resets: dict[str, int]
    """By reason."""


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
