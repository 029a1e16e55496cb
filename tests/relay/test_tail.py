"""The tail with a Postgres that stops and restarts. The tests check the ring and the signals, not sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from testing.database import Database
from testing.local.postgres import LocalPostgres
from testing.relay.harness import (
    NEVER,
    PATIENCE_S,
    client,
    config,
    publish,
    receive,
    receive_ids,
    terminate,
    until,
)
from userrealtime_core.wire.position import LogPosition, LogState
from userrealtime_relay.delivery.tail import PAGE_EVENTS, Tail
from userrealtime_relay.log.log import Log, Page
from userrealtime_relay.metrics import Metrics
from userrealtime_relay.notify import Notifier, Notify
from userrealtime_relay.notify.listen import listen
from userrealtime_relay.server import Relay


@asynccontextmanager
async def following(url: str, signal: Notifier = listen, **changes: str) -> AsyncIterator[Tail]:
    tail = Tail(config(url, **changes), signal, Metrics())
    task = asyncio.create_task(tail.run())
    try:
        yield tail
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.wait([task])


@asynccontextmanager
async def deaf(_log: Log, _channel: str, _wake: Notify) -> AsyncIterator[None]:
    """A signal that is always lost."""
    yield


@asynccontextmanager
async def noisy(log: Log, channel: str, wake: Notify) -> AsyncIterator[None]:
    """A signal that arrives continuously, mostly without a new event."""

    async def make_noise() -> None:
        while True:
            wake()
            await asyncio.sleep(0.001)

    noise = asyncio.create_task(make_noise())
    try:
        async with listen(log, channel, wake):
            yield
    finally:
        noise.cancel()


async def test_the_ring_begins_at_the_head_and_follows(migrated: Database, connection: asyncpg.Connection) -> None:
    await publish(connection, 3)
    async with following(migrated.url, POLL_INTERVAL=NEVER) as tail:
        assert tail.not_ready_reason == "not connected to Postgres"
        await until(lambda: tail.not_ready_reason is None)
        assert (tail.ring.head, len(tail.ring)) == (3, 0)
        await publish(connection, 2)
        await until(lambda: tail.ring.head == 5)
        assert len(tail.ring) == 2
        assert tail.state.head == 5


async def test_many_pages_are_read(migrated: Database, connection: asyncpg.Connection) -> None:
    async with following(migrated.url, POLL_INTERVAL=NEVER, RING_EVENTS="10000") as tail:
        await until(lambda: tail.not_ready_reason is None)
        await publish(connection, 2 * PAGE_EVENTS + 1)
        await until(lambda: tail.ring.head == 2 * PAGE_EVENTS + 1)
        await publish(connection, 9, size=200_000)
        await until(lambda: tail.ring.head == 2 * PAGE_EVENTS + 10)


async def test_what_a_broker_tells_of_is_read(
    migrated: Database, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next event is read as one row, even with repeated signals, and several events are read in pages."""
    read: list[int] = []
    page = Log.page

    async def reading(log: Log, after: int, **limits: int) -> Page:
        read.append(after)
        return await page(log, after, **limits)

    monkeypatch.setattr(Log, "page", reading)
    await publish(connection, 3)
    epoch = await connection.fetchval("select epoch from userrealtime.log")
    async with following(migrated.url, deaf, POLL_INTERVAL=NEVER) as tail:
        await until(lambda: tail.not_ready_reason is None)
        read.clear()
        for head in (4, 5):
            await publish(connection)
            for _ in range(3):
                tail.on_signal(LogPosition(head, epoch))
            await until(lambda head=head: tail.ring.head == head)  # type: ignore[misc]
        assert (len(tail.ring), read) == (2, [])
        await publish(connection, 3)
        tail.on_signal(LogPosition(8, epoch))  # no signal arrived for 6 and 7
        await until(lambda: tail.ring.head == 8)
        assert read == [5]
        # Events that were removed after their signal: the later ones are delivered.
        await publish(connection, 2)
        await connection.execute("delete from userrealtime.event where id = 9")
        tail.on_signal(LogPosition(9, epoch))
        await until(lambda: tail.ring.head == 10)
        assert read == [5, 8]
        assert len(tail.ring) == 1


async def test_the_first_event_of_a_user_keeps_the_ring_and_the_epoch(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    async with following(migrated.url, POLL_INTERVAL=NEVER) as tail:
        await until(lambda: tail.not_ready_reason is None)
        ring, epoch = tail.ring, tail.state.epoch
        assert epoch is not None
        assert tail.state == LogState(0, 1, epoch)
        await publish(connection)
        await until(lambda: tail.ring.head == 1)
        assert tail.ring is ring
        assert tail.state.epoch == epoch


async def test_lost_signals_are_made_up_for_by_the_poll(migrated: Database, connection: asyncpg.Connection) -> None:
    async with following(migrated.url, deaf, POLL_INTERVAL="0.2") as tail:
        await until(lambda: tail.not_ready_reason is None)
        for number in range(1, 4):
            await publish(connection)
            await until(lambda number=number: tail.ring.head == number)  # type: ignore[misc]


async def test_rows_without_a_notification_are_found(migrated: Database, connection: asyncpg.Connection) -> None:
    await publish(connection)
    async with following(migrated.url, POLL_INTERVAL="0.2") as tail:
        await until(lambda: tail.not_ready_reason is None)
        async with connection.transaction():
            await connection.execute("update userrealtime.log set head = 2")
            await connection.execute("insert into userrealtime.event values ('alice', 2, 'silent', now(), '{}')")
        await until(lambda: tail.ring.head == 2)


async def test_needless_signals_change_nothing(migrated: Database, connection: asyncpg.Connection) -> None:
    async with following(migrated.url, noisy, POLL_INTERVAL="0.1") as tail:
        await until(lambda: tail.not_ready_reason is None)
        for _ in range(20):
            await publish(connection, 3)
        await until(lambda: tail.ring.head == 60)
        assert len(tail.ring) == 60


async def test_a_lost_connection_loses_nothing(migrated: Database, connection: asyncpg.Connection) -> None:
    async with following(migrated.url, POLL_INTERVAL=NEVER, RING_EVENTS="100000") as tail:
        await until(lambda: tail.not_ready_reason is None)
        ring = tail.ring
        ended = published = 0
        async with asyncio.timeout(PATIENCE_S):
            while ended < 3:
                await publish(connection, 2)
                ended += await terminate(connection)
                await publish(connection, 2)
                published += 4
                await asyncio.sleep(0.02)
        await until(lambda: tail.ring.head == published)
        assert tail.ring is ring
        assert len(ring) == published


async def test_a_postgres_that_is_away_is_waited_for(own_server: Database) -> None:
    await asyncio.to_thread(own_server.server.stop)
    async with following(own_server.url, POLL_INTERVAL=NEVER) as tail:
        page = asyncio.create_task(tail.page(0, 1000))
        place = asyncio.create_task(tail.locate())
        await asyncio.sleep(0.5)
        assert (tail.located, tail.not_ready_reason) == (False, "not connected to Postgres")
        await asyncio.to_thread(own_server.server.start)
        async with asyncio.timeout(PATIENCE_S * 2):
            assert not await page
            await place
        assert tail.located
        await until(lambda: tail.not_ready_reason is None)


async def test_another_epoch_makes_another_ring(migrated: Database, connection: asyncpg.Connection) -> None:
    await publish(connection, 3)
    async with following(migrated.url, POLL_INTERVAL="0.2") as tail:
        await until(lambda: tail.not_ready_reason is None)
        ring = tail.ring
        changed = asyncio.Event()
        tail.call_once(changed.set)
        await connection.execute("update userrealtime.log set epoch = 'restored'")
        await until(lambda: tail.ring is not ring)
        assert changed.is_set()
        assert tail.state == LogState(3, 1, "restored")


async def test_a_log_that_is_shorter_makes_another_ring(migrated: Database, connection: asyncpg.Connection) -> None:
    await publish(connection, 3)
    async with following(migrated.url, POLL_INTERVAL="0.2") as tail:
        await until(lambda: tail.not_ready_reason is None)
        ring = tail.ring
        async with connection.transaction():
            await connection.execute("update userrealtime.log set head = 2")
            await connection.execute("delete from userrealtime.event where id = 3")
        await until(lambda: tail.ring is not ring)
        assert tail.state.head == 2


async def test_a_log_that_is_gone_makes_another_ring(migrated: Database, connection: asyncpg.Connection) -> None:
    await publish(connection, 3)
    async with following(migrated.url, POLL_INTERVAL="0.2") as tail:
        await until(lambda: tail.not_ready_reason is None)
        ring, former = tail.ring, tail.state
        await connection.execute("truncate userrealtime.log, userrealtime.event")
        await until(lambda: tail.ring is not ring)
        assert tail.state == LogState(0, 1, tail.state.epoch)
        assert tail.state.epoch not in (None, former.epoch)


async def test_what_the_log_let_go_of_meanwhile_is_skipped(migrated: Database, connection: asyncpg.Connection) -> None:
    await publish(connection, 3)
    async with following(migrated.url, deaf, POLL_INTERVAL="0.5") as tail:
        await until(lambda: tail.not_ready_reason is None)
        ring = tail.ring
        async with connection.transaction():
            await publish(connection, 5)
            await connection.execute("set constraints all immediate")
            await connection.execute("delete from userrealtime.event where id <= 6")
        await until(lambda: tail.ring.head == 8)
        assert tail.ring is ring
        assert (ring.first, len(ring)) == (7, 2)


async def test_asking_where_the_log_stands_is_a_signal_too(migrated: Database, connection: asyncpg.Connection) -> None:
    await publish(connection, 3)
    async with following(migrated.url, deaf, POLL_INTERVAL=NEVER) as tail:
        await until(lambda: tail.not_ready_reason is None)
        await publish(connection, 2)
        await tail.locate()
        assert tail.state.head == 5
        await until(lambda: tail.ring.head == 5)
        await publish(connection, 5)
        await connection.execute("delete from userrealtime.event where id <= 8")
        await tail.locate()
        assert (tail.state.head, tail.state.earliest) == (10, 9)
        await until(lambda: tail.ring.head == 10)
        assert tail.ring.first == 9


async def test_who_forgets_is_not_called(migrated: Database, connection: asyncpg.Connection) -> None:
    async with following(migrated.url, POLL_INTERVAL=NEVER) as tail:
        await until(lambda: tail.not_ready_reason is None)
        kept, forgotten = asyncio.Event(), asyncio.Event()
        tail.call_once(kept.set)
        tail.call_once(forgotten.set)
        tail.cancel_call(forgotten.set)
        await publish(connection)
        await until(kept.is_set)
        assert not forgotten.is_set()


async def test_a_relay_at_a_hot_standby_serves_after_the_promotion(
    own_server: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """A failover by DNS can lead a relay to a replica, where no session can write, before it is promoted."""
    with LocalPostgres(primary=own_server.server) as server:
        replica = Database(server, own_server.name)
        async with Relay(config(replica.url, SIGNAL="listen")) as relay:
            await until(lambda: any("read-only transaction" in str(vars(record)) for record in caplog.records))
            assert relay.not_ready_reason is not None
            connection = await asyncpg.connect(replica.url)
            await connection.execute("select pg_promote()")
            await until(lambda: relay.not_ready_reason is None)
            async with client(relay) as alice:
                await receive(alice)
                await publish(connection)
                assert await receive_ids(alice, 1) == [1]
            await connection.close()
