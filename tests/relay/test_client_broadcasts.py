"""Broadcasts of clients to the other clients of their user, in the same pod and in others."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import asyncpg
import pytest
from websockets.asyncio.client import ClientConnection

from testing.announcer import broadcasting
from testing.database import Database
from testing.local.brokers import BROKERS
from testing.relay.brokers import PASSWORD, bridging, make_broker
from testing.relay.harness import NEVER, client, eventually, is_metric, publish, receive, running, until
from testing.relay.http_client import Answer, poll, request, stream
from userrealtime_core.wire.broadcast import (
    MOST_CONTENT_BYTES,
    Content,
    InvalidBroadcast,
    Sender,
    TooLarge,
    parse,
    split_sender,
    with_sender,
)
from userrealtime_core.wire.frames import payloads
from userrealtime_relay.delivery.broadcasts import Broadcasts
from userrealtime_relay.server import Relay

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
        running(migrated.url, None, **LIMIT) as relay,
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
        running(migrated.url, None, **LIMIT) as relay,
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
    async with running(migrated.url, None, **LIMIT) as relay:
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
    async with running(migrated.url, None, **settings) as relay, client(relay) as one, client(relay) as two:
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
    async with running(migrated.url, None, **LIMIT) as relay, client(relay) as sender, client(relay) as other:
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
    async with running(migrated.url, None, **LIMIT) as relay:
        answer = await post(relay, body)
        assert answer.status == 400
        assert answer.json["error"]
        assert relay.tail.broadcasts.head == 0


async def test_a_post_without_a_valid_token_is_rejected(migrated: Database) -> None:
    async with running(migrated.url, None, **LIMIT) as relay:
        for bearer in (None, "x"):
            assert (await post(relay, text(1), bearer=bearer)).status == 401
        assert (await request(relay, "/broadcast")).status == 405
        assert relay.tail.broadcasts.head == 0


async def test_invalid_ones_do_not_close_the_connection(migrated: Database) -> None:
    async with running(migrated.url, None, **LIMIT) as relay, client(relay) as alice:
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
    async with running(migrated.url, None, **settings) as relay, client(relay) as sender, client(relay) as other:
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


PODS = {**LIMIT, "BROADCAST_TO_PODS": "true"}


async def arrives(sender: Any, relay: Relay) -> bool:
    """Send a broadcast, until one has reached the other pod: a relay begins to listen some time after its start."""
    await sender.send(text("first"))
    await asyncio.sleep(0.05)
    return relay.tail.broadcasts.head > 0


async def skip_first(connection: ClientConnection) -> dict[str, Any]:
    """Return the next message that is not one of `arrives`."""
    while (found := await receive(connection)) == message("first"):
        pass
    return found


async def test_with_several_pods_the_clients_of_all_receive_it_once(migrated: Database) -> None:
    async with (
        broadcasting(migrated.url),
        running(migrated.url, None, **PODS, INSTANCE="one") as one,
        running(migrated.url, None, **PODS, INSTANCE="two") as two,
        client(one) as sender,
        client(one) as near,
        client(two) as far,
        stream(two, path="/sse?sender=device-1") as device,
    ):
        for each in (sender, near, far):
            assert (await receive(each))["type"] == "connected"
        assert (await device.event() or {})["type"] == "connected"
        await eventually(lambda: arrives(sender, two))
        for number in range(20):
            await sender.send(text(number))
        for each in (near, far):
            found = [await skip_first(each)]
            found += [await receive(each) for _ in range(19)]
            assert found == [message(number) for number in range(20)]
        # A request reaches any pod, and the stream of its sender may be in another one.
        assert (await post(one, text("posted"), "device-1")).status == 202
        assert await receive(far) == message("posted")
        await far.send(text("reply"))
        for each in (sender, near):
            while (heard := await receive(each)) != message("reply"):
                assert heard == message("posted")
        while (event := await device.event()) != message("reply"):
            assert event is not None
            assert event["data"] != "posted"


@pytest.mark.parametrize("kind", BROKERS)
async def test_with_several_pods_and_a_broker(migrated: Database, kind: str) -> None:
    async with make_broker(kind, PASSWORD) as broker:
        settings = {**broker.variables, **PODS}
        async with (
            bridging(migrated.url, broker, POLL_INTERVAL=NEVER) as bridge,
            running(migrated.url, None, **settings, INSTANCE="one") as one,
            running(migrated.url, None, **settings, INSTANCE="two") as two,
            client(one) as sender,
            client(two) as far,
        ):
            for each in (sender, far):
                assert (await receive(each))["type"] == "connected"
            await until(lambda: bridge.not_ready_reason is None)
            await eventually(lambda: arrives(sender, two))
            for number in range(20):
                await sender.send(text(number))
            found = [await skip_first(far)]
            found += [await receive(far) for _ in range(19)]
            assert found == [message(number) for number in range(20)]


async def test_without_an_announcer_the_clients_of_the_pod_receive_it_and_the_loss_is_counted(
    migrated: Database,
) -> None:
    async with running(migrated.url, None, **PODS) as relay, client(relay) as sender, client(relay) as near:
        for each in (sender, near):
            assert (await receive(each))["type"] == "connected"
        for number in range(5):
            await sender.send(text(number))
        assert [await receive(near) for _ in range(5)] == [message(number) for number in range(5)]
        await eventually(lambda: is_metric(relay, 'broadcasts_dropped_total{reason="database"}', 5))


async def test_a_locked_queue_delays_no_event(migrated: Database, connection: asyncpg.Connection) -> None:
    async with (
        broadcasting(migrated.url),
        running(migrated.url, None, **PODS) as relay,
        client(relay) as sender,
        client(relay) as near,
    ):
        for each in (sender, near):
            assert (await receive(each))["type"] == "connected"
        other = await asyncpg.connect(migrated.url)
        try:
            async with other.transaction():
                await other.execute("lock table userrealtime.broadcast_queue")
                await sender.send(text("lost elsewhere"))
                assert await receive(near) == message("lost elsewhere")
                for number in range(1, 6):
                    await publish(connection)
                    assert (await receive(near))["id"] == number
                await eventually(lambda: is_metric(relay, 'broadcasts_dropped_total{reason="database"}', 1))
        finally:
            await other.close()
        assert relay.not_ready_reason is None


def test_the_sender_is_no_part_of_what_clients_receive() -> None:
    sender = Sender("0123456789ab", "device-1")
    for data in (1, "x", {"a": 1}, ',"from":"0123456789ab.device-2"}', {"from": "0123456789ab.device-2"}):
        content = Content.parse("typing", data)
        assert split_sender(content.message) == (content.message, None)
        assert split_sender(with_sender(content.message, sender)) == (content.message, sender)
        assert parse(with_sender(content.message, sender)) == with_sender(content.message, sender)
