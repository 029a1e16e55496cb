"""Every client has every event once and in order while the broker fails and bridges are killed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Final

import pytest

from testing.faults.client import Heard
from testing.faults.environment import FaultEnvironment
from testing.faults.run import PLAN_LENGTH, run_plan
from testing.faults.steps import (
    CutBroker,
    HoldBroker,
    Kill,
    KillBridge,
    KillBroker,
    NewClient,
    Pause,
    Publish,
    ReleaseBroker,
    RestartPostgres,
    SetBack,
    Start,
    StartBridge,
    StartBroker,
    Step,
    StrandPostgres,
    TerminateBackends,
    random_plan,
)
from testing.local.brokers import BROKERS, LocalBroker
from testing.local.postgres import LocalPostgres
from testing.relay.brokers import make_broker

FOUR: Final = Publish(0, 4)
SEEDS: Final = {"nats": (11, 12, 13), "redis": (21, 22), "kafka": (31,)}


@pytest.fixture(params=BROKERS)
async def broker(request: pytest.FixtureRequest) -> AsyncIterator[LocalBroker]:
    async with make_broker(request.param, "a-password") as broker:
        yield broker


async def kept(server: LocalPostgres, broker: LocalBroker, plan: Sequence[Step], delivered: int, *resets: str) -> None:
    """Assert that the guarantee of the plan holds without a repair."""
    async with FaultEnvironment(server, broker) as world:
        for step in plan:
            await step.run(world)
        await world.settle(mending=False)
        world.judge()
        entries = [entry for client in world.clients for entry in client.transcript]
        messages = [entry.message for entry in entries if isinstance(entry, Heard)]
    assert sum(message["type"] == "event" for message in messages) == delivered
    assert {message["reason"] for message in messages if message["type"] == "reset"} == set(resets)


async def test_the_broker_is_killed_with_events_flowing(postgres_server: LocalPostgres, broker: LocalBroker) -> None:
    plan = [NewClient(1), FOUR, KillBroker(), FOUR, Publish(1, 100), StartBroker(), FOUR, KillBroker(), FOUR]
    await kept(postgres_server, broker, plan, 2 * (4 * 4 + 100 + 1))


async def test_bridges_are_killed_with_events_flowing(postgres_server: LocalPostgres, broker: LocalBroker) -> None:
    plan = [FOUR, KillBridge(0), FOUR, StartBridge(0), KillBridge(1), FOUR, KillBridge(0), Publish(0, 100)]
    await kept(postgres_server, broker, plan, 3 * 4 + 100 + 1)


@pytest.mark.parametrize("broker", ["nats"], indirect=True)
async def test_postgres_fails_between_bridge_and_relays(postgres_server: LocalPostgres, broker: LocalBroker) -> None:
    plan = [NewClient(1), FOUR, TerminateBackends(), FOUR, StrandPostgres(0), FOUR, Pause(0.7), StrandPostgres(1), FOUR]
    await kept(postgres_server, broker, plan, 2 * (4 * 4 + 1))


@pytest.mark.parametrize("broker", ["nats"], indirect=True)
@pytest.mark.parametrize(("up", "down"), [(True, True), (False, True)])
async def test_a_connection_to_the_broker_is_half_open(
    postgres_server: LocalPostgres, broker: LocalBroker, up: bool, down: bool
) -> None:
    plan = [FOUR, HoldBroker(0, up, down), FOUR, Pause(0.7), Publish(0, 100), ReleaseBroker(0), CutBroker(0), FOUR]
    await kept(postgres_server, broker, plan, 3 * 4 + 100 + 1)


@pytest.mark.parametrize("broker", ["nats"], indirect=True)
async def test_all_of_it_fails_at_once(postgres_server: LocalPostgres, broker: LocalBroker) -> None:
    plan = [NewClient(1), FOUR, KillBroker(), KillBridge(0), Kill(0), RestartPostgres(), Start(0), StartBroker()]
    outcome = await run_plan(postgres_server, [*plan, FOUR, FOUR, StartBridge(0), FOUR], broker)
    assert outcome.delivered == 2 * outcome.committed
    assert not outcome.resets


@pytest.mark.parametrize("broker", ["nats"], indirect=True)
async def test_the_log_is_set_back_beneath_relays_that_rest(
    postgres_server: LocalPostgres, broker: LocalBroker
) -> None:
    plan = [NewClient(1), Publish(0, 20), Pause(1), SetBack(5), Pause(0.5), FOUR]
    outcome = await run_plan(postgres_server, plan, broker)
    assert set(outcome.resets) == {"epoch"}


@pytest.mark.parametrize(("name", "seed"), [(name, seed) for name, seeds in SEEDS.items() for seed in seeds])
async def test_a_random_plan(postgres_server: LocalPostgres, name: str, seed: int) -> None:
    print(f"again: python -m testing.faults --seed {seed} --broker {name} [--shrink]")
    async with make_broker(name) as broker:
        outcome = await run_plan(postgres_server, random_plan(seed, PLAN_LENGTH, broker=True), broker)
    print(outcome)
    assert outcome.delivered or outcome.resets
