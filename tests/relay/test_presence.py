"""The presence of clients, as written to the database."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import asyncpg
import pytest
from websockets.typing import Subprotocol

from testing.database import Database
from testing.relay.harness import PATIENCE_S, USER, client, publish, receive, running, token, until
from testing.relay.http_client import request, stream
from userrealtime_relay.delivery import presence

QUESTION = "select coalesce(sum(clients), 0) from userrealtime.online where user_id = $1"


@pytest.fixture(autouse=True)
def calm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "MIN_REPORT_INTERVAL_S", 0.05)
    monkeypatch.setattr(presence, "REPEAT_INTERVAL_S", 0.3)


async def online(connection: asyncpg.Connection, expected: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while await connection.fetchval(QUESTION, USER) != expected:
            await asyncio.sleep(0.02)


async def rows(connection: asyncpg.Connection, instance: str) -> int:
    count: int = await connection.fetchval("select count(*) from userrealtime.presence where instance = $1", instance)
    return count


async def test_clients_of_all_pods_are_counted_as_they_come_and_go(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    async with running(migrated.url, INSTANCE="one") as one, running(migrated.url, INSTANCE="two") as two:
        await online(connection, 0)
        async with client(one) as first, client(two) as second, stream(two):
            await receive(first)
            await receive(second)
            await online(connection, 3)
        await online(connection, 0)
        async with client(one) as again:
            await receive(again)
            await online(connection, 1)
        assert await rows(connection, "one") == await rows(connection, "two") == 1
    assert await rows(connection, "one") == await rows(connection, "two") == 0


async def test_who_is_not_authenticated_is_not_online(migrated: Database, connection: asyncpg.Connection) -> None:
    async with running(migrated.url) as relay, client(relay, None):
        async with client(relay) as known:
            await receive(known)
            await online(connection, 1)
        await online(connection, 0)


async def test_a_pod_that_is_silent_does_not_count_until_it_is_heard_again(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    async with running(migrated.url, INSTANCE="one") as relay, client(relay) as alice:
        await receive(alice)
        await online(connection, 1)
        age = "update userrealtime.presence set seen_at = seen_at - interval '4 minutes'"
        await connection.execute(
            "insert into userrealtime.presence (user_id, instance, clients) values ($1, 'dead', 7)", USER
        )
        await connection.execute(age)
        await online(connection, 1)  # with its next heartbeat, and without closed clients


async def test_it_is_told_again_after_the_database_was_away(migrated: Database, connection: asyncpg.Connection) -> None:
    async with running(migrated.url) as relay, client(relay) as alice:
        await receive(alice)
        await online(connection, 1)
        await connection.execute("delete from userrealtime.presence")
        await connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'userrealtime-relay'"
        )
        await online(connection, 1)


async def test_a_schema_without_it_disturbs_nobody(migrated: Database, connection: asyncpg.Connection) -> None:
    await connection.execute("drop function userrealtime.present")
    async with running(migrated.url) as relay, client(relay) as alice:
        await receive(alice)
        await connection.execute("select userrealtime.publish($1, 'x')", USER)
        assert (await receive(alice))["type"] == "event"
        await asyncio.sleep(0.5)
        assert relay.not_ready_reason is None


async def test_one_user_cannot_fill_the_table(migrated: Database, connection: asyncpg.Connection) -> None:
    for number in range(100):
        await connection.execute("select userrealtime.present($1, $2, 1)", USER, f"pod-{number}")
    kept = await connection.fetch("select instance from userrealtime.presence order by seen_at")
    assert [row[0] for row in kept] == [f"pod-{number}" for number in range(84, 100)]


async def quiet(connection: asyncpg.Connection, expected: Callable[[float], bool]) -> None:
    """Wait until the relay has reported an expected time since its last traffic, in seconds."""
    query = "select extract(epoch from seen_at - active_at)::float8 from userrealtime.presence where user_id = $1"
    async with asyncio.timeout(PATIENCE_S):
        while not expected(await connection.fetchval(query, USER)):
            await asyncio.sleep(0.02)


async def test_the_time_since_the_last_traffic_is_reported(migrated: Database, connection: asyncpg.Connection) -> None:
    await publish(connection)
    async with running(migrated.url) as relay, client(relay, last_event_id="1") as alice:
        await receive(alice)
        await quiet(connection, lambda seconds: seconds > 1)
        # A client that resumes at the head, and what keeps a connection alive, are no traffic.
        async with client(relay, last_event_id="1") as second:
            await receive(second)
            await alice.send(json.dumps({"type": "ping"}))
            await alice.send(json.dumps({"type": "auth", "token": token()}))
            await receive(alice)
            await receive(alice)
        await quiet(connection, lambda seconds: seconds > 2)
        await publish(connection)
        await quiet(connection, lambda seconds: seconds < 1)
        await quiet(connection, lambda seconds: seconds > 1)
        await alice.send(json.dumps({"type": "publish", "ref": "1", "event": "x"}))
        await quiet(connection, lambda seconds: seconds < 1)
        await quiet(connection, lambda seconds: seconds > 1)
        async with client(relay) as newcomer:
            await receive(newcomer)
            await quiet(connection, lambda seconds: seconds < 1)


async def test_a_client_of_another_protocol_counts_as_traffic(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    """An activator cannot keep its connection, so its user must not be parked."""
    await publish(connection)
    names = [Subprotocol("actioncable-v1-json"), Subprotocol(f"bearer.{token()}")]
    async with (
        running(migrated.url, PROTOCOLS="actioncable,durable-streams") as relay,
        client(relay, last_event_id="1") as alice,
    ):
        await receive(alice)
        await quiet(connection, lambda seconds: seconds > 1)
        async with client(relay, None, path="/cable", subprotocols=names) as cable:
            await until(lambda: relay.clients.connected == 2)
            assert relay.clients.quiet_s == 0
            await quiet(connection, lambda seconds: seconds == 0)
            await cable.close()
        await until(lambda: relay.clients.connected == 1)
        await quiet(connection, lambda seconds: seconds > 0)
        poll = asyncio.create_task(request(relay, "/streams/log?offset=now&live=long-poll"))
        await until(lambda: relay.clients.connected == 2)
        assert relay.clients.quiet_s == 0
        await publish(connection)
        assert (await poll).status == 200
        await until(lambda: relay.clients.connected == 1)
        assert relay.clients.quiet_s > 0


async def test_traffic_after_a_silence_is_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "MIN_REPORT_INTERVAL_S", 0)
    monkeypatch.setattr(presence, "REPEAT_INTERVAL_S", 60)
    reports: list[tuple[int | None, float]] = []
    silence = [100.0]

    class FakeTail:
        async def reachable(self) -> None:
            """It is."""

        async def present(self, instance: str, clients: int | None, quiet_s: float) -> None:
            reports.append((clients, quiet_s))

    reporter = presence.Presence(FakeTail(), "pod", lambda: 1, lambda: silence[0])  # type: ignore[arg-type]
    running_reports = asyncio.create_task(reporter.run())
    await until(lambda: reports == [(1, 100)])
    reporter.changed()
    silence[0] = 0
    reporter.changed()
    await until(lambda: len(reports) == 2)
    reporter.changed()
    await asyncio.sleep(0.1)
    running_reports.cancel()
    assert reports == [(1, 100), (1, 0)]
