"""Broadcasts of clients to the other clients of their user in the same pod. No announcer runs."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import asyncpg
import pytest

from testing.database import Database
from testing.relay.harness import NEVER, client, eventually, is_metric, publish, receive, running, until
from testing.relay.http_client import Answer, poll, request, stream
from userrealtime_core.wire.broadcast import MOST_CONTENT_BYTES, Content, InvalidBroadcast, TooLarge
from userrealtime_relay.delivery.broadcasts import Broadcasts
from userrealtime_relay.server import Relay
from userrealtime_relay.wire.frames import payloads

LIMIT = {"POLL_INTERVAL": NEVER, "MAX_BROADCASTS_PER_SECOND": "1000", "MAX_MESSAGES_PER_SECOND": "1000"}


def message(data: Any, event: str = "typing") -> dict[str, Any]:
    return {"type": "broadcast", "event": event, "data": data}


def text(data: Any, event: str = "typing") -> str:
    return json.dumps(message(data, event))


async def post(relay: Relay, body: str | bytes, sender: str = "", bearer: str | None = "") -> Answer:
    encoded = body if isinstance(body, bytes) else body.encode()
    path = f"/broadcast?sender={sender}" if sender else "/broadcast"
    return await request(relay, path, bearer, method="POST", body=encoded)


async def test_the_other_clients_of_all_transports_receive_it_and_the_sender_does_not(migrated: Database) -> None:
    async with (
        running(migrated.url, **LIMIT) as relay,
        client(relay) as sender,
        client(relay) as other,
        stream(relay) as streaming,
    ):
        for each in (sender, other):
            assert (await receive(each))["type"] == "connected"
        assert (await streaming.event() or {})["type"] == "connected"
        waiting = asyncio.create_task(poll(relay, cursor=0, broadcasts="", timeout=60))
        await until(lambda: relay.clients.connected == 4)
        for number in range(3):
            await sender.send(text({"n": number}))
        for number in range(3):
            assert await receive(other) == message({"n": number})
            assert await streaming.event() == message({"n": number})
        answer = await waiting
        found = answer["broadcasts"]
        while len(found) < 3:
            answer = await poll(relay, cursor=0, broadcasts=answer["broadcastCursor"], timeout=60)
            found += answer["broadcasts"]
        assert found == [message({"n": number}) for number in range(3)]
        # The next message that the sender receives is one that the other client has sent.
        await other.send(text("reply"))
        assert await receive(sender) == message("reply")
        await eventually(lambda: is_metric(relay, 'client_broadcasts_total{outcome="sent"}', 4))


async def test_a_stream_and_its_posts_belong_together_by_the_name_of_the_sender(migrated: Database) -> None:
    async with (
        running(migrated.url, **LIMIT) as relay,
        stream(relay, path="/sse?sender=device-1") as sender,
        stream(relay, path="/sse?sender=device-2") as other,
    ):
        for each in (sender, other):
            assert (await each.event() or {})["type"] == "connected"
        answer = await post(relay, '{"event":"typing","data":"one"}', "device-1")
        assert (answer.status, answer.json) == (202, {})
        assert await other.event() == message("one")
        assert (await post(relay, text("two"), "device-2")).status == 202
        assert await sender.event() == message("two")
        # Without a valid name of the sender, every client receives it.
        for number, name in enumerate(("", "short", "x" * 65, "device%201")):
            assert (await post(relay, text(number), name)).status == 202
            for each in (sender, other):
                assert await each.event() == message(number)


async def test_a_poll_is_not_answered_with_its_own_broadcasts(migrated: Database) -> None:
    async with running(migrated.url, **LIMIT) as relay:
        first = await poll(relay, cursor=0, broadcasts="", sender="device-1", timeout=0)
        waiting = asyncio.create_task(
            poll(relay, cursor=0, broadcasts=first["broadcastCursor"], sender="device-1", timeout=60)
        )
        await until(lambda: relay.clients.connected == 1)
        assert (await post(relay, text("own"), "device-1")).status == 202
        assert (await post(relay, text("of another one"), "device-2")).status == 202
        answer = await waiting
        assert answer["broadcasts"] == [message("of another one")]
        assert (await post(relay, text("own"), "device-1")).status == 202
        answer = await poll(relay, cursor=0, broadcasts=answer["broadcastCursor"], sender="device-1", timeout=0)
        assert answer["broadcasts"] == []


async def test_by_default_clients_may_not_send_any_and_stay_connected(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    async with running(migrated.url, POLL_INTERVAL=NEVER) as relay, client(relay) as sender, client(relay) as other:
        for each in (sender, other):
            assert (await receive(each))["type"] == "connected"
        for _ in range(12):  # more than the invalid messages that close a connection
            await sender.send(text(1))
            error = await receive(sender)
            assert (error["type"], error["code"]) == ("error", "broadcasts-disabled")
            assert "spec.limits.broadcastsPerSecond" in error["message"]
        answer = await post(relay, text(1))
        assert answer.status == 403
        assert "spec.limits.broadcastsPerSecond" in answer.json["error"]
        await publish(connection)
        for each in (sender, other):
            assert (await receive(each))["id"] == 1
        await eventually(lambda: is_metric(relay, 'client_broadcasts_total{outcome="disabled"}', 13))


async def test_the_rate_limit_is_that_of_all_clients_together(migrated: Database) -> None:
    settings = {**LIMIT, "MAX_BROADCASTS_PER_SECOND": "1"}
    async with running(migrated.url, **settings) as relay, client(relay) as one, client(relay) as two:
        for each in (one, two):
            assert (await receive(each))["type"] == "connected"
        for number in range(20):
            await one.send(text(number))
        refused = 0
        while refused < 10:
            refused += (await receive(one))["code"] == "too-many-broadcasts"
        assert (await receive(two)) == message(0)
        statuses = [(await post(relay, text("posted"))) for _ in range(5)]
        limited = [answer for answer in statuses if answer.status == 429]
        assert limited
        assert {answer.headers["retry-after"] for answer in limited} == {"1"}
        assert "too many broadcasts" in limited[0].json["error"]
        await one.send('{"type":"ping"}')
        while (await receive(one))["type"] != "pong":
            pass


async def test_the_size_limit_is_that_of_the_database(migrated: Database) -> None:
    fits = "x" * (MOST_CONTENT_BYTES - len('"typing"') - 2)
    async with running(migrated.url, **LIMIT) as relay, client(relay) as sender, client(relay) as other:
        for each in (sender, other):
            assert (await receive(each))["type"] == "connected"
        await sender.send(text(fits))
        assert await receive(other) == message(fits)
        await sender.send(text(fits + "x"))
        error = await receive(sender)
        assert error["code"] == "invalid-broadcast"
        assert "are 7001 bytes of JSON; the limit is 7000" in error["message"]
        assert (await post(relay, text(fits))).status == 202
        assert await receive(other) == message(fits)
        assert await receive(sender) == message(fits)
        answer = await post(relay, text(fits + "x"))
        assert answer.status == 413
        assert "the limit is 7000" in answer.json["error"]


@pytest.mark.parametrize("body", ["", "x", "[]", '{"data":1}', '{"event":""}', '{"event":"x","data":NaN}', b"\xff"])
async def test_an_invalid_post_is_rejected(migrated: Database, body: str | bytes) -> None:
    async with running(migrated.url, **LIMIT) as relay:
        answer = await post(relay, body)
        assert answer.status == 400
        assert answer.json["error"]
        assert relay.tail.broadcasts.head == 0


async def test_a_post_without_a_valid_token_is_rejected(migrated: Database) -> None:
    async with running(migrated.url, **LIMIT) as relay:
        for bearer in (None, "x"):
            assert (await post(relay, text(1), bearer=bearer)).status == 401
        assert (await request(relay, "/broadcast")).status == 405
        assert relay.tail.broadcasts.head == 0


async def test_invalid_ones_do_not_close_the_connection(migrated: Database) -> None:
    async with running(migrated.url, **LIMIT) as relay, client(relay) as alice:
        assert (await receive(alice))["type"] == "connected"
        for _ in range(12):
            await alice.send(text(1, event=""))
            assert (await receive(alice))["code"] == "invalid-broadcast"
        await alice.send('{"type":"ping"}')
        assert (await receive(alice))["type"] == "pong"


async def test_events_arrive_beside_broadcasts_over_the_limit(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    """Events need no room that broadcasts take: all arrive in order while a client sends more than is allowed."""
    settings = {**LIMIT, "MAX_BROADCASTS_PER_SECOND": "50", "MAX_MESSAGES_PER_SECOND": "100000"}
    async with running(migrated.url, **settings) as relay, client(relay) as sender, client(relay) as other:
        for each in (sender, other):
            assert (await receive(each))["type"] == "connected"

        async def flood() -> None:
            while True:
                await sender.send(text("x" * 1000))
                await asyncio.sleep(0)

        async def ignore() -> None:
            while True:
                await sender.recv()

        tasks = [asyncio.create_task(flood()), asyncio.create_task(ignore())]
        try:
            ids: list[int] = []
            for _ in range(30):
                await publish(connection)
                while True:
                    found = await receive(other)
                    if found["type"] == "event":
                        ids.append(found["id"])
                        break
            assert ids == list(range(1, 31))
            assert not any(task.done() for task in tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


def test_the_ring_skips_what_a_client_has_sent() -> None:
    ring = Broadcasts()
    one, two = ring.new_sender(), ring.new_sender()
    assert one != two
    ring.add("a")
    ring.add("b", one)
    ring.add("c", two)
    ring.add("d", one)

    def read(client: str | None, cursor: int = 0, most: int = 1000) -> tuple[list[str], int, int]:
        batch = ring.read(cursor, most, client)
        return [bytes(each).decode() for each in payloads(batch.frames)], batch.cursor, batch.number

    assert read(None) == (["a", "b", "c", "d"], 4, 4)
    assert read(one) == (["a", "c"], 4, 2)
    assert read(two) == (["a", "b", "d"], 4, 3)
    assert read(one, cursor=3) == ([], 4, 0)
    assert read(one, most=1) == (["a"], 2, 1)  # its own broadcast needs no room


@pytest.mark.parametrize(
    ("event", "data", "reason"),
    [
        (None, 1, '"event" must be a string'),
        ("x" * 254, 1, '"event" must be a string'),
        ("x", float("nan"), "a number that is not finite"),
        ("x", [float("inf")], "a number that is not finite"),
        ("x", "\ud800", "half of a surrogate pair"),
        ("x", {"\0": 1}, "U+0000"),
        ("x", "\\\0", "U+0000"),
        ("x", "é" * 3500, "are 7005 bytes of JSON"),
    ],
)
def test_invalid_contents_have_a_reason(event: Any, data: Any, reason: str) -> None:
    with pytest.raises(InvalidBroadcast, match=reason.replace("+", r"\+")):
        Content.parse(event, data)


def test_deep_data_has_a_reason() -> None:
    data: Any = 1
    for _ in range(100_000):
        data = [data]
    with pytest.raises(InvalidBroadcast, match="nested too deeply"):
        Content.parse("x", data)


def test_contents_are_encoded_as_the_database_does_it() -> None:
    assert Content.parse("größe", {"a": [None, "🎈\n"]}).message == (
        '{"type":"broadcast","event":"größe","data":{"a":[null,"🎈\\n"]}}'
    )
    assert Content.parse("x", r"\u0000").data == r'"\\u0000"'  # a backslash, and no character U+0000
    with pytest.raises(TooLarge):
        Content.parse("x", "x" * 7000)
