"""The announcer on a real Postgres: no wake-up is lost, no commit fails or waits, and the queue stays short."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from typing import Literal

import asyncpg
import pytest

from testing.announcer import NAME, PATIENCE_S, Listener, announcing, make_busy, make_quiet, publish, until, until_async
from testing.database import Database, create_database
from testing.local.postgres import LocalPostgres
from testing.relay.pgbouncer import pgbouncer
from userrealtime_core.announcer.traffic import QUIET_WINDOW
from userrealtime_operator.postgres.migrate import migrate

Isolation = Literal["read_committed", "repeatable_read", "serializable"]


async def queued(connection: asyncpg.Connection) -> int:
    number: int = await connection.fetchval("select count(*) from userrealtime.signal_queue")
    return number


async def test_a_publisher_rings_while_little_happens(migrated: Database, connection: asyncpg.Connection) -> None:
    async with announcing(migrated.url) as running, Listener.listening(migrated.url, "alice") as alice:
        await publish(connection)
        await until(lambda: alice.head == 1 and running.heads == {"alice": 1})
        assert running.metric("rings_total") == 1
        assert not running.leased
        assert await queued(connection) == 0


async def test_under_load_publishers_stop_to_notify(migrated: Database, connection: asyncpg.Connection) -> None:
    async with announcing(migrated.url) as running, Listener.listening(migrated.url, "alice") as alice:
        await make_busy(connection, running)
        rings = running.metric("rings_total")
        for _ in range(200):
            await publish(connection)
        await until(lambda: alice.head == 200 and running.heads == {"alice": 200})
        assert running.leased
        assert running.metric("rings_total") == rings
        assert alice.wakes < 200  # of several events at a time, one notification


async def test_after_the_load_publishers_ring_again(migrated: Database, connection: asyncpg.Connection) -> None:
    async with announcing(migrated.url) as running, Listener.listening(migrated.url, "alice") as alice:
        await make_busy(connection, running)
        await publish(connection)
        await make_quiet(running)
        rings = running.metric("rings_total")
        await publish(connection)
        await until(lambda: alice.head == 2)
        await until(lambda: running.metric("rings_total") == rings + 1)


async def test_what_was_announced_is_deleted(migrated: Database, connection: asyncpg.Connection) -> None:
    async with announcing(migrated.url) as running:
        await make_busy(connection, running)
        for _ in range(20):
            await publish(connection)
        assert await queued(connection) == 20
        await until_async(lambda: empty(connection))


async def empty(connection: asyncpg.Connection) -> bool:
    return await queued(connection) == 0


async def test_only_users_with_a_running_relay_are_announced(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    async with announcing(migrated.url) as running, Listener.listening(migrated.url, "alice"):
        await make_busy(connection, running)
        await publish(connection, "bob")
        await publish(connection, "alice")
        await until(lambda: "alice" in running.heads)
        assert running.heads == {"alice": 1}


async def test_traffic_of_users_without_a_relay_keeps_the_lease(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    """Otherwise their publishers would notify, and wait for each other, repeatedly."""
    async with announcing(migrated.url) as running:
        await make_busy(connection, running)
        end = asyncio.get_running_loop().time() + 3 * QUIET_WINDOW
        while asyncio.get_running_loop().time() < end:
            await connection.execute("select userrealtime.publish('user-' || n, 'test') from generate_series(1, 50) n")
            await asyncio.sleep(0.05)
            assert running.leased
        assert running.heads == {}


@pytest.mark.parametrize("isolation", ["read_committed", "repeatable_read", "serializable"])
@pytest.mark.parametrize("forced", [False, True])
async def test_a_transaction_that_outlasts_the_lease_is_announced(
    migrated: Database, connection: asyncpg.Connection, isolation: Isolation, forced: bool
) -> None:
    """It inserted into the queue, or took its snapshot, while publishers did not notify."""
    slow = await asyncpg.connect(migrated.url)
    async with announcing(migrated.url) as running, Listener.listening(migrated.url, "alice") as alice:
        await make_busy(connection, running)
        transaction = slow.transaction(isolation=isolation)
        await transaction.start()
        await publish(slow)
        if forced:
            await slow.execute("set constraints all immediate")
        await make_quiet(running)
        # Neither the announcer nor another publisher waits for the slow transaction.
        await asyncio.wait_for(publish(connection, "bob"), 10)
        await transaction.commit()
        await until(lambda: alice.head == 1 and running.heads.get("alice") == 1)
    await slow.close()


async def test_a_transaction_before_the_doorbell_is_announced(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    slow = await asyncpg.connect(migrated.url)
    async with slow.transaction():
        await publish(slow)
        await slow.execute("set constraints all immediate")
        async with AsyncExitStack() as stack:
            running = await stack.enter_async_context(announcing(migrated.url))
            alice = await stack.enter_async_context(Listener.listening(migrated.url, "alice"))
            await slow.execute("commit; begin")
            # It left nothing in the queue. The first read of the relay, or its poll, finds the event.
            await publish(connection)
            await until(lambda: alice.head == 2 and running.heads == {"alice": 2})
    await slow.close()


async def test_without_a_listener_a_publisher_leaves_nothing_behind(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    listener, rung = await asyncpg.connect(migrated.url), list[object]()
    await listener.add_listener("userrealtime_doorbell", lambda *notified: rung.append(notified))
    await publish(connection)
    await connection.execute("select pg_notify('userrealtime_doorbell', 'last')")
    await until(lambda: bool(rung))
    assert len(rung) == 1
    assert await queued(connection) == 0
    await listener.close()


async def test_a_relay_without_an_announcer_is_woken_by_publishers(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    async with Listener.listening(migrated.url, "alice") as alice:
        for number in range(1, 50):
            await publish(connection)
            await until(lambda number=number: alice.head == number)  # type: ignore[misc]
        assert await queued(connection) == 0


async def test_a_second_announcer_takes_over_from_one_that_died(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    async with announcing(migrated.url) as second, Listener.listening(migrated.url, "alice") as alice:
        async with announcing(migrated.url) as first:
            await until_async(lambda: one_leased(connection, first.leased, second.leased))
            # Both may take a free lease at the same time; the earlier one of the two gives it up at its next renewal.
            await until(lambda: first.leased + second.leased == 1)
            if second.leased:  # the second one has to survive
                await make_quiet(second)
            # An announcer that is cut off never ends its lease.
            await publish(connection)
            await connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where application_name = $1", NAME
            )
        await publish(connection)
        await until(lambda: alice.head == 2)
        async with asyncio.timeout(PATIENCE_S):
            while second.heads.get("alice", 0) <= 2:
                await publish(connection)
                await asyncio.sleep(0.05)
        await until_async(lambda: empty(connection))


async def one_leased(connection: asyncpg.Connection, *leased: bool) -> bool:
    await connection.execute("select pg_notify('userrealtime_doorbell', n::text) from generate_series(1, 8) n")
    return any(leased) or bool(await connection.fetchval("select userrealtime.leased()"))


async def test_what_a_dead_announcer_left_in_the_queue_is_announced(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    """The publisher did not ring, and no other event follows."""
    async with announcing(migrated.url) as running, Listener.listening(migrated.url, "alice") as alice:
        assert await connection.fetchval("select userrealtime.renew_lease(1023, 1500)")  # an announcer that has died
        for _ in range(8):
            await connection.execute("select pg_notify('userrealtime_doorbell', '')")
        await publish(connection)
        assert await queued(connection) == 1
        await until(lambda: alice.head == 1 and running.heads == {"alice": 1})


async def test_a_lease_ends_unless_it_is_renewed(migrated: Database, connection: asyncpg.Connection) -> None:
    async with Listener.listening(migrated.url, "alice") as alice:
        assert await connection.fetchval("select userrealtime.renew_lease(1, 200)")
        assert not await connection.fetchval("select userrealtime.renew_lease(2, 200)")
        await publish(connection)
        assert await queued(connection) == 1
        await until_async(lambda: not_leased(connection))
        await publish(connection)
        await until(lambda: alice.head == 2)
        assert await queued(connection) == 1


async def not_leased(connection: asyncpg.Connection) -> bool:
    return not await connection.fetchval("select userrealtime.leased()")


async def test_postgres_crashes_while_the_queue_is_polled(own_server: Database) -> None:
    connection = await asyncpg.connect(own_server.url)
    async with announcing(own_server.url) as running:
        await make_busy(connection, running)
        await publish(connection)
        await connection.close()
        await asyncio.to_thread(own_server.server.restart, "immediate")
        connection = await asyncpg.connect(own_server.url)
        async with Listener.listening(own_server.url, "alice") as alice:
            await until(lambda: alice.head == 1)
            await publish(connection)
            await until(lambda: alice.head == 2)
    await connection.close()


async def test_events_are_published_by_a_session_in_replica_role(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    """Bulk loads and some replication tools set it, to keep ordinary triggers from firing."""
    async with Listener.listening(migrated.url, "alice") as alice:
        await connection.execute("set session_replication_role = replica")
        await publish(connection)
        async with connection.transaction():
            await publish(connection)
            await publish(connection)
        await until(lambda: alice.head == 3)
        assert await connection.fetchval("select count(*) from userrealtime.event") == 3


async def fill_notification_queue(connection: asyncpg.Connection) -> None:
    while True:
        await connection.execute("select pg_notify('x', repeat('y', 7900) || n) from generate_series(1, 16) n")


@pytest.mark.parametrize("leased", [False, True])
async def test_no_commit_fails_while_the_notification_queue_is_full(leased: bool) -> None:
    with LocalPostgres(settings={"max_notify_queue_pages": "64"}) as server:
        database = await create_database(server)
        await migrate(database.url)
        connection, stuck = await asyncpg.connect(database.url), await asyncpg.connect(database.url)
        async with announcing(database.url) as running, Listener.listening(database.url, "alice") as alice:
            await stuck.execute("listen anything")
            await stuck.execute("begin; select 1")
            with pytest.raises(asyncpg.ProgramLimitExceededError):
                await fill_notification_queue(connection)
            await until(lambda: running.metric("notification_queue_usage") > 0.9)
            if leased:
                assert await connection.fetchval("select userrealtime.renew_lease(1023, 1000)")
            for _ in range(3):
                await publish(connection)
            await connection.execute("select userrealtime.submit('alice', 'ref', 'typed')")
            await connection.execute("update userrealtime.log set epoch = 'another'")
            if leased:  # the announcer reads the queue when the lease has ended
                await until(lambda: running.heads == {"alice": 3})
                assert running.metric("notification_queue_full_total") > 0
            assert alice.wakes == 0
            await stuck.close()
            await publish(connection)
            await until(lambda: alice.head == 4)
        await connection.close()


async def test_messages_in_the_inbox_are_signalled_under_load(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    application, received = await asyncpg.connect(migrated.url), list[str]()
    await application.add_listener("userrealtime_inbox", lambda *notified: received.append(str(notified[3])))
    async with announcing(migrated.url) as running:
        await make_busy(connection, running)
        await connection.execute("select userrealtime.submit('alice', 'one', 'typed')")
        newest = await connection.fetchval("select userrealtime.submit('alice', 'two', 'typed')")
        await until(lambda: str(newest) in received)
        assert running.leased
    await application.close()


async def test_behind_a_transaction_pooler_the_queue_is_polled_all_the_time(
    migrated: Database, connection: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        pgbouncer(migrated.url, "transaction") as url,
        announcing(url) as running,
        Listener.listening(migrated.url, "alice") as alice,
    ):
        await until(lambda: running.leased)
        await publish(connection)
        await until(lambda: alice.head == 1 and running.heads == {"alice": 1})
        await asyncio.sleep(1.2)  # longer than the window after which a direct one would end its lease
        assert running.leased
    assert "transaction pooler" in caplog.text


@pytest.mark.parametrize("seed", range(4))
async def test_no_wake_up_is_lost_while_traffic_comes_and_goes(migrated: Database, seed: int) -> None:
    """Writers of all kinds, in bursts, with two announcers of which one is cut off at random."""
    chance = random.Random(seed)  # noqa: S311 (no secret)
    users = [f"user-{number}" for number in range(6)]
    committed = dict.fromkeys(users, 0)

    async def write(burst: int, writer: int) -> None:
        mine, choose = await asyncpg.connect(migrated.url), random.Random(f"{seed} {burst} {writer}")  # noqa: S311
        try:
            for _ in range(choose.choice((1, 5, 60))):
                chosen = [choose.choice(users) for _ in range(choose.choice((1, 1, 1, 2, 5)))]
                await mine.execute("begin")
                await mine.execute("select userrealtime.publish(u, 'test') from unnest($1::text[]) u", chosen)
                if choose.random() < 0.2:
                    await mine.execute("set constraints all immediate")
                    await asyncio.sleep(choose.choice((0, 0.01, 0.3)))
                if choose.random() < 0.1:
                    await mine.execute("rollback")
                    continue
                await mine.execute("commit")
                for user in chosen:
                    committed[user] += 1
                if choose.random() < 0.1:
                    await asyncio.sleep(choose.choice((0.01, 0.1)))
        finally:
            await mine.close()

    admin = await asyncpg.connect(migrated.url)
    async with AsyncExitStack() as stack:
        for _ in range(2):
            await stack.enter_async_context(announcing(migrated.url))
        listeners = [await stack.enter_async_context(Listener.listening(migrated.url, user)) for user in users]
        for burst in range(5):
            await asyncio.gather(*(write(burst, writer) for writer in range(chance.choice((1, 8)))))
            if chance.random() < 0.5:
                await admin.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity where application_name = $1 limit 1", NAME
                )
            await until(lambda: [listener.head for listener in listeners] == [committed[user] for user in users])
            await asyncio.sleep(chance.choice((0, 0.5, 1.5)))
    await admin.close()
