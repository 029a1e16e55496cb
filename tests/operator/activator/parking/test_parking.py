"""Parked connections before a real relay and a real Postgres: what a client and the database see."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

import asyncpg
import pytest

from testing.announcer import announcing, broadcasting, make_busy
from testing.database import Database
from testing.operator.activator import SERVICE, gate
from testing.relay.harness import KEY, PATIENCE_S, USER, client, closed, publish, receive, receive_ids, token, until
from testing.relay.http_client import request, stream
from testing.relay.pgbouncer import pgbouncer
from userrealtime_client import Client, Event, Options
from userrealtime_client.machine import Transport
from userrealtime_operator.activator import tokens
from userrealtime_operator.activator.parking import heads as module_heads
from userrealtime_operator.kube.types import NamespacedName


@pytest.fixture
async def position(migrated: Database, connection: asyncpg.Connection) -> dict[str, Any]:
    """The cursor and the epoch of a client that has all of 3 events."""
    await connection.execute(
        "insert into userrealtime.registration (resource, scope, user_id) values ($1, 'here/users', $2)", uuid4(), USER
    )
    await publish(connection, 3)
    return await head(connection)


async def head(connection: asyncpg.Connection) -> dict[str, Any]:
    row = await connection.fetchrow("select head, epoch from userrealtime.log where user_id = $1", USER)
    assert row is not None
    return {"last_event_id": str(row["head"]), "epoch": row["epoch"]}


async def parked(connection: asyncpg.Connection, clients: int, others: int = 0) -> None:
    """Wait until the database has this number of parked clients, and of others."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            row = await connection.fetchrow("select clients, parked from userrealtime.online where user_id = $1", USER)
            if (tuple(row) if row else (0, 0)) == (clients + others, clients):
                return
            await asyncio.sleep(0.02)


async def test_a_parked_client_is_greeted_and_answered(
    migrated: Database, connection: asyncpg.Connection, position: dict[str, Any]
) -> None:
    async with gate(migrated.url, parking=True) as (opened, cluster, _):
        async with client(opened.port, **position) as alice:
            greeting = {"type": "connected", "userId": USER, "cursor": 3, "epoch": position["epoch"], "earliest": 1}
            assert await receive(alice) == greeting
            await parked(connection, 1)
            await alice.send(json.dumps({"type": "ping"}))
            assert await receive(alice) == {"type": "pong"}
            await (await alice.ping())
            await alice.send(json.dumps({"type": "resume", "lastEventId": 3, "epoch": position["epoch"]}))
            await alice.send(json.dumps({"type": "auth", "token": token(life_s=1000)}))
            assert (await receive(alice))["type"] == "renewed"
        await parked(connection, 0)
        assert cluster.wakes == 0


async def test_an_event_wakes_the_pod_and_arrives_once(
    migrated: Database, connection: asyncpg.Connection, position: dict[str, Any]
) -> None:
    async with gate(migrated.url, parking=True) as (opened, cluster, _), client(opened.port, **position) as alice:
        assert (await receive(alice))["type"] == "connected"
        await publish(connection, 2)
        assert await receive_ids(alice, 5) == [4, 5]
        await publish(connection)
        assert await receive_ids(alice, 6) == [6]
        assert cluster.wakes == 1


async def test_a_message_wakes_the_pod_which_receives_it_once(
    migrated: Database, connection: asyncpg.Connection, position: dict[str, Any]
) -> None:
    async with gate(migrated.url, parking=True) as (opened, cluster, _), client(opened.port, **position) as alice:
        assert (await receive(alice))["type"] == "connected"
        for ref in ("1", "2"):
            await alice.send(json.dumps({"type": "publish", "ref": ref, "event": "x", "data": {}}))
        assert [(await receive(alice))["ref"] for _ in range(2)] == ["1", "2"]
        assert cluster.wakes == 1
        assert await connection.fetchval("select count(*) from userrealtime.inbox") == 2


@pytest.mark.parametrize("resume", [{"last_event_id": "0"}, {"last_event_id": "0", "epoch": ""}])
async def test_a_client_of_a_user_without_a_log_is_parked(
    migrated: Database, connection: asyncpg.Connection, resume: dict[str, Any]
) -> None:
    await connection.execute(
        "insert into userrealtime.registration (resource, scope, user_id) values ($1, 'here/users', $2)", uuid4(), USER
    )
    async with (
        gate(migrated.url, parking=True) as (opened, cluster, _),
        client(opened.port, **resume) as alice,
        stream(opened.port, headers={**SERVICE, "Last-Event-ID": "0"}) as events,
    ):
        greeting = {"type": "connected", "userId": USER, "cursor": 0, "epoch": None, "earliest": 1}
        assert await receive(alice) == greeting
        assert await events.event() == greeting
        await parked(connection, 2)
        assert cluster.wakes == 0
        await publish(connection)
        assert await receive_ids(alice, 1) == [1]
        assert await events.ids(1) == [1]
        assert cluster.wakes == 1


@pytest.mark.parametrize("lost", ["last_event_id", "epoch"])
async def test_a_client_without_a_position_is_forwarded(
    migrated: Database, position: dict[str, Any], lost: str
) -> None:
    del position[lost]
    async with gate(migrated.url, parking=True) as (opened, cluster, _), client(opened.port, **position) as alice:
        assert (await receive(alice))["type"] == "connected"
        assert cluster.wakes == 1


async def test_a_client_that_is_behind_is_forwarded(
    migrated: Database, connection: asyncpg.Connection, position: dict[str, Any]
) -> None:
    await publish(connection)
    async with gate(migrated.url, parking=True) as (opened, cluster, _), client(opened.port, **position) as alice:
        assert (await receive(alice))["type"] == "connected"
        assert await receive_ids(alice, 4) == [4]
        assert cluster.wakes == 1


async def test_a_token_in_the_first_message(
    migrated: Database, connection: asyncpg.Connection, position: dict[str, Any]
) -> None:
    async with gate(migrated.url, parking=True) as (opened, cluster, _), client(opened.port, None, **position) as alice:
        await alice.send(json.dumps({"type": "auth", "token": token()}))
        assert (await receive(alice))["type"] == "connected"
        await alice.send(json.dumps({"type": "ping"}))
        assert (await receive(alice))["type"] == "pong"
        assert cluster.wakes == 0
        await publish(connection)
        assert await receive_ids(alice, 4) == [4]


async def test_the_pod_receives_the_newest_token(
    migrated: Database, connection: asyncpg.Connection, position: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "COOLDOWN_S", 0)
    # The second key was created while the client was parked, and the first one is not accepted any more at the wake.
    keys = [KEY]
    other = "another key of this user that is long enough"
    async with (
        gate(migrated.url, parking=True, keys=lambda: tuple(keys), relay={"TOKEN_KEY": other}) as (opened, cluster, _),
        client(opened.port, **position) as alice,
    ):
        assert (await receive(alice))["type"] == "connected"
        keys.insert(0, other)
        await alice.send(json.dumps({"type": "auth", "token": token(key=other)}))
        assert (await receive(alice))["type"] == "renewed"
        await publish(connection)
        assert await receive_ids(alice, 4) == [4]
        assert cluster.wakes == 1


async def test_an_expired_token_closes_a_parked_connection(migrated: Database, position: dict[str, Any]) -> None:
    relay = {"TOKEN_LEEWAY": "0"}
    async with (
        gate(migrated.url, parking=True, relay=relay) as (opened, cluster, _),
        client(opened.port, token(life_s=2), **position) as alice,
    ):
        assert (await receive(alice))["type"] == "connected"
        assert await closed(alice) == (4001, "Token expired")
        assert cluster.wakes == 0


async def test_a_wrong_token_closes_a_parked_connection(migrated: Database, position: dict[str, Any]) -> None:
    async with gate(migrated.url, parking=True) as (opened, cluster, _), client(opened.port, **position) as alice:
        assert (await receive(alice))["type"] == "connected"
        await alice.send(json.dumps({"type": "auth", "token": token(sub="bob")}))
        assert await closed(alice) == (1008, "Unauthorized")
        assert cluster.wakes == 0


async def test_a_client_that_answers_no_ping_is_closed(migrated: Database, position: dict[str, Any]) -> None:
    async with gate(migrated.url, parking=True, relay={"PING_INTERVAL": "0.5"}) as (opened, cluster, _):
        async with client(opened.port, **position) as alice:
            assert (await receive(alice))["type"] == "connected"
            await asyncio.sleep(2)  # several intervals, in which the client answers
            assert alice.protocol.close_rcvd is None
            alice.transport.pause_reading()
            await until(lambda: opened.connections == 0)
        assert cluster.wakes == 0


async def test_an_activator_that_drains_closes_parked_connections(migrated: Database, position: dict[str, Any]) -> None:
    async with gate(migrated.url, parking=True) as (opened, cluster, _), client(opened.port, **position) as alice:
        assert (await receive(alice))["type"] == "connected"
        await opened.drain(0)
        assert await closed(alice) == (1012, "Restarting")
        assert cluster.wakes == 0


async def test_a_user_that_is_woken_for_another_reason(migrated: Database, position: dict[str, Any]) -> None:
    async with gate(migrated.url, parking=True) as (opened, cluster, _):
        port = opened.port
        async with client(port, **position) as alice, client(port, **position) as second:
            assert (await receive(alice))["type"] == (await receive(second))["type"] == "connected"
            relay = await cluster.start()
            cluster.ready(relay.ws_port)
            cluster.parked = False
            cluster.unpark(NamespacedName("users", "alice"))
            for each in (alice, second):
                await each.send(json.dumps({"type": "resume", "lastEventId": 0}))
                assert await receive_ids(each, 3) == [1, 2, 3]
            assert cluster.wakes == 0


async def test_another_epoch_is_reported_as_a_reset(
    migrated: Database, connection: asyncpg.Connection, position: dict[str, Any]
) -> None:
    async with gate(migrated.url, parking=True) as (opened, _, _), client(opened.port, **position) as alice:
        assert (await receive(alice))["type"] == "connected"
        await connection.execute("update userrealtime.log set epoch = 'other' where user_id = $1", USER)
        reset = await receive(alice)
        assert (reset["type"], reset["reason"], reset["epoch"]) == ("reset", "epoch", "other")


async def test_retention_that_passes_a_parked_client_resets_it(
    migrated: Database, connection: asyncpg.Connection, position: dict[str, Any]
) -> None:
    async with gate(migrated.url, parking=True) as (opened, _, _), client(opened.port, **position) as alice:
        assert (await receive(alice))["type"] == "connected"
        async with connection.transaction():
            await publish(connection, 2)
            await connection.execute("set constraints all immediate")
            await connection.execute("delete from userrealtime.event where id < 5")
        reset = await receive(alice)
        assert (reset["type"], reset["reason"], reset["cursor"]) == ("reset", "too-old", 5)


async def test_old_events_that_a_parked_client_has_may_be_deleted(
    migrated: Database, connection: asyncpg.Connection, position: dict[str, Any]
) -> None:
    await connection.execute("delete from userrealtime.event")
    async with gate(migrated.url, parking=True) as (opened, _, _), client(opened.port, **position) as alice:
        assert (await receive(alice))["earliest"] == 4
        await publish(connection)
        assert await receive_ids(alice, 4) == [4]


async def test_a_lost_database_connection_loses_no_event(
    migrated: Database, connection: asyncpg.Connection, position: dict[str, Any]
) -> None:
    async with gate(migrated.url, parking=True) as (opened, cluster, _), client(opened.port, **position) as alice:
        assert (await receive(alice))["type"] == "connected"
        await connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where application_name = 'userrealtime-activator' and datname = current_database()"
        )
        await publish(connection)
        assert await receive_ids(alice, 4) == [4]
        assert cluster.wakes == 1


async def test_a_pod_that_ends_before_it_greets_is_retried(
    migrated: Database, connection: asyncpg.Connection, position: dict[str, Any]
) -> None:
    async with (
        gate(migrated.url, parking=True, ghosts=2) as (opened, _, _),
        client(opened.port, **position) as alice,
    ):
        assert (await receive(alice))["type"] == "connected"
        await publish(connection)
        assert await receive_ids(alice, 4) == [4]


def last_event_id(position: dict[str, Any]) -> dict[str, str]:
    return {**SERVICE, "Last-Event-ID": f"{position['last_event_id']}:{position['epoch']}"}


async def test_a_parked_stream_continues_with_the_events(
    migrated: Database, connection: asyncpg.Connection, position: dict[str, Any]
) -> None:
    async with (
        gate(migrated.url, parking=True, relay={"PING_INTERVAL": "0.5"}) as (opened, cluster, _),
        stream(opened.port, headers=last_event_id(position)) as events,
    ):
        assert (events.answer.status, events.answer.headers["content-type"]) == (200, "text/event-stream")
        greeting = {"type": "connected", "userId": USER, "cursor": 3, "epoch": position["epoch"], "earliest": 1}
        assert await events.event() == greeting
        assert events.last_id == f"3:{position['epoch']}"
        assert 1000 <= events.retry_ms <= 3000
        await parked(connection, 1)
        await asyncio.sleep(1)
        assert cluster.wakes == 0
        await publish(connection, 2)
        assert await events.ids(5) == [4, 5]
        assert events.comments > 0
        await publish(connection)
        assert await events.ids(6) == [6]
        assert cluster.wakes == 1


async def test_a_parked_stream_is_reset_by_the_pod(
    migrated: Database, connection: asyncpg.Connection, position: dict[str, Any]
) -> None:
    async with (
        gate(migrated.url, parking=True) as (opened, _, _),
        stream(opened.port, headers=last_event_id(position)) as events,
    ):
        assert ((await events.event()) or {})["type"] == "connected"
        await connection.execute("update userrealtime.log set epoch = 'other' where user_id = $1", USER)
        reset = await events.event() or {}
        assert (reset["type"], reset["reason"]) == ("reset", "epoch")
        assert events.last_id == "3:other"


async def test_a_parked_stream_ends_with_its_token(migrated: Database, position: dict[str, Any]) -> None:
    async with (
        gate(migrated.url, parking=True, relay={"TOKEN_LEEWAY": "0"}) as (opened, cluster, _),
        stream(opened.port, bearer=token(life_s=2), headers=last_event_id(position)) as events,
    ):
        assert ((await events.event()) or {})["type"] == "connected"
        assert await events.event() == {"type": "close", "code": 4001, "reason": "Token expired"}
        assert await events.event() is None
        assert cluster.wakes == 0


async def test_a_parked_stream_ends_with_the_activator(migrated: Database, position: dict[str, Any]) -> None:
    async with (
        gate(migrated.url, parking=True) as (opened, _, _),
        stream(opened.port, headers=last_event_id(position)) as events,
    ):
        assert ((await events.event()) or {})["type"] == "connected"
        draining = asyncio.create_task(opened.drain(0))
        assert await events.event() == {"type": "close", "code": 1012, "reason": "Restarting"}
        assert await events.event() is None
        events.abort()
        await draining


async def test_a_parked_stream_without_a_pod_ends(
    migrated: Database, connection: asyncpg.Connection, position: dict[str, Any]
) -> None:
    async with (
        gate(migrated.url, parking=True, comes=False, timeout_s=0.5) as (opened, _, _),
        stream(opened.port, headers=last_event_id(position)) as events,
    ):
        assert ((await events.event()) or {})["type"] == "connected"
        await publish(connection)
        close = await events.event() or {}
        assert (close["type"], close["code"]) == ("close", 1013)
        assert events.retry_ms >= 10_000


async def test_a_parked_poll_is_answered_by_the_pod(
    migrated: Database, connection: asyncpg.Connection, position: dict[str, Any]
) -> None:
    query = urlencode({"cursor": 3, "epoch": position["epoch"]})
    async with gate(migrated.url, parking=True) as (opened, cluster, _):
        answering = asyncio.create_task(request(opened.port, f"/poll?{query}", headers=SERVICE))
        await parked(connection, 1)
        assert cluster.wakes == 0
        await publish(connection, 2)
        answer = await answering
        assert (answer.status, [event["id"] for event in answer.json["events"]]) == (200, [4, 5])
        assert (answer.json["cursor"], cluster.wakes) == (5, 1)


@pytest.mark.parametrize("mark", [None, "x:7"])
async def test_a_parked_poll_without_an_event(migrated: Database, position: dict[str, Any], mark: str | None) -> None:
    broadcasts = {} if mark is None else {"broadcasts": mark}
    query = urlencode({"cursor": 3, "epoch": position["epoch"], "timeout": "0.5", **broadcasts})
    async with gate(migrated.url, parking=True) as (opened, cluster, _):
        answer = await request(opened.port, f"/poll?{query}", headers=SERVICE)
        more = {} if mark is None else {"broadcasts": [], "broadcastCursor": mark}
        assert answer.json == {"events": [], "cursor": 3, "epoch": position["epoch"], **more}
        assert (answer.status, cluster.wakes) == (200, 0)


async def test_an_invalid_poll_is_forwarded(migrated: Database, position: dict[str, Any]) -> None:
    query = urlencode({"cursor": 3, "epoch": position["epoch"], "timeout": "long"})
    async with gate(migrated.url, parking=True) as (opened, cluster, _):
        assert (await request(opened.port, f"/poll?{query}", headers=SERVICE)).status == 400
        assert cluster.wakes == 1


async def test_a_broadcast_of_a_client_wakes_a_parked_user(migrated: Database, position: dict[str, Any]) -> None:
    settings = {"MAX_BROADCASTS_PER_SECOND": "10"}
    body = json.dumps({"event": "typing", "data": {}}).encode()
    headers = {**SERVICE, "Content-Type": "application/json"}
    async with (
        gate(migrated.url, parking=True, relay=settings) as (opened, cluster, _),
        client(opened.port, **position) as alice,
    ):
        assert (await receive(alice))["type"] == "connected"
        answer = await request(opened.port, "/broadcast", method="POST", headers=headers, body=body)
        assert (answer.status, cluster.wakes) == (202, 1)


async def test_behind_a_transaction_pooler_heads_are_polled(
    migrated: Database, connection: asyncpg.Connection, position: dict[str, Any]
) -> None:
    async with (
        pgbouncer(migrated.url, "transaction") as pooled,
        gate(migrated.url, parking=pooled) as (opened, cluster, _),
        client(opened.port, **position) as alice,
    ):
        assert (await receive(alice))["type"] == "connected"
        await parked(connection, 1)
        await publish(connection)
        assert await receive_ids(alice, 4) == [4]
        assert cluster.wakes == 1


async def test_an_announcer_notifies_activators(
    migrated: Database, connection: asyncpg.Connection, position: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module_heads, "POLL_S", 1000)
    async with (
        announcing(migrated.url) as announcer,
        gate(migrated.url, parking=True) as (opened, cluster, _),
        client(opened.port, **position) as alice,
    ):
        assert (await receive(alice))["type"] == "connected"
        await make_busy(connection, announcer)
        await publish(connection)
        assert announcer.leased, "the publisher has rung"
        assert await receive_ids(alice, 4) == [4]
        assert cluster.wakes == 1


async def test_a_broadcast_is_lost_and_wakes_the_pod(
    migrated: Database, connection: asyncpg.Connection, position: dict[str, Any]
) -> None:
    async with (
        broadcasting(migrated.url) as broadcaster,
        gate(migrated.url, parking=True) as (opened, cluster, _),
        client(opened.port, **position) as alice,
    ):
        assert (await receive(alice))["type"] == "connected"
        await parked(connection, 1)
        await connection.execute("select userrealtime.broadcast($1, 'first')", USER)
        await until(lambda: cluster.wakes == 1)
        await parked(connection, 0, 1)
        assert broadcaster.reported == []
        await connection.execute("select userrealtime.broadcast($1, 'second')", USER)
        assert await receive(alice) == {"type": "broadcast", "event": "second", "data": {}}


async def test_a_forged_notification_wakes_no_pod(
    migrated: Database, connection: asyncpg.Connection, position: dict[str, Any]
) -> None:
    async with gate(migrated.url, parking=True) as (opened, cluster, metrics), client(opened.port, **position) as alice:
        assert (await receive(alice))["type"] == "connected"
        for channel in ("userrealtime_parked", "userrealtime_doorbell"):
            await connection.execute("select pg_notify($1, userrealtime.channel($2))", channel, USER)
        await asyncio.sleep(0.5)
        await alice.send(json.dumps({"type": "ping"}))
        assert await receive(alice) == {"type": "pong"}
        assert (cluster.wakes, metrics.value("unparks_total", reason="events")) == (0, 0)


@pytest.mark.parametrize("transport", ["websocket", "sse", "poll"])
async def test_our_client_stays_connected(
    migrated: Database, connection: asyncpg.Connection, position: dict[str, Any], transport: Transport
) -> None:
    async def fresh_token() -> str:
        return token()

    states: list[str] = []
    start = f"{position['last_event_id']}:{position['epoch']}"
    async with gate(migrated.url, parking=True) as (opened, cluster, _):
        async with Client(
            f"http://127.0.0.1:{opened.port}",
            token=fresh_token,
            position=start,
            options=Options(transports=(transport,)),
            on_state=lambda state: states.append(state.state),
        ) as alice:
            await until(lambda: transport == "poll" or alice.state == "connected")
            await parked(connection, 1)
            assert cluster.wakes == 0
            await publish(connection, 2)
            async with asyncio.timeout(PATIENCE_S):
                events = [await anext(alice) for _ in range(2)]
            assert [event.id for event in events if isinstance(event, Event)] == [4, 5]
            assert alice.state == "connected"
            assert cluster.wakes == 1
            assert await alice.publish("x") > 0
        assert states == ["connecting", "connected", "closed"]
