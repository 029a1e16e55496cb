"""Messages of clients, over WebSocket and over HTTP, into a real Postgres."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import asyncpg
import pytest

from testing.database import Database
from testing.relay.harness import (
    PATIENCE_S,
    client,
    closed,
    config,
    metric,
    publish,
    receive,
    receive_ids,
    running,
    terminate,
    token,
    until,
)
from testing.relay.http_client import Answer, request
from userrealtime_relay.server import Relay

# No program listens there.
NO_DATABASE = "postgresql://nobody@127.0.0.1:1/none"


def message(ref: str, data: Any = None, event: str = "note") -> str:
    return json.dumps({"type": "publish", "ref": ref, "event": event, "data": data})


async def post(relay: Relay, body: str | bytes, bearer: str | None = "", path: str = "/publish") -> Answer:
    encoded = body if isinstance(body, bytes) else body.encode()
    return await request(relay, path, bearer, method="POST", body=encoded)


async def inbox(connection: asyncpg.Connection) -> list[tuple[Any, ...]]:
    rows = await connection.fetch("select id, user_id, ref, event, data from userrealtime.inbox order by id")
    return [(*row[:4], json.loads(row[4])) for row in rows]


async def test_a_message_is_stored_once_acknowledged_and_notified(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    notified: asyncio.Queue[str] = asyncio.Queue()
    await connection.add_listener("userrealtime_inbox", lambda *got: notified.put_nowait(got[3]))
    async with running(migrated.url) as relay, client(relay) as alice:
        await receive(alice)
        for _ in range(2):
            await alice.send(message("r1", {"text": "hé", "n": [1.5, None]}))
            assert await receive(alice) == {"type": "ack", "ref": "r1", "id": 1}
        answer = await post(relay, message("r1", "something else"))
        assert (answer.status, answer.json) == (200, {"type": "ack", "ref": "r1", "id": 1})
        answer = await post(relay, '{"ref":"r2","event":"note"}')
        second = answer.json["id"]
        assert (answer.status, answer.json["ref"]) == (200, "r2")
        assert await inbox(connection) == [
            (1, "alice", "r1", "note", {"text": "hé", "n": [1.5, None]}),
            (second, "alice", "r2", "note", {}),
        ]
        async with asyncio.timeout(PATIENCE_S):
            assert [await notified.get(), await notified.get()] == ["1", str(second)]
        assert notified.empty()
        assert await metric(relay, 'submissions_total{outcome="stored"}') == 4


async def test_many_at_once_are_answered_in_order_and_events_go_on(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    async with running(migrated.url, MAX_MESSAGES_PER_SECOND="1000") as relay, client(relay) as alice:
        await receive(alice)
        for number in range(200):
            await alice.send(message(f"r{number}"))
        await publish(connection, 50)
        said = [await receive(alice) for _ in range(250)]
        assert [each["ref"] for each in said if each["type"] == "ack"] == [f"r{number}" for number in range(200)]
        assert [each["id"] for each in said if each["type"] == "event"] == list(range(1, 51))
        assert len(await inbox(connection)) == 200


@pytest.mark.parametrize("data", ['"\\u0000"', "NaN", "1e999", '"\\ud800"'])
async def test_unstorable_data_is_rejected_and_the_connection_kept(
    migrated: Database, connection: asyncpg.Connection, data: str
) -> None:
    body = f'{{"type":"publish","ref":"r","event":"note","data":{data}}}'
    async with running(migrated.url) as relay, client(relay) as alice:
        await receive(alice)
        await alice.send(body)
        error = await receive(alice)
        assert (error["type"], error["code"], error["ref"]) == ("error", "refused", "r")
        answer = await post(relay, body)
        assert (answer.status, list(answer.json)) == (400, ["error"])
        assert await inbox(connection) == []
        assert await metric(relay, "log_connections_total") == 1
        assert await metric(relay, 'submissions_total{outcome="refused"}') == 2


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"[]", 400),
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b'{"ref":"r"}', 400),
        (b"[" * 50_000, 400),
        (b'{"ref":"r","event":"e","data":"' + b"x" * 70_000 + b'"}', 413),
    ],
)
async def test_what_is_no_message_is_refused(migrated: Database, body: bytes, status: int) -> None:
    async with running(migrated.url) as relay:
        answer = await post(relay, body)
        assert (answer.status, list(answer.json)) == (status, ["error"])


async def test_without_a_good_token_nothing_is_stored(migrated: Database, connection: asyncpg.Connection) -> None:
    async with running(migrated.url) as relay:
        for bad in (None, "nonsense", token(sub="bob")):
            assert (await post(relay, message("r"), bad)).status == 401
        assert (await request(relay, "/publish")).status == 405
        assert await inbox(connection) == []


async def test_a_body_that_does_not_come_is_not_waited_for(migrated: Database) -> None:
    async with running(migrated.url, AUTH_TIMEOUT="0.2") as relay:
        answer = await request(relay, "/publish", method="POST", headers={"Content-Length": "9"})
        assert answer.status == 408
        assert answer.headers["connection"] == "close"
        assert await metric(relay, 'limited_total{limit="request_time"}') >= 1


async def test_while_postgres_is_away_a_message_is_unavailable() -> None:
    async with Relay(config(NO_DATABASE)) as relay:
        answer = await post(relay, message("r"))
        assert answer.status == 503
        assert "same ref" in answer.json["error"]
        assert int(answer.headers["retry-after"]) >= 1


async def test_messages_are_repeated_until_they_are_acknowledged(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    """Connections to Postgres end repeatedly. Every message is stored once."""
    async with running(migrated.url, POLL_INTERVAL="0.2", MAX_MESSAGES_PER_SECOND="1000") as relay:

        async def disturb() -> None:
            for _ in range(5):
                await terminate(connection)
                await asyncio.sleep(0.1)

        disturbing = asyncio.create_task(disturb())
        errors = 0
        async with client(relay) as alice:
            await receive(alice)
            for number in range(100):
                answer = None
                while answer is None or answer["type"] != "ack":
                    await alice.send(message(f"r{number}"))
                    answer = await receive(alice)
                    assert answer["ref"] == f"r{number}"
                    if answer["type"] == "error":
                        assert answer["code"] == "unavailable"
                        errors += 1
                        await until(lambda: relay.not_ready_reason is None)
        await disturbing
        assert [row[2] for row in await inbox(connection)] == [f"r{number}" for number in range(100)]
        assert await metric(relay, 'submissions_total{outcome="unavailable"}') == errors


async def test_too_many_messages(migrated: Database, connection: asyncpg.Connection) -> None:
    async with running(migrated.url, MAX_MESSAGES_PER_SECOND="1") as relay, client(relay) as alice:
        await receive(alice)
        for number in range(3):
            await alice.send(message(f"r{number}"))
        assert await closed(alice) == (1013, "Too many messages")
        answers = [await post(relay, message(f"p{number}")) for number in range(3)]
        assert [answer.status for answer in answers].count(429) >= 1
        assert answers[0].status == 200
        assert await metric(relay, 'limited_total{limit="messages"}') >= 2


async def test_a_token_is_renewed_in_band(migrated: Database, connection: asyncpg.Connection) -> None:
    async with running(migrated.url) as relay, client(relay, token(life_s=-3)) as alice:
        await receive(alice)
        await alice.send(json.dumps({"type": "auth", "token": token(life_s=600)}))
        renewed = await receive(alice)
        assert renewed["type"] == "renewed"
        assert 590 < renewed["expiresIn"] <= 606
        [served] = relay.clients
        assert served.session.closing is None
        await publish(connection)
        assert await receive_ids(alice, 1) == [1]
        await alice.send(json.dumps({"type": "auth", "token": token(sub="bob")}))
        assert await closed(alice) == (1008, "Unauthorized")


async def test_a_relay_that_drains_sends_publishers_elsewhere(migrated: Database) -> None:
    async with running(migrated.url) as relay:
        await relay.drain()
        answer = await post(relay, message("r"))
        assert (answer.status, answer.json) == (503, {"error": "Restarting: reconnect"})
