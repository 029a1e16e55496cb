"""A client without a token: the work that it causes, and the connections that it holds open."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import h11
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidMessage
from websockets.frames import Frame, Opcode
from websockets.server import ServerProtocol

from testing.audit import AuditLines
from testing.database import Database
from testing.operator.activator import SERVICE, gate
from testing.relay.harness import PATIENCE_S, client, closed, get, metric, receive, running, token, until
from testing.relay.http_client import request
from userrealtime_core import audit, probes
from userrealtime_operator.activator.proxy import connection as activator
from userrealtime_operator.activator.proxy.proxy import ActivatorProxy
from userrealtime_operator.activator.proxy.request import MAX_BODY_PIECES
from userrealtime_relay.protocols import durable_streams, pusher, supabase
from userrealtime_relay.server import Relay
from userrealtime_relay.transports import http
from userrealtime_relay.transports.websocket_connection import EARLY_FRAMES, EARLY_PIECE, WebSocketConnection

EVICTED = (1013, "Too many unauthenticated connections")
TINY_CHUNKS = b"1\r\nx\r\n" * 60_000
PUBLISH = b"POST /publish HTTP/1.1\r\nHost: relay\r\n"
WEBSOCKETS = (
    "/ws",
    "/app/key?protocol=7",
    "/socket.io/?EIO=4&transport=websocket",
    "/realtime/v1/websocket?vsn=2.0.0",
)
"""The WebSockets whose token is in a message. Those of Action Cable have it in the request."""
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A list that receives the pieces of bodies that h11 parses in this process."""
    parsed = []
    next_event = h11.Connection.next_event

    def spy(connection: h11.Connection) -> Any:
        event = next_event(connection)
        if isinstance(event, h11.Data):
            parsed.append(event)
        return event

    monkeypatch.setattr(h11.Connection, "next_event", spy)
    return parsed


@asynccontextmanager
async def connections(port: int, count: int, start: bytes = b"") -> AsyncIterator[list[asyncio.StreamReader]]:
    """Open connections that send these bytes and then nothing."""
    opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(count)]
    try:
        for _, writer in opened:
            writer.write(start)
        yield [reader for reader, _ in opened]
    finally:
        for _, writer in opened:
            writer.transport.abort()


async def answer(port: int, *sent: bytes) -> bytes:
    """Return the response until the connection is closed, with or without an error."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = b""
    try:
        async with asyncio.timeout(PATIENCE_S):
            for data in sent:
                writer.write(data)
                await writer.drain()
            while data := await reader.read(1 << 16):
                received += data
                if b"\r\n\r\n" in received:  # as a client that reads the response, and then closes
                    writer.close()
    except ConnectionError:
        pass
    finally:
        writer.transport.abort()
    return received


async def ended(reader: asyncio.StreamReader) -> bool:
    try:
        return await reader.read() == b""
    except ConnectionError:
        return True


async def served(relay: Relay) -> None:
    """Assert that a client with a token is served, over every transport."""
    async with client(relay) as alice:
        assert (await receive(alice))["type"] == "connected"
    assert (await request(relay, "/poll")).status == 200
    body = json.dumps({"ref": "r", "event": "e", "data": 1}).encode()
    assert (await request(relay, "/publish", method="POST", body=body)).status == 200


# --- connections at the relay


@pytest.mark.parametrize("start", [b"", b"GET /poll HTTP/1.1\r\nX: "], ids=["idle", "half a head"])
async def test_connections_without_a_request_make_room(migrated: Database, start: bytes) -> None:
    async with running(migrated.url, MAX_CONNECTIONS="5") as relay, connections(relay.ws_port, 12, start) as held:
        async with asyncio.timeout(PATIENCE_S):
            assert all([await ended(reader) for reader in held[:7]])
        await served(relay)
        assert await metric(relay, "unauthenticated") <= 5
        assert await metric(relay, 'limited_total{limit="unauthenticated"}') >= 7


@pytest.mark.parametrize("path", WEBSOCKETS)
async def test_websockets_without_a_token_make_room(migrated: Database, path: str) -> None:
    async with running(migrated.url, MAX_CONNECTIONS="5", PROTOCOLS="pusher,socketio,supabase") as relay:
        strangers = [await connect(f"ws://127.0.0.1:{relay.ws_port}{path}") for _ in range(12)]
        assert [await closed(each) for each in strangers[:7]] == [EVICTED] * 7
        await served(relay)
        for each in strangers:
            each.transport.abort()


async def test_a_client_with_a_token_is_served_under_a_flood(migrated: Database) -> None:
    opened = 0

    async def come_back(relay: Relay) -> None:
        nonlocal opened
        while True:
            opened += 1
            with contextlib.suppress(OSError, InvalidMessage):  # closed before the handshake
                async with connect(f"ws://127.0.0.1:{relay.ws_port}/ws") as stranger:
                    await stranger.wait_closed()

    async with running(migrated.url, MAX_CONNECTIONS="50") as relay, asyncio.TaskGroup() as tasks:
        strangers = [tasks.create_task(come_back(relay)) for _ in range(60)]
        await until(lambda: opened > 60)
        for _ in range(10):
            before = opened
            await served(relay)
            await until(lambda before=before: opened > before)  # type: ignore[misc]
        for each in strangers:
            each.cancel()


async def test_a_token_protects_a_request_while_its_body_arrives(migrated: Database) -> None:
    body = json.dumps({"ref": "slow", "event": "e", "data": 1}).encode()
    async with running(migrated.url, MAX_CONNECTIONS="3") as relay:
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.ws_port)
        writer.write(PUBLISH + f"Authorization: Bearer {token()}\r\nContent-Length: {len(body)}\r\n\r\n".encode())
        await until(lambda: bool(relay.clients.unauthenticated))
        await until(lambda: not relay.clients.unauthenticated)
        async with connections(relay.ws_port, 10):
            await until(lambda: len(relay.clients.unauthenticated) == 3)
            writer.write(body)
            async with asyncio.timeout(PATIENCE_S):
                assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200 ")
        writer.transport.abort()


async def test_probes_are_answered_while_idle_connections_are_open(migrated: Database) -> None:
    async with running(migrated.url) as relay, connections(relay.health_port, 2 * probes.CONNECTIONS):
        assert (await get(relay.health_port, "/ready"))[0] == 200
        assert await metric(relay, "ready") == 1


# --- work at the relay


@pytest.mark.parametrize(
    "path",
    [
        *(b"POST /publish", b"POST /broadcast", b"GET /poll", b"GET /sse", b"POST /nowhere"),
        *(b"POST " + path.encode() for path in (pusher.CHANNELS, pusher.USERS)),
        *(b"POST " + path.encode() for path in (supabase.MESSAGES, f"{supabase.MESSAGES}/log/events/a")),
        *(method + durable_streams.PATH.encode() for method in (b"GET ", b"POST ", b"PUT ")),
        *(method + b" /socket.io/?EIO=4&transport=polling&sid=x" for method in (b"GET", b"POST")),
    ],
)
async def test_the_body_of_a_request_without_a_token_is_not_parsed(
    migrated: Database, chunks: list[Any], path: bytes
) -> None:
    async with running(migrated.url, PROTOCOLS="pusher,durable-streams,socketio,supabase") as relay:
        said = await answer(relay.ws_port, path + b" HTTP/1.1\r\nHost: relay\r\n" + CHUNKED, TINY_CHUNKS)
        assert said.split(b" ")[1] in (b"400", b"401", b"404", b"405")
        assert b"connection: close" in said.lower()
        await served(relay)
    assert len(chunks) == 1  # the body of `served`


async def test_the_response_arrives_although_the_body_is_long(migrated: Database, chunks: list[Any]) -> None:
    async with running(migrated.url) as relay:
        for framing in (CHUNKED + b"100000\r\n", b"Content-Length: 1048576\r\n\r\n"):
            said = await answer(relay.ws_port, PUBLISH + framing, bytes(500_000))
            assert b" 401 " in said
            assert said.endswith(b'{"error":"Unauthorized"}')
    assert chunks == []


async def test_the_chunks_of_a_session_without_a_token_are_not_parsed(migrated: Database, chunks: list[Any]) -> None:
    path = "/socket.io/?EIO=4&transport=polling"
    async with running(migrated.url, PROTOCOLS="socketio") as relay:
        begun = await request(relay, path, None)
        sid = json.loads(begun.body[1:])["sid"]
        head = f"POST {path}&sid={sid} HTTP/1.1\r\nHost: relay\r\n".encode()
        said = await answer(relay.ws_port, head + CHUNKED, TINY_CHUNKS)
        assert said.split(b" ")[1] == b"400"
        assert (await request(relay, f"{path}&sid={sid}", None)).json["code"] == 1  # the session has ended
        await served(relay)
    assert len(chunks) == 1  # the body of `served`


async def test_with_a_token_tiny_chunks_are_limited(migrated: Database, chunks: list[Any]) -> None:
    authorization = f"Authorization: Bearer {token()}\r\n".encode()
    async with running(migrated.url) as relay:
        assert await answer(relay.ws_port, PUBLISH + authorization + CHUNKED, TINY_CHUNKS) == b""
        assert await metric(relay, 'limited_total{limit="chunks"}') == 1
        assert len(chunks) == http.MAX_CHUNKS + 1
        await served(relay)


@pytest.mark.parametrize(
    ("path", "frame", "closed_with"),
    [
        (WEBSOCKETS[0], Frame(Opcode.PING, b""), (1008, "Unauthorized")),
        (WEBSOCKETS[1], Frame(Opcode.PING, b""), (4009, "Unauthorized")),
        (WEBSOCKETS[1], Frame(Opcode.TEXT, b'{"event": "pusher:ping", "data": {}}'), (4009, "Unauthorized")),
        (WEBSOCKETS[2], Frame(Opcode.PING, b""), (1008, "Unauthorized")),
        (WEBSOCKETS[3], Frame(Opcode.TEXT, b'[null,"1","phoenix","heartbeat",{}]'), (1008, "Unauthorized")),
        (WEBSOCKETS[3], Frame(Opcode.TEXT, b'["1","1","realtime:log","phx_join",{}]'), (1008, "Unauthorized")),
    ],
)
async def test_frames_before_the_token_are_parsed_up_to_a_limit(
    migrated: Database, monkeypatch: pytest.MonkeyPatch, path: str, frame: Frame, closed_with: tuple[int, str]
) -> None:
    parsed = 0
    process_frame = WebSocketConnection._process_frame

    def spy(connection: WebSocketConnection, frame: Frame) -> None:
        nonlocal parsed
        parsed += 1
        process_frame(connection, frame)

    monkeypatch.setattr(WebSocketConnection, "_process_frame", spy)
    async with (
        running(migrated.url, AUTH_TIMEOUT="2", PROTOCOLS="pusher,socketio,supabase") as relay,
        connect(f"ws://127.0.0.1:{relay.ws_port}{path}") as stranger,
    ):
        stranger.transport.write(frame.serialize(mask=True) * 50_000)
        assert await closed(stranger) == closed_with
        assert EARLY_FRAMES <= parsed < EARLY_FRAMES + EARLY_PIECE


async def test_what_follows_the_token_at_once_is_received(migrated: Database) -> None:
    messages = [json.dumps({"type": "auth", "token": token()})]
    messages += [json.dumps({"type": "publish", "ref": str(n), "event": "e", "data": "x" * 2000}) for n in range(50)]
    async with running(migrated.url) as relay, client(relay, None) as alice:
        alice.transport.write(
            b"".join(Frame(Opcode.TEXT, message.encode()).serialize(mask=True) for message in messages)
        )
        assert (await receive(alice))["type"] == "connected"
        assert [(await receive(alice))["ref"] for _ in range(50)] == [str(n) for n in range(50)]


# --- connections at the activator


async def woken(opened: ActivatorProxy) -> None:
    """Assert that a client with a token wakes its user, and is served, over every transport."""
    async with client(opened.port) as alice:
        assert (await receive(alice))["type"] == "connected"
    assert (await request(opened.port, "/poll", headers=SERVICE)).status == 200
    body = json.dumps({"ref": "r", "event": "e", "data": 1}).encode()
    assert (await request(opened.port, "/publish", method="POST", headers=SERVICE, body=body)).status == 200


@pytest.mark.parametrize("start", [b"", b"GET /poll HTTP/1.1\r\nX: "], ids=["idle", "half a head"])
async def test_at_the_activator_connections_without_a_request_make_room(migrated: Database, start: bytes) -> None:
    async with (
        gate(migrated.url, unauthenticated=5) as (opened, cluster, metrics),
        connections(opened.port, 12, start) as held,
    ):
        async with asyncio.timeout(PATIENCE_S):
            assert all([await ended(reader) for reader in held[:7]])
        assert cluster.wakes == 0
        await woken(opened)
        assert metrics.value("unauthenticated") <= 5
        assert metrics.value("outcomes_total", outcome="evicted") >= 7


async def test_at_the_activator_websockets_without_a_token_make_room(migrated: Database) -> None:
    async with gate(migrated.url, unauthenticated=5, user_connections=3) as (opened, cluster, metrics):
        strangers = [await connect(f"ws://127.0.0.1:{opened.port}/ws") for _ in range(12)]
        assert [await closed(each) for each in strangers[:7]] == [EVICTED] * 7
        assert cluster.wakes == 0
        await woken(opened)
        assert metrics.value("outcomes_total", outcome="overloaded") == 0
        for each in strangers:
            each.transport.abort()


async def test_at_the_activator_a_carried_client_is_not_displaced(migrated: Database) -> None:
    async with gate(migrated.url, unauthenticated=3) as (opened, _, metrics), client(opened.port) as alice:
        assert (await receive(alice))["type"] == "connected"
        async with connections(opened.port, 10):
            await until(lambda: metrics.value("outcomes_total", outcome="evicted") == 7)
            await alice.send(json.dumps({"type": "ping"}))
            assert (await receive(alice))["type"] == "pong"


# --- work at the activator


@pytest.mark.parametrize("host", ["nobody.example", SERVICE["Host"]])
async def test_the_activator_parses_no_body_without_a_token(migrated: Database, chunks: list[Any], host: str) -> None:
    async with gate(migrated.url) as (opened, cluster, _):
        head = f"POST /publish HTTP/1.1\r\nHost: {host}\r\n".encode()
        said = await answer(opened.port, head + CHUNKED, TINY_CHUNKS)
        assert said.split(b" ")[1] in (b"401", b"404")
        assert chunks == []
        assert cluster.wakes == 0
        await woken(opened)


async def test_at_the_activator_tiny_chunks_are_limited_with_a_token(migrated: Database, chunks: list[Any]) -> None:
    head = f"POST /publish HTTP/1.1\r\nHost: {SERVICE['Host']}\r\nAuthorization: Bearer {token()}\r\n".encode()
    async with gate(migrated.url) as (opened, cluster, _):
        assert b" 413 " in await answer(opened.port, head + CHUNKED, TINY_CHUNKS)
        assert len(chunks) == MAX_BODY_PIECES + 1
        assert cluster.wakes == 0


async def test_the_activator_limits_the_frames_before_the_token(
    migrated: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = 0
    events_received = ServerProtocol.events_received

    def spy(protocol: ServerProtocol) -> list[Any]:
        nonlocal parsed
        events = events_received(protocol)
        parsed += len(events)
        return events

    monkeypatch.setattr(ServerProtocol, "events_received", spy)
    ping = Frame(Opcode.PING, b"").serialize(mask=True)
    async with gate(migrated.url) as (opened, _, _), client(opened.port, None) as stranger:
        stranger.transport.write(ping * 20_000)
        assert await closed(stranger) == (1008, "Unauthorized")
        assert activator.EARLY_FRAMES < parsed < activator.EARLY_FRAMES + activator.FRAMES_BYTES


FORGED = "a stranger's key that is long enough"


async def test_rejected_tokens_are_in_the_audit_log_up_to_a_limit(
    migrated: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "INTERVAL_S", 3600.0)
    with AuditLines() as lines:
        async with running(migrated.url) as relay:
            bearer = token(key=FORGED)
            async with client(relay, bearer) as one:
                await closed(one)
            headers = {"X-Forwarded-For": "198.51.100.7"}
            for _ in range(audit.LINES + 5):
                assert (await request(relay, "/poll", bearer, headers=headers)).status == 401
        websocket, poll = lines.of("token-rejected")[:2]
        assert websocket["client"] == poll["client"] == "127.0.0.1"
        assert poll["forwarded_for"] == "198.51.100.7"
        assert {(line["reason"], line["user"], line["subject"]) for line in (websocket, poll)} == {
            ("unknown signing key", "alice", "alice")
        }
        assert len(lines.of("token-rejected")) == audit.LINES
        assert not [
            line for line in lines.all if bearer in json.dumps(line) or bearer.split(".")[2] in json.dumps(line)
        ]


async def test_the_activator_records_a_rejected_token_once(migrated: Database) -> None:
    with AuditLines() as lines:
        async with gate(migrated.url) as (opened, _, _), client(opened.port, token(key=FORGED)) as one:
            assert (await closed(one))[0] == 1008
        [line] = lines.of("token-rejected")
        assert (line["reason"], line["user"], line["namespace"]) == ("unknown signing key", "alice", "users")
        assert line["client"] == "127.0.0.1"
