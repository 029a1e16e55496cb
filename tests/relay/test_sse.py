"""Event streams, over real sockets and a real Postgres."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import asyncpg
import pytest

from testing.database import Database
from testing.patience import PATIENCE_S
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
from testing.relay.http_client import Answer, Stream, request, stream
from userrealtime_core.wire.frames import encode_text
from userrealtime_relay.server import Relay
from userrealtime_relay.transports import sse
from userrealtime_relay.transports.sse import Encoder


async def connected(events: Stream) -> int:
    """Return the cursor of `connected`, which must be the next message."""
    message = await events.event()
    assert message is not None
    assert message["type"] == "connected"
    cursor: int = message["cursor"]
    return cursor


async def test_a_stream_says_what_a_websocket_says(migrated: Database, connection: asyncpg.Connection) -> None:
    await publish(connection, 3)
    epoch = await connection.fetchval("select epoch from userrealtime.log")
    async with running(migrated.url, POLL_INTERVAL=NEVER) as relay, stream(relay) as events, client(relay) as alice:
        assert events.answer.headers["content-type"] == "text/event-stream"
        greeting = await events.event()
        assert greeting == {"type": "connected", "userId": USER, "cursor": 3, "epoch": epoch, "earliest": 1}
        assert greeting == await receive(alice)
        assert events.last_id == f"3:{epoch}"
        assert 1000 <= events.retry_ms <= 3000
        await connection.execute("select userrealtime.publish('alice', 'ü', '{\"a\": \"x\\ny\"}')")
        event = await events.event()
        assert event is not None
        assert event == await receive(alice)
        assert (event["event"], event["data"]) == ("ü", {"a": "x\ny"})
        assert events.last_id == f"4:{epoch}"
        assert await metric(relay, "connections") == 2
        assert await metric(relay, "delivered_events_total") == 2


@pytest.mark.parametrize("way", ["header", "URL", "both"])
@pytest.mark.parametrize("place", ["ring", "log"])
async def test_a_stream_resumes(migrated: Database, connection: asyncpg.Connection, way: str, place: str) -> None:
    if place == "log":
        await publish(connection, 300, size=1000)
    async with running(migrated.url) as relay:
        if place == "ring":
            await publish(connection, 300, size=1000)
            await until(lambda: relay.tail.ring.head == 300)
        headers = {"Last-Event-ID": "2"} if way != "URL" else {}
        path = {"header": "/sse", "URL": "/sse?last_event_id=2", "both": "/sse?last_event_id=1"}[way]
        async with stream(relay, path=path, headers=headers) as events:
            assert await connected(events) == 2
            assert await events.ids(300) == list(range(3, 301))
        assert await metric(relay, f'starts_total{{outcome="{place}"}}') == 1


async def test_an_event_source_is_told_of_another_log_by_its_last_id_alone(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    await publish(connection, 3)
    async with running(migrated.url, POLL_INTERVAL="0.2") as relay:
        async with stream(relay, path="/sse?last_event_id=0") as events:
            await connected(events)
            await events.ids(2)
            last_id = events.last_id
        async with stream(relay, headers={"Last-Event-ID": last_id}) as events:
            assert await connected(events) == 2
            assert await events.ids(3) == [3]
        await connection.execute("update userrealtime.log set epoch = 'restored'")
        async with stream(relay, headers={"Last-Event-ID": last_id}) as events:
            # The relay may not know it yet: until then, it serves the number of the old log.
            message = None
            while message is None or message["type"] != "reset":
                message = await events.event()
            assert message["reason"] == "epoch"
            assert events.last_id == "3:restored"


async def test_those_connected_are_reset(migrated: Database, connection: asyncpg.Connection) -> None:
    await publish(connection, 3)
    async with running(migrated.url, POLL_INTERVAL="0.2") as relay, stream(relay) as events:
        await connected(events)
        await connection.execute("truncate userrealtime.log, userrealtime.event")
        epoch = await connection.fetchval("select userrealtime.first_epoch('alice')")
        assert await events.event() == {"type": "reset", "reason": "epoch", "cursor": 0, "epoch": epoch, "earliest": 1}
        assert events.last_id == f"0:{epoch}"
        await publish(connection)
        assert await events.ids(1) == [1]


async def test_the_base_path_is_served_and_the_plain_one(migrated: Database) -> None:
    async with running(migrated.url, BASE_PATH="/urt-alice-x") as relay:
        for path in ("/urt-alice-x/sse", "/sse"):
            async with stream(relay, path=path) as events:
                assert await connected(events) == 0


@pytest.mark.parametrize(
    ("bearer", "path", "status"),
    [
        (None, "/sse", 401),
        ("nonsense", "/sse", 401),
        (token(sub="bob"), "/sse", 401),
        (token(life_s=-60), "/sse", 401),
        (None, f"/sse?token={token()}", 401),
        ("", "/sse?last_event_id=x", 400),
        ("", "/sse?last_event_id=1.5", 400),
        ("nonsense", "/sse?last_event_id=x", 401),
    ],
)
async def test_what_is_wrong_is_told_by_the_status(
    migrated: Database, bearer: str | None, path: str, status: int
) -> None:
    async with running(migrated.url) as relay:
        answer = await request(relay, path, bearer)
        assert answer.status == status
        assert list(answer.json) == ["error"]
        assert ("www-authenticate" in answer.headers) == (status == 401)
        assert len(relay.clients) == 0


async def test_a_token_in_the_url_where_it_is_switched_on(migrated: Database) -> None:
    async with running(migrated.url, ALLOW_QUERY_TOKEN="true") as relay:
        async with stream(relay, None, path=f"/sse?token={token()}") as events:
            assert await connected(events) == 0
        async with client(relay, None, token=token()) as alice:
            assert (await receive(alice))["type"] == "connected"
        assert (await request(relay, "/sse?token=nonsense", None)).status == 401
        # The header takes precedence, and no second token is tried.
        assert (await request(relay, f"/sse?token={token()}", "nonsense")).status == 401


async def test_only_get_is_answered(migrated: Database) -> None:
    async with running(migrated.url) as relay:
        for method in ("POST", "OPTIONS", "PUT"):
            answer = await request(relay, "/sse", method=method)
            assert (answer.status, answer.headers["allow"]) == (405, "GET")


async def test_a_silent_stream_is_kept_alive(migrated: Database) -> None:
    async with running(migrated.url, PING_INTERVAL="0.1") as relay, stream(relay) as events:
        await connected(events)
        assert [await events.chunk() for _ in range(3)] == [b":\n\n"] * 3


async def test_a_token_that_expires_ends_the_stream(migrated: Database, connection: asyncpg.Connection) -> None:
    async with running(migrated.url) as relay, stream(relay, token(life_s=-3)) as events:
        await connected(events)
        await publish(connection)
        assert await events.ids(1) == [1]
        assert await events.event() == {"type": "close", "code": 4001, "reason": "Token expired"}
        assert await events.event() is None
        await eventually(lambda: is_metric(relay, 'closes_total{code="4001"}', 1))


async def test_streams_take_places_among_all_clients(migrated: Database) -> None:
    async with running(migrated.url, MAX_CONNECTIONS="2") as relay, client(relay) as alice:
        await receive(alice)
        async with stream(relay) as first:
            await connected(first)
            async with stream(relay) as second:
                assert await second.event() == {"type": "close", "code": 1013, "reason": "Too many connections"}
                assert second.retry_ms >= 10_000
                assert await second.event() is None
        await eventually(lambda: is_metric(relay, "connections", 1))
        assert await metric(relay, 'closes_total{code="1006"}') == 1
        async with stream(relay) as third:
            await connected(third)


async def test_streams_do_not_take_the_places_of_those_who_ask(migrated: Database) -> None:
    async with running(migrated.url, MAX_CONNECTIONS="2") as relay, stream(relay) as first, stream(relay) as second:
        await connected(first)
        await connected(second)
        assert (await request(relay, "/nothing")).status == 404


def small_socket(relay: Relay) -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.connect(("127.0.0.1", relay.ws_port))
    made.sendall(f"GET /sse HTTP/1.1\r\nHost: relay\r\nAuthorization: Bearer {token()}\r\n\r\n".encode())
    return made


async def test_a_slow_stream_delays_nobody_and_is_cut_off(
    migrated: Database, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "CLOSE_TIMEOUT", 0.3)
    async with running(migrated.url, SEND_TIMEOUT="0.3", RING_EVENTS="20") as relay, stream(relay) as quick:
        await connected(quick)
        slow = small_socket(relay)
        await until(lambda: relay.clients.connected == 2)
        for number in range(1, 51):
            await publish(connection, 1, size=100_000)
            assert await quick.ids(number) == [number]
        await eventually(lambda: is_metric(relay, 'closes_total{code="4008"}', 1))
        assert relay.clients.connected == 1
        slow.close()


async def test_a_slow_stream_that_reads_on_in_time_misses_nothing(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    async with running(migrated.url, RING_EVENTS="4") as relay:
        slow = small_socket(relay)
        await until(lambda: relay.clients.connected == 1)
        for _ in range(30):
            await publish(connection, 2, size=50_000)
        [served] = relay.clients
        await until(lambda: relay.tail.ring.head == 60)
        assert served.session.cursor < relay.tail.ring.first - 1
        slow.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=slow)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")

        events = Stream(reader, Answer(200, {}), writer.write, writer.transport.abort)
        await connected(events)
        assert await events.ids(60) == list(range(1, 61))
        writer.transport.abort()


async def test_a_stream_that_is_gone_is_forgotten_at_once(migrated: Database) -> None:
    async with running(migrated.url, POLL_INTERVAL=NEVER) as relay:
        async with stream(relay) as events:
            await connected(events)
        await until(lambda: not relay.clients)
        assert await metric(relay, "connections") == 0


async def test_draining_sends_what_is_in_the_ring_then_ends_the_stream(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    restarting = {"type": "close", "code": 1012, "reason": "Restarting: reconnect"}
    async with running(migrated.url) as relay, stream(relay) as first, stream(relay) as second:
        await connected(first)
        await connected(second)
        await publish(connection, 100)
        await until(lambda: relay.tail.ring.head == 100)
        draining = asyncio.create_task(relay.drain())
        for each in (first, second):
            assert await each.ids(100) == list(range(1, 101))
            assert await each.event() == restarting
            assert await each.event() is None
        async with stream(relay) as late:
            assert await late.event() == restarting
            assert 1000 <= late.retry_ms <= 3000
            assert await late.event() is None
        async with asyncio.timeout(PATIENCE_S):
            await draining


async def test_a_request_with_a_body_is_refused(migrated: Database) -> None:
    async with running(migrated.url) as relay:
        answer = await request(relay, "/sse", headers={"Transfer-Encoding": "chunked"})
        assert (answer.status, answer.json) == (400, {"error": "a GET request has no body here"})
        assert answer.headers["connection"] == "close"


async def test_a_relay_that_is_left_ends_its_streams(migrated: Database) -> None:
    async with running(migrated.url) as relay:
        reader, writer = await asyncio.open_connection(sock=small_socket(relay))
        await until(lambda: relay.clients.connected == 1)
    assert not relay.clients
    with contextlib.suppress(ConnectionResetError):
        assert b"connected" in await reader.read()
    writer.close()


def test_what_many_get_is_encoded_once() -> None:
    encoder = Encoder()
    frames = encode_text("{}") + encode_text("x" * 200) + encode_text("y" * 70_000)
    encoded = encoder(frames, 9, "e")
    assert encoded == b"id: 7:e\ndata: {}\n\nid: 8:e\ndata: %b\n\nid: 9:e\ndata: %b\n\n" % (b"x" * 200, b"y" * 70_000)
    assert encoder(bytes(bytearray(frames)), 9, "e") is encoded
    assert encoder(encode_text("{}"), 1, None) == b"id: 1\ndata: {}\n\n"
    assert encoder(encode_text("{}"), 1, "two\nlines") == b"id: 1\ndata: {}\n\n"


async def test_a_cut_between_greeting_and_reset_skips_no_gap(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    await publish(connection, 3)
    epoch = await connection.fetchval("select epoch from userrealtime.log")
    async with running(migrated.url) as relay, stream(relay, headers={"Last-Event-ID": "2:of-another-log"}) as events:
        greeting = await events.event()
        assert greeting is not None
        assert (greeting["type"], events.last_id) == ("connected", "")
        reset = await events.event()
        assert reset is not None
        assert (reset["type"], events.last_id) == ("reset", f"3:{epoch}")
