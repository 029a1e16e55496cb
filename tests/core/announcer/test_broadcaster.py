"""Broadcasts on a real Postgres: sent after the commit, at most once, and no commit fails or waits because of them."""

from __future__ import annotations

import asyncio
import json

import asyncpg

from testing.announcer import NAME, PATIENCE_S, broadcasting, hearing_broadcasts, until, until_async
from testing.database import Database
from testing.relay.pgbouncer import pgbouncer
from userrealtime_core.announcer.broadcaster import LONGEST_RATE_PAUSE, PAUSE_PER_RATE, pause
from userrealtime_core.announcer.traffic import LONGEST_EMPTY_PAUSE, Traffic


def test_the_pause_grows_with_the_rate_and_is_limited() -> None:
    pauses = []
    for rate in (0, 100, 500, 2000, 10_000):
        traffic = Traffic()
        for number in range(100):  # polls of one second
            traffic.polled(number / 100, rate // 100)
        pauses.append(pause(traffic, 1, 0))
    assert pauses[:2] == [Traffic().pause(1, 0)] * 2
    assert pauses[2:] == [500 * PAUSE_PER_RATE, LONGEST_RATE_PAUSE, LONGEST_RATE_PAUSE]
    traffic.polled(2.5, 0)  # later, when it is quiet again
    assert pause(traffic, 0, 0) <= LONGEST_EMPTY_PAUSE


async def broadcast(connection: asyncpg.Connection, number: int, user: str = "alice") -> None:
    await connection.execute("select userrealtime.broadcast($1, 'test', to_jsonb($2::int))", user, number)


def numbers(texts: list[str]) -> list[int]:
    return [json.loads(text)["data"] for text in texts]


async def is_queued(connection: asyncpg.Connection) -> bool:
    return bool(await connection.fetchval("select exists (select from userrealtime.broadcast_queue)"))


async def is_disconnected(connection: asyncpg.Connection) -> bool:
    """Return whether no announcer has a connection."""
    others = "select exists (select from pg_stat_activity where application_name = $1 and datname = current_database())"
    return not await connection.fetchval(others, NAME)


async def dropped(connection: asyncpg.Connection) -> int:
    number: int = await connection.fetchval("select userrealtime.broadcasts_dropped()")
    return number


async def test_a_broadcast_is_sent_after_the_commit_and_stored_nowhere(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    async with broadcasting(migrated.url), hearing_broadcasts(migrated.url) as heard:
        async with connection.transaction():
            await broadcast(connection, 1)
            await connection.execute("select pg_sleep(0.1)")
            assert heard == []
        await until(lambda: numbers(heard) == [1])
        assert not await is_queued(connection)
        assert await connection.fetchval("select count(*) from userrealtime.event") == 0
        assert await connection.fetchval("select count(*) from userrealtime.log") == 0


async def test_a_rollback_sends_nothing(migrated: Database, connection: asyncpg.Connection) -> None:
    async with broadcasting(migrated.url), hearing_broadcasts(migrated.url) as heard:
        transaction = connection.transaction()
        await transaction.start()
        await broadcast(connection, 1)
        await transaction.rollback()
        async with connection.transaction():
            await broadcast(connection, 2)
            savepoint = connection.transaction()
            await savepoint.start()
            await broadcast(connection, 3)
            await savepoint.rollback()
            await broadcast(connection, 4)
        await until(lambda: len(heard) >= 2)
        assert numbers(heard) == [2, 4]


async def test_the_order_of_a_session_is_kept_and_equal_ones_are_all_sent(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    async with broadcasting(migrated.url) as running, hearing_broadcasts(migrated.url) as heard:
        sent = []
        for number in range(300):
            await broadcast(connection, number)
            sent.append(number)
        await connection.execute(
            "select userrealtime.broadcast('alice', 'test', to_jsonb(n)) from generate_series(300, 4999) n"
        )
        sent += range(300, 5000)
        await connection.execute(
            "select userrealtime.broadcast('alice', 'test', to_jsonb(7)) from generate_series(1, 20)"
        )
        sent += [7] * 20
        await until(lambda: len(heard) >= len(sent))
        assert numbers(heard) == sent
        # They are counted after they were notified.
        await until(lambda: running.metric("broadcasts_sent_total") >= len(sent))
        assert running.metric("broadcasts_taken_total") == running.metric("broadcasts_sent_total") == len(sent)
        assert await dropped(connection) == 0


async def test_several_sessions_each_keep_their_order(migrated: Database) -> None:
    sessions = [await asyncpg.connect(migrated.url) for _ in range(4)]

    async def work(place: int) -> None:
        for number in range(100):
            await broadcast(sessions[place], 1000 * place + number)

    async with broadcasting(migrated.url), hearing_broadcasts(migrated.url) as heard:
        await asyncio.gather(*map(work, range(4)))
        await until(lambda: len(heard) >= 400)
    found = numbers(heard)
    assert [[number for number in found if number // 1000 == place] for place in range(4)] == [
        list(range(1000 * place, 1000 * place + 100)) for place in range(4)
    ]
    for session in sessions:
        await session.close()


async def test_callers_ring_again_when_it_is_quiet(migrated: Database, connection: asyncpg.Connection) -> None:
    async with broadcasting(migrated.url) as running, hearing_broadcasts(migrated.url) as heard:
        for number in range(3):
            await broadcast(connection, number)
            await until(lambda number=number: numbers(heard)[-1:] == [number])  # type: ignore[misc]
            await until(lambda: not running.leased)
    assert numbers(heard) == [0, 1, 2]


async def test_a_transaction_that_is_longer_than_the_lease_is_not_forgotten(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    other = await asyncpg.connect(migrated.url)
    async with broadcasting(migrated.url) as running, hearing_broadcasts(migrated.url) as heard:
        await broadcast(connection, 1)
        await until(lambda: running.leased)
        transaction = other.transaction()
        await transaction.start()
        await broadcast(other, 2)  # within the lease: it does not ring
        await asyncio.sleep(2)
        await transaction.commit()
        await until(lambda: numbers(heard) == [1, 2])
        await until(lambda: not running.leased)
    await other.close()


async def test_only_users_with_a_running_relay_receive_it(migrated: Database, connection: asyncpg.Connection) -> None:
    await connection.execute("select userrealtime.attend('carol', 'pod', false)")
    async with broadcasting(migrated.url) as running, hearing_broadcasts(migrated.url) as heard:
        await broadcast(connection, 1, "bob")
        await broadcast(connection, 2, "carol")
        await broadcast(connection, 3)
        await until(lambda: numbers(heard) == [3] and len(running.reported) >= 1)
        channel = await connection.fetchval("select userrealtime.broadcast_channel('carol')")
        assert [(each.user_id, each.channel) for each in running.reported] == [("carol", channel)]
        assert numbers([running.reported[0].message]) == [2]
        assert running.metric("broadcasts_sent_total") == 1
        assert not await is_queued(connection)


async def test_pods_of_both_kinds_receive_it(migrated: Database, connection: asyncpg.Connection) -> None:
    await connection.execute("select userrealtime.attend('alice', 'other', false)")
    async with broadcasting(migrated.url) as running, hearing_broadcasts(migrated.url) as heard:
        await broadcast(connection, 1)
        await until(lambda: numbers(heard) == [1] and len(running.reported) >= 1)


async def test_without_an_announcer_it_is_dropped_and_the_commit_succeeds(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    async with connection.transaction():
        await connection.execute("select userrealtime.publish('alice', 'stored')")
        await broadcast(connection, 1)
    assert await dropped(connection) == 1
    assert not await is_queued(connection)
    assert await connection.fetchval("select head from userrealtime.log where user_id = 'alice'") == 1
    async with broadcasting(migrated.url) as running, hearing_broadcasts(migrated.url) as heard:
        await broadcast(connection, 2)
        await until(lambda: numbers(heard) == [2])
        await until(lambda: running.metric("broadcasts_dropped") == 1)


async def test_an_announcer_that_dies_loses_what_is_old_and_nothing_is_sent_twice(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    async with hearing_broadcasts(migrated.url) as heard:
        async with broadcasting(migrated.url):
            await broadcast(connection, 1)
            await until(lambda: numbers(heard) == [1])
        # It is gone, and callers do not know it yet. Its last statement may end later than its connection.
        await until_async(lambda: is_disconnected(connection))
        await broadcast(connection, 2)
        await connection.execute("update userrealtime.broadcast_queue set at = at - interval '1 minute'")
        await broadcast(connection, 3)
        async with broadcasting(migrated.url):
            await broadcast(connection, 4)
            await until(lambda: numbers(heard)[-1:] == [4])
        assert numbers(heard) == [1, 3, 4]
        assert not await is_queued(connection)


async def test_of_two_announcers_one_sends_each_broadcast_and_either_may_fail(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    await connection.execute("select userrealtime.attend('alice', 'other', false)")
    async with hearing_broadcasts(migrated.url) as heard, broadcasting(migrated.url, "second") as second:
        async with broadcasting(migrated.url, "first") as first:
            for number in range(200):
                await broadcast(connection, number)
            await until(lambda: len(heard) >= 200)
            taken = [each.metric("broadcasts_taken_total") for each in (first, second)]
            assert sorted(taken) == [0, 200]
            assert len(first.reported) + len(second.reported) == 200
        # What was inserted within the lease of a dead announcer is sent by the other one, after the next ring.
        await until_async(lambda: is_sent_again(connection, heard))
    assert numbers(heard)[:200] == list(range(200))


async def is_sent_again(connection: asyncpg.Connection, heard: list[str]) -> bool:
    await broadcast(connection, -1)
    return numbers(heard)[-1:] == [-1]


async def test_a_lost_connection_is_made_again(migrated: Database, connection: asyncpg.Connection) -> None:
    async with broadcasting(migrated.url) as running, hearing_broadcasts(migrated.url) as heard:
        await connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where application_name = $1 and datname = current_database()",
            NAME,
        )
        await until(lambda: running.metric("broadcaster_failures_total") >= 1)
        await until(lambda: running.broadcaster.connected)
        await until_async(lambda: is_sent_again(connection, heard))


async def test_a_full_queue_drops_and_recovers(migrated: Database, connection: asyncpg.Connection) -> None:
    async with broadcasting(migrated.url) as running, hearing_broadcasts(migrated.url) as heard:
        # In one transaction, so that nothing can be taken before its end.
        await connection.execute(
            "select userrealtime.broadcast('alice', 'test', to_jsonb(n)) from generate_series(1, 20100) n"
        )
        lost = await dropped(connection)
        assert 0 < lost <= 200
        await until(lambda: len(heard) >= 20100 - lost)
        assert numbers(heard) == list(range(1, 20101 - lost))
        await until_async(lambda: is_sent_again(connection, heard))
        assert running.metric("broadcasts_taken_total") >= 20100 - lost


async def test_a_full_notification_queue_drops_broadcasts_and_no_commit_fails(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    async with broadcasting(migrated.url) as running, hearing_broadcasts(migrated.url) as heard:
        await until(lambda: not running.leased)
        await connection.execute(
            "create or replace function userrealtime.may_notify() returns boolean language sql return false"
        )
        before = await dropped(connection)
        await broadcast(connection, 1)  # neither in the queue nor by a ring
        assert await dropped(connection) == before + 1
        await connection.execute("select userrealtime.lease_broadcasts(1023)")
        await broadcast(connection, 2)  # within a lease: queued, and dropped by the announcer
        await connection.execute(
            "select pg_notify('userrealtime_broadcast', '')",
        )
        await until_async(lambda: is_dropped(connection, before + 2))
        assert heard == []
        assert running.metric("broadcasts_sent_total") == 0


async def is_dropped(connection: asyncpg.Connection, number: int) -> bool:
    return await dropped(connection) >= number


async def test_nobody_waits_for_an_announcer_that_hangs(migrated: Database, connection: asyncpg.Connection) -> None:
    """Another session has removed rows of the queue, and does not commit: callers and their commits go on."""
    other = await asyncpg.connect(migrated.url)
    await connection.execute("select userrealtime.arm_broadcasts(), userrealtime.lease_broadcasts(5)")
    await broadcast(connection, 1)
    transaction = other.transaction()
    await transaction.start()
    rows = await other.fetch("select taken from userrealtime.take_broadcasts(5, null, 100)")
    assert rows[-1]["taken"] == 1
    async with asyncio.timeout(PATIENCE_S):
        for number in range(20):
            await broadcast(connection, number)
            await connection.execute("select userrealtime.publish('alice', 'stored')")
    assert await connection.fetchval("select head from userrealtime.log where user_id = 'alice'") == 20
    await transaction.rollback()
    await other.close()


async def test_behind_a_transaction_pooler_it_polls(migrated: Database, connection: asyncpg.Connection) -> None:
    async with (
        pgbouncer(migrated.url, "transaction") as pooled,
        broadcasting(pooled) as running,
        hearing_broadcasts(migrated.url) as heard,
    ):
        await until(lambda: running.leased)
        await broadcast(connection, 1)
        await until(lambda: numbers(heard) == [1])


async def test_an_announcer_without_the_lease_takes_nothing(migrated: Database, connection: asyncpg.Connection) -> None:
    await connection.execute("select userrealtime.lease_broadcasts(1)")
    await broadcast(connection, 1)
    assert await connection.fetchval("select userrealtime.lease_broadcasts(2)") is False
    assert await connection.fetch("select * from userrealtime.take_broadcasts(2, null, 100)") == []
    assert await is_queued(connection)
