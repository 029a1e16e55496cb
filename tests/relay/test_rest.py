"""With a broker, a relay closes an idle connection to Postgres, and clients do not notice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from testing.database import Database
from testing.local.brokers import LocalBroker
from testing.relay.brokers import bridging, make_broker
from testing.relay.harness import NEVER, PATIENCE_S, USER, client, metric, publish, receive, receive_ids, running, until
from testing.relay.http_client import request
from testing.relay.pgbouncer import pgbouncer
from userrealtime_core.wire.position import LogPosition
from userrealtime_relay.delivery import presence, tail
from userrealtime_relay.server import Relay

SOON = {"DATABASE_IDLE_AFTER": "0.1", "POLL_INTERVAL": NEVER}


@pytest.fixture
async def broker() -> AsyncIterator[LocalBroker]:
    async with make_broker("nats") as broker:
        yield broker


async def held(connection: asyncpg.Connection) -> int:
    """Return the number of connections of relays."""
    number: int = await connection.fetchval(
        "select count(*) from pg_stat_activity "
        "where application_name = 'userrealtime-relay' and datname = current_database()"
    )
    return number


@pytest.fixture(autouse=True)
def resume_immediately(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the log in the moment in which the broker is connected, and not up to two seconds later."""
    monkeypatch.setattr(tail, "RESUME_JITTER_S", 0.0)


async def resting(relay: Relay, connection: asyncpg.Connection) -> None:
    """Wait until there is no connection, and nothing will open one."""
    async with asyncio.timeout(PATIENCE_S):
        # A relay that rests when the broker is connected reads the log once more.
        while not await metric(relay, "broker_connected"):
            await asyncio.sleep(0.02)
        while await held(connection) or await metric(relay, "log_connected") or not relay.tail.resting:
            await asyncio.sleep(0.02)


async def test_what_is_not_used_is_closed_and_opened_by_a_signal(
    migrated: Database, connection: asyncpg.Connection, broker: LocalBroker
) -> None:
    async with (
        bridging(migrated.url, broker),
        running(migrated.url, None, **broker.variables, **SOON) as relay,
        client(relay) as alice,
    ):
        assert (await receive(alice))["cursor"] == 0
        for number in range(1, 4):
            await resting(relay, connection)
            assert relay.not_ready_reason is None
            await publish(connection)
            assert await receive_ids(alice, number) == [number]


async def test_a_connection_in_use_is_kept(
    migrated: Database, connection: asyncpg.Connection, broker: LocalBroker
) -> None:
    variables = {**broker.variables, "DATABASE_IDLE_AFTER": "600", "POLL_INTERVAL": NEVER}
    async with bridging(migrated.url, broker), running(migrated.url, None, **variables) as relay:
        await resting(relay, connection)  # no event has used the first connection
        before = await metric(relay, "log_connections_total")
        for number in range(1, 10):
            await publish(connection)
            await until(lambda number=number: relay.tail.ring.head == number)  # type: ignore[misc]
        assert await held(connection) == 1
        assert await metric(relay, "log_connections_total") == before + 1


async def test_what_is_known_needs_no_look(
    migrated: Database, connection: asyncpg.Connection, broker: LocalBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While messages of the broker arrive, the log is not polled, even with a short interval."""
    monkeypatch.setattr(presence, "REPEAT_INTERVAL_S", 600)
    await publish(connection, 2)
    variables = {**broker.variables, "DATABASE_IDLE_AFTER": "0", "POLL_INTERVAL": "2"}
    async with running(migrated.url, None, **variables) as relay:
        await resting(relay, connection)
        async with bridging(migrated.url, broker, POLL_INTERVAL="0.1"):
            await asyncio.sleep(1)  # until the relay has reported its presence, which the bridge reads
            before = await metric(relay, "log_connections_total")
            await asyncio.sleep(3)
            assert await metric(relay, "log_connections_total") == before
        # Without messages, it is polled again.
        async with asyncio.timeout(PATIENCE_S):
            while await metric(relay, "log_connections_total") == before:
                await asyncio.sleep(0.1)


async def test_who_needs_the_log_gets_it(
    migrated: Database, connection: asyncpg.Connection, broker: LocalBroker
) -> None:
    await publish(connection, 30)
    async with running(migrated.url, None, **broker.variables, **SOON, RING_EVENTS="5") as relay:
        await resting(relay, connection)
        async with client(relay, last_event_id=0) as alice:
            assert (await receive(alice))["type"] == "connected"
            assert await receive_ids(alice, 30) == list(range(1, 31))
        await resting(relay, connection)
        assert (await request(relay, "/publish", method="POST", body=b'{"ref":"r","event":"e"}')).status == 200
        assert await connection.fetchval("select array_agg(ref) from userrealtime.inbox") == ["r"]
        await resting(relay, connection)
        await asyncio.gather(*(relay.tail.page(0, 1000) for _ in range(20)), relay.tail.locate())


async def test_presence_is_told_out_of_a_rest(
    migrated: Database, connection: asyncpg.Connection, broker: LocalBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def online() -> int | None:
        number: int | None = await connection.fetchval(
            "select clients from userrealtime.online where user_id = $1", USER
        )
        return number

    async with running(migrated.url, None, **broker.variables, **SOON) as relay:
        await resting(relay, connection)
        async with client(relay) as alice:
            await receive(alice)
            async with asyncio.timeout(PATIENCE_S):
                while await online() != 1:
                    await asyncio.sleep(0.05)
            await resting(relay, connection)
        async with asyncio.timeout(PATIENCE_S):
            while await online() is not None:
                await asyncio.sleep(0.05)
        await resting(relay, connection)
    assert await connection.fetchval("select count(*) from userrealtime.presence") == 0


async def test_a_database_that_goes_while_the_relay_rests(own_server: Database, broker: LocalBroker) -> None:
    admin = await asyncpg.connect(own_server.url)
    await publish(admin, 2)
    async with running(own_server.url, None, **broker.variables, **SOON) as relay:
        await resting(relay, admin)
        await admin.close()
        await asyncio.to_thread(own_server.server.stop)
        assert relay.not_ready_reason is None
        answer = await request(relay, "/publish", method="POST", body=b'{"ref":"r","event":"e"}')
        assert answer.status == 503
        assert relay.not_ready_reason == "not connected to Postgres"
        await asyncio.to_thread(own_server.server.start)
        await until(lambda: relay.not_ready_reason is None)


async def test_forged_signals_put_the_poll_off_no_further_than_a_limit(
    migrated: Database, connection: asyncpg.Connection, broker: LocalBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that repeats an old position, or the present one, does not withhold an event."""
    monkeypatch.setattr(presence, "REPEAT_INTERVAL_S", 600)
    await publish(connection, 2)
    variables = {**broker.variables, "DATABASE_IDLE_AFTER": "0", "POLL_INTERVAL": "0.2"}
    async with running(migrated.url, None, **variables) as relay:
        await resting(relay, connection)
        epoch = relay.tail.state.epoch
        assert epoch is not None
        await publish(connection)
        async with asyncio.timeout(PATIENCE_S):
            while relay.tail.ring.head < 3:
                relay.tail.on_signal(LogPosition(0, epoch))
                relay.tail.on_signal(LogPosition(2, epoch))
                await asyncio.sleep(0.01)


async def test_only_news_wakes(
    migrated: Database, connection: asyncpg.Connection, broker: LocalBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publish(connection, 3)
    async with running(migrated.url, None, **broker.variables, **SOON) as relay:
        await resting(relay, connection)
        epoch = relay.tail.state.epoch
        assert epoch is not None
        before = await metric(relay, "log_connections_total")
        for position in (LogPosition(3, epoch), LogPosition(2, epoch), LogPosition(3, epoch)):
            relay.tail.on_signal(position)
        await asyncio.sleep(0.3)
        assert await metric(relay, "log_connections_total") == before
        monkeypatch.setattr(tail, "RESUME_JITTER_S", 1.0)
        relay.tail.on_signal(None)
        relay.tail.on_signal(LogPosition(3, epoch))  # before the next poll is due
        await asyncio.sleep(1.3)
        assert await metric(relay, "log_connections_total") == before
        for news in (LogPosition(4, epoch), LogPosition(1, "of another log"), None):
            relay.tail.on_signal(news)
            async with asyncio.timeout(PATIENCE_S):
                while await metric(relay, "log_connections_total") == before:
                    await asyncio.sleep(0.02)
            await resting(relay, connection)
            before = await metric(relay, "log_connections_total")


async def test_it_works_behind_a_pooler_of_transactions(
    migrated: Database, connection: asyncpg.Connection, broker: LocalBroker, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        pgbouncer(migrated.url, "transaction") as url,
        bridging(migrated.url, broker, POLL_INTERVAL=NEVER),
        running(url, None, **broker.variables, **SOON) as relay,
        client(relay) as alice,
    ):
        await receive(alice)
        for number in range(1, 4):
            await publish(connection)
            assert await receive_ids(alice, number) == [number]
            await asyncio.sleep(0.2)
    assert caplog.records == []
