"""Long polls, over real sockets and a real Postgres."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from testing.database import Database
from testing.relay.harness import (
    NEVER,
    PATIENCE_S,
    USER,
    client,
    config,
    metric,
    publish,
    receive,
    running,
    token,
    until,
)
from testing.relay.http_client import poll, request
from userrealtime_relay.server import Relay

# No program listens there.
NO_DATABASE = "postgresql://nobody@127.0.0.1:1/none"


async def test_a_poll_without_a_cursor_tells_the_head_at_once(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    await publish(connection, 3)
    epoch = await connection.fetchval("select epoch from userrealtime.log")
    async with running(migrated.url, POLL_INTERVAL=NEVER) as relay:
        assert await poll(relay) == {"events": [], "cursor": 3, "epoch": epoch}
        assert await metric(relay, "connections") == 0


@pytest.mark.parametrize("place", ["ring", "log"])
async def test_a_poll_with_something_to_say_is_answered_at_once(
    migrated: Database, connection: asyncpg.Connection, place: str
) -> None:
    if place == "log":
        await publish(connection, 3)
    async with running(migrated.url, POLL_INTERVAL=NEVER) as relay, client(relay, last_event_id=1) as alice:
        if place == "ring":
            await publish(connection, 3)
            await until(lambda: relay.tail.ring.head == 3)
        greeting = await receive(alice) if place == "log" else None
        answer = await poll(relay, cursor=1, timeout=60)
        assert (answer["cursor"], list(answer)) == (3, ["events", "cursor", "epoch"])
        if greeting is not None:
            assert answer["events"] == [await receive(alice), await receive(alice)]
        assert [event["id"] for event in answer["events"]] == [2, 3]


async def test_a_poll_waits_for_an_event(migrated: Database, connection: asyncpg.Connection) -> None:
    async with running(migrated.url, POLL_INTERVAL=NEVER) as relay:
        waiting = asyncio.create_task(poll(relay, cursor=0))
        await until(lambda: relay.clients.connected == 1)
        await publish(connection)
        answer = await waiting
        assert (answer["cursor"], [event["id"] for event in answer["events"]]) == (1, [1])
        await until(lambda: not relay.clients)


async def test_a_poll_waits_no_longer_than_asked(migrated: Database, connection: asyncpg.Connection) -> None:
    epoch = await connection.fetchval("select userrealtime.first_epoch($1)", USER)
    async with running(migrated.url, POLL_INTERVAL=NEVER) as relay:
        for timeout in ("0", "0.1"):
            assert await poll(relay, cursor=0, timeout=timeout) == {"events": [], "cursor": 0, "epoch": epoch}


async def test_polls_pass_on_everything_in_order(migrated: Database, connection: asyncpg.Connection) -> None:
    await publish(connection, 300, size=2000)
    async with running(migrated.url, RING_EVENTS="8", POLL_INTERVAL=NEVER) as relay:
        publishing = asyncio.create_task(publish(connection, 50, size=2000))
        ids: list[int] = []
        cursor, epoch = 0, ""
        while len(ids) < 350:
            answer = await poll(relay, cursor=cursor, epoch=epoch)
            ids += [event["id"] for event in answer["events"]]
            cursor, epoch = answer["cursor"], answer["epoch"]
        assert ids == list(range(1, 351))
        await publishing


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [({"cursor": 1}, "too-old"), ({"cursor": 6}, "ahead"), ({"cursor": 4, "epoch": "x"}, "epoch")],
)
async def test_a_cursor_that_cannot_be_served_is_reset(
    migrated: Database, connection: asyncpg.Connection, parameters: dict[str, object], reason: str
) -> None:
    await publish(connection, 5)
    await connection.execute("delete from userrealtime.event where id <= 2")
    async with running(migrated.url, POLL_INTERVAL=NEVER) as relay:
        answer = await poll(relay, **parameters)
        assert (answer["events"], answer["cursor"], answer["reset"]) == ([], 5, reason)
        assert await metric(relay, f'starts_total{{outcome="{reason}"}}') == 1


async def test_a_poll_under_way_is_reset(migrated: Database, connection: asyncpg.Connection) -> None:
    await publish(connection, 5)
    async with running(migrated.url, POLL_INTERVAL="0.2") as relay:
        waiting = asyncio.create_task(poll(relay, cursor=5))
        await until(lambda: relay.clients.connected == 1)
        await connection.execute("truncate userrealtime.log, userrealtime.event")
        epoch = await connection.fetchval("select userrealtime.first_epoch($1)", USER)
        assert await waiting == {"events": [], "cursor": 0, "epoch": epoch, "reset": "epoch"}


@pytest.mark.parametrize(
    ("bearer", "query", "status"),
    [
        (None, "", 401),
        ("nonsense", "", 401),
        (token(sub="bob"), "cursor=1", 401),
        ("", "cursor=x", 400),
        ("", "cursor=-1", 400),
        ("", "timeout=x", 400),
        ("", "timeout=-1", 400),
        ("", "timeout=61", 400),
        ("", "timeout=1e1", 400),
        ("", "&".join(["a=b"] * 100), 400),
    ],
)
async def test_what_is_wrong_is_told_by_the_status(
    migrated: Database, bearer: str | None, query: str, status: int
) -> None:
    async with running(migrated.url, POLL_INTERVAL=NEVER) as relay:
        answer = await request(relay, f"/poll?{query}", bearer)
        assert (answer.status, list(answer.json)) == (status, ["error"])
        assert answer.headers["cache-control"] == "no-store"


async def test_a_token_that_expires_meanwhile_is_told(migrated: Database) -> None:
    async with running(migrated.url, POLL_INTERVAL=NEVER) as relay:
        answer = await request(relay, "/poll?cursor=0", token(life_s=-3))
        assert (answer.status, answer.json) == (401, {"error": "Token expired"})


async def test_polls_take_places_among_all_clients(migrated: Database) -> None:
    async with running(migrated.url, MAX_CONNECTIONS="1", POLL_INTERVAL=NEVER) as relay:
        async with client(relay) as alice:
            await receive(alice)
            answer = await request(relay, "/poll?cursor=0")
            assert (answer.status, answer.json) == (503, {"error": "Too many connections"})
            assert int(answer.headers["retry-after"]) >= 10
        await until(lambda: not relay.clients)
        assert (await poll(relay))["cursor"] == 0


async def test_without_postgres_a_poll_is_answered_in_time() -> None:
    async with Relay(config(NO_DATABASE)) as relay:
        answer = await request(relay, "/poll?timeout=0.1")
        assert (answer.status, answer.json) == (503, {"error": "Not connected to Postgres"})
        assert int(answer.headers["retry-after"]) >= 1


async def test_a_poll_that_is_gone_is_forgotten_at_once(migrated: Database) -> None:
    async with running(migrated.url, POLL_INTERVAL=NEVER) as relay:
        waiting = asyncio.create_task(poll(relay, cursor=0))
        await until(lambda: relay.clients.connected == 1)
        waiting.cancel()
        await until(lambda: not relay.clients)


async def test_polls_one_after_the_other_share_a_connection(migrated: Database, connection: asyncpg.Connection) -> None:
    async with running(migrated.url, MAX_CONNECTIONS="1", POLL_INTERVAL=NEVER) as relay:
        await publish(connection, 3)
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.ws_port)
        for cursor in range(3):
            await until(lambda: relay.tail.ring.head == 3)
            writer.write(
                f"GET /poll?cursor={cursor} HTTP/1.1\r\nHost: relay\r\nAuthorization: Bearer {token()}\r\n\r\n".encode()
            )
            async with asyncio.timeout(PATIENCE_S):
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200 ")
                size = int(head.lower().partition(b"content-length: ")[2].split()[0])
                assert (await reader.readexactly(size)).count(b'"type":"event"') == 3 - cursor
        writer.close()
        await writer.wait_closed()


async def test_draining_answers_polls_and_refuses_others(migrated: Database, connection: asyncpg.Connection) -> None:
    async with running(migrated.url, POLL_INTERVAL=NEVER) as relay:
        waiting = asyncio.create_task(request(relay, "/poll?cursor=0"))
        await until(lambda: relay.clients.connected == 1)
        async with asyncio.timeout(PATIENCE_S):
            await relay.drain()
        answer = await waiting
        assert (answer.status, answer.json["events"], answer.json["cursor"]) == (200, [], 0)
        assert answer.headers["connection"] == "close"
        late = await request(relay, "/poll?cursor=0")
        assert (late.status, late.json) == (503, {"error": "Restarting: reconnect"})
        assert 1 <= int(late.headers["retry-after"]) <= 3
