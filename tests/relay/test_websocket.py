"""A relay and its clients, over real sockets and a real Postgres."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket

import asyncpg
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from testing.database import Database
from testing.relay.harness import (
    NEVER,
    PATIENCE_S,
    USER,
    client,
    closed,
    config,
    eventually,
    is_metric,
    metric,
    publish,
    receive,
    receive_ids,
    running,
    terminate,
    token,
    until,
)
from userrealtime_core.wire.session import MAX_ERRORS
from userrealtime_relay.server import Relay
from userrealtime_relay.transports import websocket, websocket_connection

# --- events


async def test_a_client_is_greeted_and_gets_what_is_published(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    await publish(connection, 3)
    epoch = await connection.fetchval("select epoch from userrealtime.log")
    async with running(migrated.url, POLL_INTERVAL=NEVER) as relay, client(relay) as alice:
        assert await receive(alice) == {
            "type": "connected",
            "userId": USER,
            "cursor": 3,
            "epoch": epoch,
            "earliest": 1,
        }
        await connection.execute("select userrealtime.publish('alice', 'order.paid', '{\"total\": 12.50, \"ü\": [1]}')")
        event = await receive(alice)
        at = await connection.fetchval(
            "select to_char(at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') from userrealtime.event "
            "where id = 4"
        )
        assert event == {
            "type": "event",
            "id": 4,
            "event": "order.paid",
            "at": at,
            "data": {"total": 12.50, "ü": [1]},
        }
        assert await metric(relay, "connections") == 1
        assert await metric(relay, "accepted_total") == 1
        assert await metric(relay, "delivered_events_total") == 1
        assert await metric(relay, "latency_seconds_count") == 1
        assert await metric(relay, "ring_events") == 1
        assert await metric(relay, 'starts_total{outcome="head"}') == 1
    assert alice.response is not None
    assert "Server" not in alice.response.headers


async def test_every_client_gets_every_event_in_order(migrated: Database, connection: asyncpg.Connection) -> None:
    async with running(migrated.url, POLL_INTERVAL=NEVER) as relay:
        clients = [await stack_client(relay) for _ in range(10)]
        for _ in range(20):
            await publish(connection, 10)
        for each in clients:
            assert await receive_ids(each, 200) == list(range(1, 201))
            await each.close()
        await eventually(lambda: is_metric(relay, "connections", 0))
        assert await metric(relay, 'closes_total{code="1000"}') == 10


async def stack_client(relay: Relay) -> ClientConnection:
    """Return a client that has received `connected`; the test closes it."""
    connection = await connect(
        f"ws://127.0.0.1:{relay.ws_port}/ws", additional_headers={"Authorization": f"Bearer {token()}"}
    )
    assert (await receive(connection))["type"] == "connected"
    return connection


async def test_a_client_that_is_gone_is_forgotten_at_once(migrated: Database) -> None:
    async with running(migrated.url, POLL_INTERVAL=NEVER) as relay, client(relay) as alice:
        await receive(alice)
        alice.transport.abort()
        await until(lambda: not relay.clients)
        assert await metric(relay, "connections") == 0
        assert await metric(relay, 'closes_total{code="1006"}') == 1


async def test_a_big_event_passes_through_a_small_ring(migrated: Database, connection: asyncpg.Connection) -> None:
    async with (
        running(migrated.url, RING_BYTES="1000") as relay,
        client(relay, max_size=None) as alice,
    ):
        await receive(alice)
        await publish(connection, 2, size=900_000)
        for number in (1, 2):
            event = await receive(alice)
            assert (event["id"], len(event["data"]["text"])) == (number, 900_000)


async def test_the_base_path_is_served_and_the_plain_one(migrated: Database) -> None:
    async with running(migrated.url, BASE_PATH="/urt-alice-x") as relay:
        for path in ("/urt-alice-x/ws", "/ws"):
            async with client(relay, path=path) as alice:
                assert (await receive(alice))["type"] == "connected"
        with pytest.raises(InvalidStatus) as raised:
            async with client(relay, path="/elsewhere/ws"):
                pass
        assert raised.value.response.status_code == 404
        assert json.loads(raised.value.response.body or b"") == {
            "error": "there is no WebSocket here; it is at /urt-alice-x/ws"
        }


# --- resuming


@pytest.mark.parametrize(
    "way",
    [{"last_event_id": "2"}, {"headers": {"Last-Event-ID": "2"}}],
    ids=["in the URL", "in a header"],
)
@pytest.mark.parametrize("place", ["ring", "log"])
async def test_a_client_resumes(
    migrated: Database, connection: asyncpg.Connection, way: dict[str, object], place: str
) -> None:
    if place == "log":
        await publish(connection, 5)
    async with running(migrated.url) as relay:
        if place == "ring":
            await publish(connection, 5)
            await until(lambda: relay.tail.ring.head == 5)
        async with client(relay, **way) as alice:  # type: ignore[arg-type]
            assert (await receive(alice))["cursor"] == 2
            assert await receive_ids(alice, 5) == [3, 4, 5]
            await publish(connection)
            assert await receive_ids(alice, 6) == [6]
        assert await metric(relay, f'starts_total{{outcome="{place}"}}') == 1


async def test_a_client_resumes_by_a_message_as_often_as_it_likes(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    await publish(connection, 5)
    async with running(migrated.url) as relay, client(relay) as alice:
        epoch = (await receive(alice))["epoch"]
        await alice.send(json.dumps({"type": "resume", "lastEventId": 3, "epoch": epoch}))
        assert await receive_ids(alice, 5) == [4, 5]
        await alice.send('{"type":"resume","lastEventId":0}')
        assert await receive_ids(alice, 5) == [1, 2, 3, 4, 5]
        await alice.send('{"type":"resume","lastEventId":6}')
        reset = {"type": "reset", "reason": "ahead", "cursor": 5, "epoch": epoch, "earliest": 1}
        assert await receive(alice) == reset
        await publish(connection)
        assert await receive_ids(alice, 6) == [6]


async def test_from_the_log_to_the_ring_there_is_no_gap_and_no_double(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    await publish(connection, 2000, size=500)
    async with running(migrated.url, RING_EVENTS="8", POLL_INTERVAL=NEVER) as relay:

        async def publish_on() -> None:
            for _ in range(100):
                await publish(connection, 3)
                await asyncio.sleep(0)

        publishing = asyncio.create_task(publish_on())
        async with client(relay, last_event_id=0) as early, client(relay, last_event_id=1990) as late:
            await receive(early)
            await receive(late)
            assert await receive_ids(early, 2300) == list(range(1, 2301))
            assert await receive_ids(late, 2300) == list(range(1991, 2301))
        await publishing


async def test_a_client_ahead_of_this_relay_is_not_reset(migrated: Database, connection: asyncpg.Connection) -> None:
    """Another relay has delivered an event that this one does not know yet."""
    await publish(connection, 3)
    async with running(migrated.url, POLL_INTERVAL=NEVER) as relay:
        async with connection.transaction():
            await connection.execute("update userrealtime.log set head = 5")
            for number in (4, 5):
                await connection.execute(
                    "insert into userrealtime.event values ('alice', $1, 'silent', now(), '{}')", number
                )
        assert relay.tail.ring.head == 3
        async with client(relay, last_event_id=4) as alice:
            assert (await receive(alice))["cursor"] == 4
            assert await receive_ids(alice, 5) == [5]


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"last_event_id": 1}, "too-old"), ({"last_event_id": 6}, "ahead"), ({"last_event_id": 4, "epoch": "x"}, "epoch")],
)
async def test_a_cursor_that_cannot_be_served_is_reset(
    migrated: Database, connection: asyncpg.Connection, options: dict[str, object], reason: str
) -> None:
    await publish(connection, 5)
    await connection.execute("delete from userrealtime.event where id <= 2")
    async with running(migrated.url) as relay, client(relay, **options) as alice:  # type: ignore[arg-type]
        connected = await receive(alice)
        assert (connected["type"], connected["cursor"], connected["earliest"]) == ("connected", 5, 3)
        reset = {"type": "reset", "reason": reason, "cursor": 5, "epoch": connected["epoch"], "earliest": 3}
        assert await receive(alice) == reset
        await publish(connection)
        assert await receive_ids(alice, 6) == [6]
        assert await metric(relay, f'starts_total{{outcome="{reason}"}}') == 1


async def test_what_was_deleted_since_the_relay_looked_is_reset_not_skipped(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    await publish(connection, 5)
    async with running(migrated.url, POLL_INTERVAL=NEVER) as relay:
        await connection.execute("delete from userrealtime.event where id <= 2")
        async with client(relay, last_event_id=1) as alice:
            assert (await receive(alice))["cursor"] == 1
            assert (await receive(alice))["reason"] == "too-old"
        await connection.execute("delete from userrealtime.event")
        async with client(relay, last_event_id=3) as alice:
            assert (await receive(alice))["cursor"] == 3
            assert (await receive(alice))["reason"] == "too-old"


async def test_another_log_resets_those_connected(migrated: Database, connection: asyncpg.Connection) -> None:
    await publish(connection, 5)
    async with running(migrated.url, POLL_INTERVAL="0.2") as relay, client(relay) as alice, client(relay) as second:
        for each in (alice, second):
            await receive(each)
        await connection.execute("truncate userrealtime.log, userrealtime.event")
        epoch = await connection.fetchval("select userrealtime.first_epoch($1)", USER)
        for each in (alice, second):
            reset = {"type": "reset", "reason": "epoch", "cursor": 0, "epoch": epoch, "earliest": 1}
            assert await receive(each) == reset
        await publish(connection)
        for each in (alice, second):
            assert await receive_ids(each, 1) == [1]
        assert await metric(relay, 'starts_total{outcome="epoch"}') == 2


@pytest.mark.parametrize("cursor", ["x", "-1", "1.5"])
async def test_a_cursor_that_is_none_is_refused(migrated: Database, cursor: str) -> None:
    async with running(migrated.url) as relay, client(relay, last_event_id=cursor) as alice:
        code, reason = await closed(alice)
        assert code == 1008
        assert reason.startswith("Invalid last_event_id")


# --- outages of Postgres


async def test_connections_to_postgres_are_lost_and_events_are_not(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    async with running(migrated.url, POLL_INTERVAL=NEVER, RING_EVENTS="20") as relay, client(relay) as alice:
        await receive(alice)

        async def publish_and_terminate() -> int:
            ended = 0
            for number in itertools.count(1):
                await publish(connection, 2)
                ended += await terminate(connection)
                await publish(connection, 2)
                await asyncio.sleep(0.02)
                if ended >= 3:
                    return number * 4
            raise AssertionError

        publishing = asyncio.create_task(publish_and_terminate())
        ids: list[int] = []
        async with client(relay, last_event_id=0) as second:
            await receive(second)
            async with asyncio.timeout(PATIENCE_S):
                last = await publishing
            ids = await receive_ids(second, last)
        assert ids == list(range(1, last + 1))
        assert await receive_ids(alice, last) == ids
        assert await metric(relay, "log_failures_total") >= 1


async def test_a_restart_of_postgres_loses_nothing(own_server: Database) -> None:
    async with running(own_server.url, POLL_INTERVAL=NEVER, RING_EVENTS="4") as relay, client(relay) as alice:
        await receive(alice)
        connection = await asyncpg.connect(own_server.url)
        await publish(connection, 10)
        await connection.close()
        assert await receive_ids(alice, 10) == list(range(1, 11))
        await asyncio.to_thread(own_server.server.stop)
        await until(lambda: relay.not_ready_reason is not None)
        # No client is disconnected meanwhile, whether or not it needs the log.
        async with client(relay, last_event_id=2) as behind, client(relay, last_event_id=8) as near:
            assert (await receive(behind))["cursor"] == 2
            assert (await receive(near))["cursor"] == 8
            assert await receive_ids(near, 10) == [9, 10]
            await asyncio.to_thread(own_server.server.start)
            connection = await asyncpg.connect(own_server.url)
            await publish(connection, 10)
            await connection.close()
            assert await receive_ids(behind, 20) == list(range(3, 21))
            assert await receive_ids(near, 20) == list(range(11, 21))
            assert await receive_ids(alice, 20) == list(range(11, 21))


async def test_a_client_before_postgres_is_greeted_when_it_starts(own_server: Database) -> None:
    await asyncio.to_thread(own_server.server.stop)
    async with (
        Relay(config(own_server.url)) as relay,
        client(relay) as alice,
        client(relay, token(life_s=-3)) as expiring,
    ):
        assert await closed(expiring) == (4001, "Token expired")
        await asyncio.to_thread(own_server.server.start)
        assert (await receive(alice))["type"] == "connected"


# --- authentication


async def test_a_token_in_the_subprotocols(migrated: Database) -> None:
    offered = [Subprotocol("userrealtime.v1"), Subprotocol(f"bearer.{token()}")]
    async with running(migrated.url) as relay, client(relay, None, subprotocols=offered) as alice:
        assert alice.subprotocol == "userrealtime.v1"
        assert (await receive(alice))["type"] == "connected"


async def test_a_token_in_the_first_message(migrated: Database, connection: asyncpg.Connection) -> None:
    await publish(connection, 3)
    async with running(migrated.url) as relay, client(relay, None, last_event_id=1) as alice:
        await alice.send(json.dumps({"type": "auth", "token": token()}))
        assert (await receive(alice))["cursor"] == 1
        assert await receive_ids(alice, 3) == [2, 3]


@pytest.mark.parametrize(
    "bad", [token(sub="bob"), token(key="k" * 40), token(life_s=-60), "nonsense"], ids=["user", "key", "old", "no"]
)
async def test_a_wrong_token_closes_wherever_it_is(migrated: Database, bad: str) -> None:
    offered = [Subprotocol("userrealtime.v1"), Subprotocol(f"bearer.{bad}")]
    async with running(migrated.url) as relay:
        async with client(relay, bad) as header:
            assert await closed(header) == (1008, "Unauthorized")
        async with client(relay, None, subprotocols=offered) as subprotocol:
            assert await closed(subprotocol) == (1008, "Unauthorized")
        async with client(relay, None) as message:
            await message.send(json.dumps({"type": "auth", "token": bad}))
            assert await closed(message) == (1008, "Unauthorized")
        await eventually(lambda: is_metric(relay, 'closes_total{code="1008"}', 3))
        assert await metric(relay, "accepted_total") == 0


async def test_no_token_in_time_closes(migrated: Database) -> None:
    async with running(migrated.url, AUTH_TIMEOUT="0.2") as relay, client(relay, None, token=token()) as alice:
        assert await closed(alice) == (1008, "Unauthorized")


async def test_a_token_that_expires_closes(migrated: Database, connection: asyncpg.Connection) -> None:
    async with running(migrated.url) as relay, client(relay, token(life_s=-3)) as alice:
        assert (await receive(alice))["type"] == "connected"
        await publish(connection)
        assert await receive_ids(alice, 1) == [1]
        assert await closed(alice) == (4001, "Token expired")


# --- limits


async def test_too_many_clients_are_sent_away(migrated: Database) -> None:
    async with running(migrated.url, MAX_CONNECTIONS="2") as relay, client(relay) as first, client(relay) as second:
        for each in (first, second):
            await receive(each)
        async with client(relay) as third:
            assert await closed(third) == (1013, "Too many connections")
        await first.close()
        await eventually(lambda: is_metric(relay, "connections", 1))
        async with client(relay) as fourth:
            assert (await receive(fourth))["type"] == "connected"


async def test_the_oldest_client_without_a_token_makes_room(migrated: Database) -> None:
    async with (
        running(migrated.url, MAX_CONNECTIONS="1") as relay,
        client(relay, None) as first,
        client(relay, None) as second,
    ):
        assert await closed(first) == (1013, "Too many unauthenticated connections")
        await second.send(json.dumps({"type": "auth", "token": token()}))
        assert (await receive(second))["type"] == "connected"
        assert await metric(relay, 'limited_total{limit="unauthenticated"}') == 1


async def test_clients_without_a_token_do_not_keep_the_user_out(migrated: Database) -> None:
    async with running(migrated.url, MAX_CONNECTIONS="1") as relay, client(relay, None), client(relay) as alice:
        assert (await receive(alice))["type"] == "connected"


async def test_a_message_that_is_too_big_closes(migrated: Database) -> None:
    async with running(migrated.url, MAX_MESSAGE_BYTES="100") as relay, client(relay) as alice:
        await receive(alice)
        await alice.send("x" * 100)
        assert (await receive(alice))["code"] == "invalid-message"
        await alice.send("x" * 101)
        assert (await closed(alice))[0] == 1009
        await eventually(lambda: is_metric(relay, 'closes_total{code="1009"}', 1))


async def test_fragments_count_together(migrated: Database) -> None:
    async with running(migrated.url, MAX_MESSAGE_BYTES="100") as relay, client(relay) as alice:
        await receive(alice)
        await alice.send(["x" * 60, "x" * 60])
        assert (await closed(alice))[0] == 1009


async def test_wrong_messages_are_answered_then_close(migrated: Database) -> None:
    async with running(migrated.url) as relay, client(relay) as alice:
        await receive(alice)
        for number in range(MAX_ERRORS):
            await alice.send(b"\x00" if number % 2 else "x")
            assert (await receive(alice))["type"] == "error"
        assert await closed(alice) == (1008, "Too many errors")


async def test_text_that_is_no_text_closes(migrated: Database) -> None:
    async with running(migrated.url) as relay, client(relay) as alice:
        await receive(alice)
        await alice.send(b"\xff", text=True)
        assert (await closed(alice))[0] == 1007


async def test_what_is_no_frame_closes(migrated: Database) -> None:
    async with running(migrated.url, POLL_INTERVAL=NEVER) as relay, client(relay) as alice:
        await receive(alice)
        alice.transport.write(b"\x81\x05hello")  # a client must mask
        assert (await closed(alice))[0] == 1002
        await until(lambda: not relay.clients)


async def test_a_handshake_that_is_none_is_refused(migrated: Database) -> None:
    async with running(migrated.url) as relay:
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.ws_port)
        writer.write(b"GET /ws HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        async with asyncio.timeout(PATIENCE_S):
            assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
        writer.close()
        await writer.wait_closed()
        await until(lambda: not relay.websockets.tasks)


async def test_a_silent_client_is_found(migrated: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket_connection, "CLOSE_TIMEOUT", 0.3)
    async with running(migrated.url, PING_INTERVAL="0.2") as relay, client(relay, ping_interval=None) as alice:
        await receive(alice)
        alice.transport.pause_reading()  # so it will not answer pings
        await eventually(lambda: is_metric(relay, 'closes_total{code="1011"}', 1))
        alice.transport.abort()


async def test_a_client_that_answers_pings_stays(migrated: Database, connection: asyncpg.Connection) -> None:
    async with running(migrated.url, PING_INTERVAL="0.1") as relay, client(relay, ping_interval=None) as alice:
        await receive(alice)
        [pinged] = relay.websockets._pinged
        assert isinstance(pinged, websocket._Writer)
        answered = 0
        async with asyncio.timeout(PATIENCE_S):
            while answered < 5:
                while not pinged._connection._pinged:
                    await asyncio.sleep(0.001)
                while pinged._connection._pinged:
                    await asyncio.sleep(0.001)
                answered += 1
        await publish(connection)
        assert await receive_ids(alice, 1) == [1]
        assert not pinged.silent
    assert not relay.websockets._pinged


# --- a client that does not read


def small_socket(relay: Relay) -> socket.socket:
    """A connected socket with a small receive buffer."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.connect(("127.0.0.1", relay.ws_port))
    made.setblocking(False)
    return made


async def test_a_slow_client_delays_nobody_and_is_cut_off(
    migrated: Database, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket_connection, "CLOSE_TIMEOUT", 0.3)
    async with (
        running(migrated.url, SEND_TIMEOUT="0.3", RING_EVENTS="20") as relay,
        client(relay, sock=small_socket(relay)) as slow,
        client(relay) as quick,
    ):
        await receive(slow)
        await receive(quick)
        slow.transport.pause_reading()
        ids: list[int] = []
        for number in range(1, 51):
            await publish(connection, 1, size=100_000)
            ids += await receive_ids(quick, number)
        assert ids == list(range(1, 51))
        await eventually(lambda: is_metric(relay, 'closes_total{code="4008"}', 1))
        await publish(connection)
        assert await receive_ids(quick, 51) == [51]
        slow.transport.abort()


async def test_a_client_that_is_too_slow_is_told_so_if_it_reads_on(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    async with (
        running(migrated.url, SEND_TIMEOUT="0.2") as relay,
        client(relay, sock=small_socket(relay)) as slow,
    ):
        await receive(slow)
        slow.transport.pause_reading()
        await publish(connection, 50, size=100_000)
        [served] = relay.clients
        await until(lambda: served.session.closing is not None)
        slow.transport.resume_reading()
        assert await closed(slow) == (4008, "Too slow")


async def test_a_client_that_reads_half_an_event_is_too_slow(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    async with (
        running(migrated.url, SEND_TIMEOUT="0.2", POLL_INTERVAL=NEVER) as relay,
        client(relay, sock=small_socket(relay)) as slow,
    ):
        await receive(slow)
        await publish(connection)
        await receive_ids(slow, 1)
        slow.transport.pause_reading()
        await publish(connection, 1, size=900_000)
        [served] = relay.clients
        await until(lambda: served.session.closing is not None)
        slow.transport.resume_reading()
        assert await closed(slow) == (4008, "Too slow")


async def test_a_slow_client_that_reads_on_in_time_misses_nothing(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    """Meanwhile, its position leaves the ring, and it reads from the log."""
    async with (
        running(migrated.url, RING_EVENTS="4") as relay,
        client(relay, sock=small_socket(relay)) as slow,
    ):
        await receive(slow)
        slow.transport.pause_reading()
        for _ in range(30):
            await publish(connection, 2, size=50_000)
        [served] = relay.clients
        await until(lambda: relay.tail.ring.head == 60)
        assert served.session.cursor < relay.tail.ring.first - 1
        slow.transport.resume_reading()
        assert await receive_ids(slow, 60) == list(range(1, 61))


async def test_a_client_that_pings_and_does_not_read_is_cut_off(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    async with running(migrated.url) as relay, client(relay, sock=small_socket(relay), ping_interval=None) as rude:
        await receive(rude)
        rude.transport.pause_reading()
        await publish(connection, 50, size=100_000)

        async def ping_on() -> None:
            while True:
                await rude.ping()
                await asyncio.sleep(0)

        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(ping_on(), PATIENCE_S)


# --- draining


async def test_draining_sends_what_is_in_the_ring_then_1012(migrated: Database, connection: asyncpg.Connection) -> None:
    async with running(migrated.url) as relay:
        clients = [await stack_client(relay) for _ in range(5)]
        async with client(relay, None) as stranger:
            await publish(connection, 100)
            await until(lambda: relay.tail.ring.head == 100)
            draining = asyncio.create_task(relay.drain())
            for each in clients:
                assert await receive_ids(each, 100) == list(range(1, 101))
                assert await closed(each) == (1012, "Restarting: reconnect")
            assert await closed(stranger) == (1012, "Restarting: reconnect")
            async with client(relay) as late:
                assert await closed(late) == (1012, "Restarting: reconnect")
            async with asyncio.timeout(PATIENCE_S):
                await draining


async def test_draining_does_not_wait_for_a_client_that_does_not_read(
    migrated: Database, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket_connection, "CLOSE_TIMEOUT", 0.3)
    async with running(migrated.url, DRAIN_TIMEOUT="0.3") as relay, client(relay, sock=small_socket(relay)) as slow:
        await receive(slow)
        slow.transport.pause_reading()
        await publish(connection, 50, size=100_000)
        await until(lambda: relay.tail.ring.head == 50)
        async with asyncio.timeout(PATIENCE_S):
            await relay.drain()
        slow.transport.abort()


async def test_with_nobody_there_draining_is_over_at_once(migrated: Database) -> None:
    async with running(migrated.url) as relay, asyncio.timeout(PATIENCE_S):
        await relay.drain()
