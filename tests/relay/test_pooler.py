"""Postgres behind a real PgBouncer, where transactions of one connection go to different backends."""

from __future__ import annotations

import asyncio
import logging

import asyncpg
import pytest

from testing.database import Database
from testing.relay.harness import NEVER, USER, client, config, metric, numbers, publish, receive, receive_ids, until
from testing.relay.http_client import request
from testing.relay.pgbouncer import pgbouncer
from userrealtime_core.secret import Secret
from userrealtime_relay.delivery import tail
from userrealtime_relay.log.log import Log
from userrealtime_relay.notify import choice
from userrealtime_relay.server import Relay

WARNING = "LISTEN does not work here"


async def test_behind_a_pooler_of_transactions_the_log_is_polled(
    migrated: Database,
    connection: asyncpg.Connection,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tail, "POLL_INTERVAL", 600)  # only the signal wakes the relay
    async with pgbouncer(migrated.url, "transaction") as url:
        with caplog.at_level(logging.WARNING, "userrealtime_relay"):
            async with Relay(config(url)) as relay:
                await until(lambda: relay.not_ready_reason is None)
                async with client(relay) as alice:
                    assert (await receive(alice))["cursor"] == 0
                    for number in range(1, 4):
                        await publish(connection)
                        assert await receive_ids(alice, number) == [number]
        said = [record for record in caplog.records if WARNING in record.message]
        assert len(said) == 1
        assert said[0].__dict__["fields"] == {"poll_interval_s": 1.0}
        fresh = await asyncpg.connect(url, statement_cache_size=0)
        assert await fresh.fetch("select pg_listening_channels()") == []  # in the backend that every client uses next
        await fresh.close()


async def test_who_asks_for_polling_gets_it_without_a_word(
    migrated: Database, connection: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        pgbouncer(migrated.url, "transaction") as url,
        Relay(config(url, SIGNAL="poll", POLL_INTERVAL="0.1")) as relay,
    ):
        await until(lambda: relay.not_ready_reason is None)
        await publish(connection, 2)
        await until(lambda: relay.tail.ring.head == 2)
    assert caplog.records == []


async def test_behind_a_pooler_clients_publish(migrated: Database, connection: asyncpg.Connection) -> None:
    async with (
        pgbouncer(migrated.url, "transaction") as url,
        Relay(config(url, SIGNAL="poll", POLL_INTERVAL="0.1")) as relay,
    ):
        await until(lambda: relay.not_ready_reason is None)
        for body, status in ((b'{"ref":"r","event":"e"}', 200), (b'{"ref":"s","event":"e","data":NaN}', 400)):
            for _ in range(2):
                assert (await request(relay, "/publish", method="POST", body=body)).status == status
        assert await connection.fetchval("select array_agg(ref) from userrealtime.inbox") == ["r"]
        assert await metric(relay, "log_connections_total") == 1


async def test_a_pooler_of_sessions_lets_notifications_through(
    migrated: Database, connection: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    async with pgbouncer(migrated.url, "session") as url, Relay(config(url, POLL_INTERVAL=NEVER)) as relay:
        await until(lambda: relay.not_ready_reason is None)
        await publish(connection)
        await until(lambda: relay.tail.ring.head == 1)
    assert caplog.records == []


async def test_a_direct_connection_is_known_as_one_by_itself(
    migrated: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def connect_twice(_: Secret) -> bool:
        raise AssertionError("there was no need")

    monkeypatch.setattr("userrealtime_relay.log.log.receives_notifications", connect_twice)
    log = await Log.connect(Secret(migrated.url), USER)
    assert not log.pooled
    settings = await log._fetch("select current_setting('statement_timeout'), current_setting('tcp_keepalives_idle')")
    assert tuple(settings[0]) == ("18s", "30")
    log.abandon()


async def test_a_relay_may_poll_where_it_could_listen(
    migrated: Database, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def listen(*_: object) -> None:
        raise AssertionError("it was told to poll")

    monkeypatch.setattr(Log, "listen", listen)
    monkeypatch.setattr(choice, "INTERVAL", 0.05)
    monkeypatch.setattr(tail, "POLL_INTERVAL", 600)
    async with Relay(config(migrated.url, SIGNAL="poll")) as relay:
        await until(lambda: relay.not_ready_reason is None)
        await publish(connection)
        await until(lambda: relay.tail.ring.head == 1)


async def test_a_query_behind_a_pooler_has_a_time_limit_too(migrated: Database) -> None:
    async with pgbouncer(migrated.url, "transaction") as url:
        log = await Log.connect(Secret(url), USER)
        assert log.pooled
        assert tuple((await log._fetch("select current_setting('statement_timeout')"))[0]) == ("18s",)
        log.abandon()
        fresh = await asyncpg.connect(url, statement_cache_size=0)
        # Nothing of it remains in the backend for the next client.
        assert await fresh.fetchval("select current_setting('statement_timeout')") == "0"
        assert await fresh.fetchval("select count(*) from pg_prepared_statements") == 0
        await fresh.close()


async def test_many_relays_share_few_backends(migrated: Database, connection: asyncpg.Connection) -> None:
    """Prepared statements that a relay left in a shared backend would break the others."""
    async with pgbouncer(migrated.url, "transaction") as url:
        logs = await asyncio.gather(*(Log.connect(Secret(url), USER, pooled=True) for _ in range(20)))
        await publish(connection, 50)

        async def read(log: Log) -> None:
            for after in range(0, 50, 5):
                page = await log.page(after, max_events=5, max_bytes=10**6)
                assert numbers(page) == list(range(after + 1, after + 6))
                assert (await log.open())[0].head == 50

        await asyncio.gather(*(read(log) for log in logs))
        backends = await connection.fetchval(
            "select count(*) from pg_stat_activity where application_name = 'userrealtime-relay'"
        )
        assert 1 <= backends <= 5
        for log in logs:
            log.abandon()
