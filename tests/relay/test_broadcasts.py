"""Broadcasts from a real Postgres, through an announcer and a relay, to clients of all transports."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from testing.announcer import broadcasting
from testing.database import Database
from testing.local.brokers import BROKERS, LocalBroker
from testing.relay.brokers import PASSWORD, bridging, make_broker
from testing.relay.harness import (
    NEVER,
    USER,
    client,
    eventually,
    is_metric,
    metric,
    publish,
    receive,
    running,
    token,
    until,
)
from testing.relay.http_client import poll, stream
from userrealtime_core.wire.broadcast import Broadcast, parse
from userrealtime_core.wire.frames import encode_text, payloads
from userrealtime_relay.bridge.pending import PendingBroadcasts
from userrealtime_relay.delivery import broadcasts as ring
from userrealtime_relay.delivery.broadcasts import Broadcasts
from userrealtime_relay.server import Relay


async def broadcast(connection: asyncpg.Connection, data: Any, event: str = "token") -> None:
    await connection.execute("select userrealtime.broadcast($1, $2, $3)", USER, event, json.dumps(data))


def message(data: Any, event: str = "token") -> dict[str, Any]:
    return {"type": "broadcast", "event": event, "data": data}


@asynccontextmanager
async def listening(url: str) -> AsyncIterator[Relay]:
    """A relay that receives broadcasts, and an announcer that sends them."""
    async with broadcasting(url), running(url, POLL_INTERVAL=NEVER) as relay:
        await relay.tail.broadcast_channel()
        await settled(url)
        yield relay


async def settled(url: str) -> None:
    """Wait until a relay listens for broadcasts: until then they are lost."""
    connection = await asyncpg.connect(url)
    try:
        async with asyncio.timeout(30):
            while not await connection.fetchval(
                "select exists (select from pg_stat_activity where application_name = 'userrealtime-relay' "
                "and datname = current_database() and query ilike '%listen \"urb_%')"
            ):
                await asyncio.sleep(0.02)
    finally:
        await connection.close()


async def test_a_websocket_receives_it_without_an_id_and_in_order(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    async with listening(migrated.url) as relay, client(relay) as alice, client(relay) as also_alice:
        for each in (alice, also_alice):
            assert (await receive(each))["type"] == "connected"
        for number in range(5):
            await broadcast(connection, {"n": number})
        for each in (alice, also_alice):
            assert [await receive(each) for _ in range(5)] == [message({"n": number}) for number in range(5)]
        await publish(connection)
        assert (await receive(alice))["id"] == 1  # the position is that of the log alone
        await eventually(lambda: is_metric(relay, "broadcasts_total", 5))
        await eventually(lambda: is_metric(relay, "delivered_broadcasts_total", 10))


async def test_a_client_receives_none_from_before_it_connected(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    async with listening(migrated.url) as relay:
        await broadcast(connection, 1)
        await until(lambda: relay.tail.broadcasts.head == 1)
        async with client(relay, last_event_id=0) as alice:
            assert (await receive(alice))["type"] == "connected"
            await broadcast(connection, 2)
            assert await receive(alice) == message(2)


async def test_a_stream_receives_it_by_name_and_without_an_id(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    async with listening(migrated.url) as relay, stream(relay) as alice:
        assert (await alice.event() or {})["type"] == "connected"
        await publish(connection)
        assert await alice.ids(1) == [1]
        before = alice.last_id
        await broadcast(connection, "ü\n")
        assert await alice.event() == message("ü\n")
        assert (alice.last_name, alice.last_id) == ("broadcast", before)


async def test_a_poll_is_answered_with_it_and_loses_none_between_two_requests(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    async with listening(migrated.url) as relay:
        waiting = asyncio.create_task(poll(relay, cursor=0, broadcasts="", timeout=60))
        await until(lambda: relay.clients.connected == 1)
        await broadcast(connection, 1)
        answer = await waiting
        assert (answer["events"], answer["broadcasts"], answer["cursor"]) == ([], [message(1)], 0)
        await broadcast(connection, 2)
        await broadcast(connection, 3)
        await until(lambda: relay.tail.broadcasts.head == 3)
        answer = await poll(relay, cursor=0, broadcasts=answer["broadcastCursor"], timeout=60)
        assert answer["broadcasts"] == [message(2), message(3)]
        answer = await poll(relay, cursor=0, broadcasts=answer["broadcastCursor"], timeout=0)
        assert answer["broadcasts"] == []
        # A mark of another pod, or an invalid one, means: from now on.
        for mark in ("0123456789ab-1", "x", "-", f"{answer['broadcastCursor']}9999999999999999"):
            assert (await poll(relay, cursor=0, broadcasts=mark, timeout=0))["broadcasts"] == []


async def test_a_poll_that_does_not_ask_is_not_answered_with_it(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    async with listening(migrated.url) as relay:
        waiting = asyncio.create_task(poll(relay, cursor=0, timeout=60))
        await until(lambda: relay.clients.connected == 1)
        await broadcast(connection, 1)
        await until(lambda: relay.tail.broadcasts.head == 1)
        await publish(connection)
        answer = await waiting
        assert list(answer) == ["events", "cursor", "epoch"]
        assert [event["id"] for event in answer["events"]] == [1]


async def test_a_slow_client_loses_broadcasts_and_no_event(migrated: Database, connection: asyncpg.Connection) -> None:
    slow = socket.socket()
    with contextlib.closing(slow):
        await lose(migrated, connection, slow)


async def lose(migrated: Database, connection: asyncpg.Connection, slow: socket.socket) -> None:
    async with listening(migrated.url) as relay:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", relay.ws_port))
        slow.sendall(f"GET /sse HTTP/1.1\r\nHost: relay\r\nAuthorization: Bearer {token()}\r\n\r\n".encode())
        await until(lambda: relay.clients.connected == 1)
        for _ in range(10):
            await publish(connection, 1, size=100_000)
        [served] = relay.clients
        await until(lambda: served.writer.paused and relay.tail.ring.head == 10)
        async with client(relay) as quick:
            assert (await receive(quick))["type"] == "connected"
            for number in range(ring.MAX_FRAMES + 200):
                relay.tail.on_broadcast(json.dumps(message(number)))
                if number % 100 == 0:
                    await asyncio.sleep(0.01)
            for number in range(ring.MAX_FRAMES + 200):
                assert await receive(quick) == message(number)
        slow.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=slow, limit=4 << 20)
        found: list[dict[str, Any]] = []
        async with asyncio.timeout(60):
            while not found or found[-1] != message(ring.MAX_FRAMES + 199):
                line = await reader.readline()
                if line.startswith(b"data: "):
                    found.append(json.loads(line[6:]))
        assert [each["id"] for each in found if each["type"] == "event"] == list(range(1, 11))
        heard = [each["data"] for each in found if each["type"] == "broadcast"]
        assert heard == list(range(200, ring.MAX_FRAMES + 200))
        assert await metric(relay, 'broadcasts_dropped_total{reason="slow"}') == 200
        writer.transport.abort()


@pytest.mark.parametrize("kind", BROKERS)
async def test_over_a_broker_every_pod_of_the_user_receives_it_and_no_other_one(
    migrated: Database, connection: asyncpg.Connection, kind: str
) -> None:
    async with make_broker(kind, PASSWORD) as broker:
        settings = {**broker.variables, "POLL_INTERVAL": NEVER}
        async with (
            bridging(migrated.url, broker, POLL_INTERVAL=NEVER) as bridge,
            running(migrated.url, None, **settings, INSTANCE="one") as one,
            running(migrated.url, None, **settings, INSTANCE="two") as two,
            running(migrated.url, None, **settings, USER_ID="bob") as bob,
        ):
            for relay in (one, two, bob):
                await eventually(lambda relay=relay: is_metric(relay, "broker_connected", 1))  # type: ignore[misc]
            await until(lambda: bridge.not_ready_reason is None)
            await eventually(lambda: arrives(connection, one))
            await eventually(lambda: arrives(connection, two))
            before = one.tail.broadcasts.head, two.tail.broadcasts.head
            for number in range(20):
                await broadcast(connection, number)
            await until(lambda: one.tail.broadcasts.head >= before[0] + 20)
            await until(lambda: two.tail.broadcasts.head >= before[1] + 20)
            for relay, start in ((one, before[0]), (two, before[1])):
                frames = relay.tail.broadcasts.read(start, 1 << 20).frames
                assert [json.loads(bytes(text))["data"] for text in payloads(frames)][-20:] == list(range(20))
            assert bob.tail.broadcasts.head == 0


async def arrives(connection: asyncpg.Connection, relay: Relay) -> bool:
    """Broadcast until the bridge has found out that the relay runs, and has connected to the broker."""
    if relay.tail.broadcasts.head == 0:
        await broadcast(connection, -1)
        await asyncio.sleep(0.1)
    return relay.tail.broadcasts.head > 0


async def test_a_dead_broker_loses_broadcasts_and_delays_no_commit(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    broker: LocalBroker
    async with (
        make_broker("nats", PASSWORD) as broker,
        bridging(migrated.url, broker, POLL_INTERVAL=NEVER) as bridge,
        running(migrated.url, None, **broker.variables, POLL_INTERVAL=NEVER) as relay,
    ):
        await eventually(lambda: arrives(connection, relay))
        await broker.kill()
        for number in range(20):
            await broadcast(connection, number)
            await publish(connection)
        assert await connection.fetchval("select head from userrealtime.log where user_id = $1", USER) == 20
        lost = bridge.metrics.broadcasts_lost
        await until(lambda: next(iter(lost.collect())).samples[0].value > 0)
        await broker.start()
        await until(lambda: relay.tail.ring.head == 20)  # stored events arrive
        start = relay.tail.broadcasts.head
        await eventually(lambda: comes_after(connection, relay, start))


async def comes_after(connection: asyncpg.Connection, relay: Relay, start: int) -> bool:
    await broadcast(connection, "again")
    await asyncio.sleep(0.1)
    return relay.tail.broadcasts.head > start


async def test_a_relay_whose_role_may_not_know_the_channel_delivers_events(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    await connection.execute("alter function userrealtime.broadcast_channel rename to another_name")
    async with running(migrated.url, POLL_INTERVAL=NEVER) as relay, client(relay) as alice:
        assert await relay.tail.broadcast_channel() is None
        assert (await receive(alice))["type"] == "connected"
        await publish(connection)
        assert (await receive(alice))["id"] == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "null",
        "[1]",
        '{"type":"event","event":"e","data":1}',
        '{"type":"broadcast","event":1,"data":1}',
        '{"type":"broadcast","event":"e"}',
        '{"type":"broadcast","event":"e",\n"data":1}',
        '{"type":"broadcast","event":"e","data":' + "[" * 5000,
        '{"type":"broadcast","event":"e","data":"' + "x" * 8000 + '"}',
        b"\xff",
    ],
)
async def test_what_is_no_broadcast_is_dropped(migrated: Database, text: str | bytes) -> None:
    assert parse(text) is None


def test_the_ring_is_bounded_and_loses_the_oldest() -> None:
    found = Broadcasts(max_frames=3, max_bytes=1000)
    assert found.read(0, 100) == (b"", 0, 0, 0)
    for number in range(1, 6):
        found.add(str(number))
    assert found.read(0, 100) == (b"".join(map(encode_text, "345")), 5, 3, 2)
    assert found.read(3, 1) == (encode_text("4"), 4, 1, 0)
    assert found.read(5, 100) == (b"", 5, 0, 0)
    found.add("x" * 995)
    assert found.read(5, 1) == (encode_text("x" * 995), 6, 1, 0)
    assert found.read(4, 1) == (encode_text("x" * 995), 6, 1, 1)
    assert found.find(found.mark(4)) == 4
    assert found.find(found.mark(9)) == 6
    assert found.find(Broadcasts().mark(1)) == 6
    found.add("y" * 2000)  # longer than the ring: lost
    assert found.read(6, 1) == (b"", 7, 0, 1)


async def test_pending_broadcasts_are_limited() -> None:
    pending = PendingBroadcasts(3)
    sent = [Broadcast("alice", "c", str(number)) for number in range(5)]
    assert pending.add(sent[:2]) == 0
    assert pending.add(sent[2:]) == 2
    await pending.wait()
    assert pending.take(2) == sent[:2]
    assert pending.clear() == 1
    assert len(pending) == 0
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await pending.wait()
