"""Every client has every event once, in order, or got a reset for the gap, under any fault.

First one fault per plan, then plans of forty random steps. `make soak` runs new plans.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pytest

from testing.faults.environment import FaultEnvironment
from testing.faults.proxy import Mode
from testing.faults.run import PLAN_LENGTH, run_plan
from testing.faults.steps import (
    BackUp,
    Begin,
    Burst,
    Commit,
    CutPostgres,
    DrainNotifications,
    DropClient,
    FalseAlarm,
    FillNotifications,
    ForceNumbering,
    HoldClient,
    HoldPostgres,
    Kill,
    KillAnnouncer,
    MoveClient,
    NewClient,
    Notify,
    Pause,
    Publish,
    ReleaseClient,
    ReleasePostgres,
    ReplicaRole,
    Restart,
    RestartPostgres,
    Restore,
    Retain,
    Rollback,
    Savepoint,
    SetBack,
    Sleep,
    Start,
    StartAnnouncer,
    Step,
    StrandClient,
    StrandPostgres,
    TerminateBackends,
    UndoToSavepoint,
    Wake,
    random_plan,
)
from testing.local.postgres import LocalPostgres

SEEDS: Final = range(1, 7)

HALF_OPEN: Final = [(True, True), (True, False), (False, True)]
FOUR: Final = Publish(0, 4)


async def kept(server: LocalPostgres, plan: Sequence[Step], *resets: str, delivered: int | None = None) -> None:
    """The plan's promise is kept, with resets for exactly these reasons, and so many events delivered."""
    outcome = await run_plan(server, plan)
    assert set(outcome.resets) == set(resets)
    if delivered is not None:
        assert outcome.delivered == delivered


async def kept_unmended(server: LocalPostgres, plan: Sequence[Step]) -> None:
    """Assert that the guarantee of the plan holds without a repair: relays and clients recover automatically."""
    async with FaultEnvironment(server) as world:
        for step in plan:
            await step.run(world)
        await world.settle(mending=False)
        world.judge()


async def test_the_announcer_is_killed_while_it_polls(postgres_server: LocalPostgres) -> None:
    plan = [Burst(0, 40), KillAnnouncer(), FOUR, Burst(1, 20), Pause(1.2), FOUR, StartAnnouncer(), Burst(0, 40), FOUR]
    await kept_unmended(postgres_server, plan)


async def test_the_announcer_waits_for_a_long_transaction(
    postgres_server: LocalPostgres,
) -> None:
    plan = [Burst(0, 40), Begin(1), Publish(1, 4), ForceNumbering(1), Pause(2.5), Commit(1)]
    await kept(postgres_server, plan, delivered=40 + 4 + 1)


async def test_postgres_crashes_while_the_announcer_polls(postgres_server: LocalPostgres) -> None:
    plan = [Burst(0, 40), RestartPostgres(), Burst(0, 40), FOUR, RestartPostgres(), FOUR]
    await kept_unmended(postgres_server, plan)


async def test_a_session_in_replica_role_publishes(postgres_server: LocalPostgres) -> None:
    plan = [ReplicaRole(0, True), FOUR, Begin(0), FOUR, FOUR, Commit(0), Burst(0, 40), ReplicaRole(0, False), FOUR]
    await kept(postgres_server, plan, delivered=4 * 4 + 40 + 1)


async def test_the_notification_queue_is_full() -> None:
    with LocalPostgres(settings={"max_notify_queue_pages": "64"}) as server:
        plan = [FillNotifications(), FOUR, Burst(0, 40), Begin(1), FOUR, Commit(1), FOUR]
        await kept(server, plan, delivered=4 + 40 + 4 + 4 + 1)
        await kept(server, [FOUR, FillNotifications(), FOUR, DrainNotifications(), Burst(0, 40)], delivered=4 * 2 + 41)


async def test_only_committed_transactions_are_delivered(postgres_server: LocalPostgres) -> None:
    plan = [Begin(0), FOUR, Begin(1), Publish(1, 3), Savepoint(0), Publish(0, 2), UndoToSavepoint(0), Publish(0, 1)]
    plan += [Commit(1), Pause(0.2), Commit(0), Begin(1), Publish(1, 9), Rollback(1)]
    await kept(postgres_server, plan, delivered=4 + 3 + 1 + 1)


async def test_clients_come_drop_out_and_move_to_another_relay(postgres_server: LocalPostgres) -> None:
    plan = [NewClient(1), FOUR, DropClient(0), FOUR, MoveClient(0, 1), Publish(0, 100), DropClient(1), MoveClient(1, 0)]
    await kept(postgres_server, [*plan, Sleep(1), Publish(0, 600), Wake(1), FOUR], delivered=2 * (4 * 3 + 700 + 1))


async def test_relays_are_killed_and_restarted(postgres_server: LocalPostgres) -> None:
    plan = [NewClient(1), FOUR, Kill(0), Publish(0, 100), Start(0), FOUR, Restart(1), FOUR, Restart(0), Kill(1), FOUR]
    await kept(postgres_server, plan, delivered=2 * (4 * 4 + 100 + 1))


async def test_postgres_ends_connections_and_crashes(postgres_server: LocalPostgres) -> None:
    plan = [NewClient(1), FOUR, TerminateBackends(), FOUR, RestartPostgres(), FOUR, FOUR, CutPostgres(0), FOUR]
    # The open transaction is lost with the server, and never delivered. So may be one of another writer's, that comes
    # upon a connection that is no more: how many arrive is for the log to tell.
    await kept(postgres_server, [Begin(1), Publish(1, 5), *plan, Commit(1)])


@pytest.mark.parametrize(("up", "down"), HALF_OPEN)
async def test_a_connection_to_postgres_is_half_open(postgres_server: LocalPostgres, up: bool, down: bool) -> None:
    plan = [FOUR, HoldPostgres(0, up, down), FOUR, DropClient(0), Publish(0, 100), Pause(2.5), FOUR]
    await kept(postgres_server, [*plan, ReleasePostgres(0)], delivered=3 * 4 + 100 + 1)


@pytest.mark.parametrize(("up", "down"), HALF_OPEN)
async def test_a_connection_to_a_client_is_half_open(postgres_server: LocalPostgres, up: bool, down: bool) -> None:
    plan = [NewClient(0), FOUR, HoldClient(0, up, down), FOUR, Publish(0, 80, 60_000), Pause(2.5), FOUR]
    await kept(postgres_server, [*plan, ReleaseClient(0)], delivered=2 * (3 * 4 + 80 + 1))


async def test_a_connection_is_dead_and_nobody_is_told(postgres_server: LocalPostgres) -> None:
    plan = [NewClient(1), FOUR, Pause(0.3), StrandPostgres(0), StrandClient(1), FOUR]
    await kept_unmended(postgres_server, plan)


@pytest.mark.parametrize("mode", ["drop", "double", "late"])
async def test_notifications_are_lost_doubled_or_late(postgres_server: LocalPostgres, mode: Mode) -> None:
    plan = [FOUR, Notify(0, mode), FOUR, Publish(1, 100), DropClient(0), FOUR, Pause(0.7), FOUR]
    await kept_unmended(postgres_server, plan)


async def test_notifications_by_hand_mean_nothing(postgres_server: LocalPostgres) -> None:
    plan = [FOUR, *(FalseAlarm(payload) for payload in ("", "0", "999999", "no number", "4")), FOUR]
    await kept(postgres_server, plan, delivered=9)


async def test_retention_passes_a_client_that_sleeps(postgres_server: LocalPostgres) -> None:
    plan = [NewClient(0), FOUR, Pause(0.3), Sleep(0), Publish(0, 100), Retain(3), Pause(1), Wake(0), FOUR]
    await kept(postgres_server, plan, "too-old")


async def test_retention_behind_everybody_is_not_noticed(postgres_server: LocalPostgres) -> None:
    plan = [NewClient(1), Publish(0, 100), Pause(1), Retain(3), FOUR, DropClient(0), Pause(0.7), Retain(4), FOUR]
    await kept(postgres_server, plan, delivered=2 * (100 + 2 * 4 + 1))


async def test_retention_passes_a_relay_that_is_cut_off(postgres_server: LocalPostgres) -> None:
    plan = [FOUR, Pause(0.3), HoldPostgres(0, True, True), Publish(0, 100), Retain(3), Pause(2), ReleasePostgres(0)]
    await kept(postgres_server, [*plan, Pause(1), FOUR], "too-old")


@pytest.mark.parametrize("by", [0, 1, 200])
async def test_the_log_is_set_back_beneath_clients_and_sleepers(postgres_server: LocalPostgres, by: int) -> None:
    plan = [NewClient(1), Publish(0, 20), Pause(0.3), Sleep(1), SetBack(by), Publish(0, 30), DropClient(0), FOUR]
    await kept(postgres_server, [*plan, Wake(1)], "epoch")


async def test_the_database_is_restored_from_a_dump(postgres_server: LocalPostgres) -> None:
    plan = [NewClient(1), Publish(0, 20), BackUp(), Publish(0, 20), Pause(0.3), Sleep(1), Restore(), Publish(1, 30)]
    await kept(postgres_server, [*plan, Wake(1), FOUR], "epoch")


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_random_plan(postgres_server: LocalPostgres, seed: int) -> None:
    print(f"again: python -m testing.faults --seed {seed} [--shrink]")
    outcome = await run_plan(postgres_server, random_plan(seed, PLAN_LENGTH))
    print(outcome)
    # A plan may end in a reset before anything arrived; one in which neither happens shows nothing.
    assert outcome.delivered or outcome.resets
