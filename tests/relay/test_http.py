"""HTTP on the ports, and connections that uvicorn's protocol would leave open."""

from __future__ import annotations

import asyncio
import json

import pytest

from testing.database import Database
from testing.relay.harness import PATIENCE_S, client, config, get, receive, running, token
from testing.relay.http_client import request, stream
from userrealtime_core.auth.tokens import MAX_TOKEN_BYTES
from userrealtime_relay.server import Relay

# No program listens there.
NO_DATABASE = "postgresql://nobody@127.0.0.1:1/none"


async def test_probes_of_a_relay_that_is_ready(migrated: Database) -> None:
    async with running(migrated.url) as relay:
        assert await get(relay.health_port, "/health") == (200, '{"status":"ok"}')
        assert await get(relay.health_port, "/ready") == (200, '{"status":"ready"}')
        status, body = await get(relay.health_port, "/metrics")
        assert status == 200
        assert "\nuserrealtime_relay_ready 1.0\n" in body
        await relay.drain()
        assert await get(relay.health_port, "/ready") == (503, '{"status":"not ready","reason":"draining"}')
        assert await get(relay.health_port, "/health") == (200, '{"status":"ok"}')


async def test_probes_of_a_relay_without_its_database() -> None:
    async with Relay(config(NO_DATABASE)) as relay:
        assert (await get(relay.health_port, "/health"))[0] == 200
        status, body = await get(relay.health_port, "/ready")
        assert (status, json.loads(body)["reason"]) == (503, "not connected to Postgres")


@pytest.mark.parametrize(
    ("path", "status", "error"),
    [
        ("/ws", 426, "this is a WebSocket: connect with a WebSocket client"),
        ("/urt-alice/ws?last_event_id=1", 426, "this is a WebSocket: connect with a WebSocket client"),
        ("/", 404, "not found"),
        ("/metrics", 404, "not found"),
        ("/urt-bob/ws", 404, "not found"),
    ],
)
async def test_plain_requests_to_the_public_port_are_answered(path: str, status: int, error: str) -> None:
    async with Relay(config(NO_DATABASE, BASE_PATH="/urt-alice")) as relay:
        answered, body = await get(relay.ws_port, path)
        assert (answered, json.loads(body)) == (status, {"error": error})


async def test_the_private_port_has_no_websocket() -> None:
    async with Relay(config(NO_DATABASE)) as relay:
        assert await get(relay.health_port, "/ws") == (404, '{"error":"not found"}')
        assert (await get(relay.health_port, "/health", "POST"))[0] == 405


def longest_token() -> str:
    """Return a valid token of the documented size, or up to two bytes less, because base64 lacks some lengths."""
    length = 3 * (MAX_TOKEN_BYTES - len(token(pad=""))) // 4
    return max(
        (text for size in range(length - 4, length + 4) if len(text := token(pad="x" * size)) <= MAX_TOKEN_BYTES),
        key=len,
    )


@pytest.mark.parametrize("cookie", [0, 7_000])
async def test_every_transport_accepts_a_token_of_documented_size(migrated: Database, cookie: int) -> None:
    bearer = longest_token()
    assert MAX_TOKEN_BYTES - 3 < len(bearer) <= MAX_TOKEN_BYTES
    headers = {"Cookie": f"a={'x' * cookie}"}
    async with running(migrated.url, ALLOW_QUERY_TOKEN="true") as relay:
        async with client(relay, bearer, headers=headers) as alice:
            assert (await receive(alice))["type"] == "connected"
        async with client(relay, None, headers=headers, token=bearer) as alice:
            assert (await receive(alice))["type"] == "connected"
        protocols = ["userrealtime.v1", f"bearer.{bearer}"]
        async with client(relay, None, headers=headers, subprotocols=protocols) as alice:
            assert (await receive(alice))["type"] == "connected"
        async with client(relay, None, headers=headers) as alice:
            await alice.send(json.dumps({"type": "auth", "token": bearer}))
            assert (await receive(alice))["type"] == "connected"
        async with stream(relay, bearer, headers=headers):
            pass
        assert (await request(relay, "/poll?timeout=0", bearer, headers=headers)).status == 200
        body = b'{"ref":"r","event":"e"}'
        answer = await request(relay, "/publish", bearer, method="POST", headers=headers, body=body)
        assert answer.status == 200


@pytest.mark.parametrize("connection", [["Upgrade", "keep-alive"], ["keep-alive", "Upgrade"], ["keep-alive, upgrade"]])
async def test_a_websocket_may_come_with_several_connection_headers(migrated: Database, connection: list[str]) -> None:
    lines = [
        "GET /ws HTTP/1.1",
        "Host: x",
        *(f"Connection: {value}" for value in connection),
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        f"Authorization: Bearer {token()}",
    ]
    async with running(migrated.url) as relay:
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.ws_port)
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        async with asyncio.timeout(PATIENCE_S):
            assert await reader.readline() == b"HTTP/1.1 101 Switching Protocols\r\n"
        writer.close()


async def test_large_cookies_are_accepted_by_every_transport(migrated: Database) -> None:
    headers = {"Cookie": f"a={'x' * 12_000}"}
    async with running(migrated.url) as relay:
        async with client(relay, headers=headers) as alice:
            assert (await receive(alice))["type"] == "connected"
        async with stream(relay, headers=headers):
            pass
        assert (await request(relay, "/poll?timeout=0", headers=headers)).status == 200


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000, id="a head too big"),
        pytest.param(b"\x16\x03\x01 this is TLS\r\n\r\n", id="no HTTP"),
    ],
)
async def test_what_is_no_request_gets_400(request_: bytes) -> None:
    async with Relay(config(NO_DATABASE)) as relay:
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.ws_port)
        writer.write(request_)
        async with asyncio.timeout(PATIENCE_S):
            assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
        writer.close()
        await writer.wait_closed()


async def ended(reader: asyncio.StreamReader) -> bytes:
    """Return the data until the server ends the connection, with or without an error."""
    async with asyncio.timeout(PATIENCE_S):
        received = b""
        try:
            while data := await reader.read(1000):
                received += data
        except ConnectionResetError:
            pass
        return received


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(b"", id="silence"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: relay\r\n", id="half a head"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: relay\r\n\r\nGET / HT", id="a second request, cut off"),
        pytest.param(b"POST / HTTP/1.1\r\nHost: relay\r\nContent-Length: 9\r\n\r\n", id="a body that does not come"),
    ],
)
async def test_who_asks_nothing_is_cut_off(request_: bytes) -> None:
    async with Relay(config(NO_DATABASE, AUTH_TIMEOUT="0.2")) as relay:
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.ws_port)
        writer.write(request_)
        await ended(reader)
        writer.close()


async def test_the_number_of_those_who_ask_is_limited() -> None:
    async with Relay(config(NO_DATABASE, MAX_CONNECTIONS="2")) as relay:
        idle = [await asyncio.open_connection("127.0.0.1", relay.ws_port) for _ in range(2)]
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.ws_port)
        assert await ended(reader) == b""
        writer.close()
        for _, writer in idle:
            writer.close()
            await writer.wait_closed()
        assert (await get(relay.ws_port, "/"))[0] == 404


async def test_a_port_that_is_taken_is_an_error() -> None:
    async with Relay(config(NO_DATABASE)) as relay:
        for taken in ({"WS_PORT": str(relay.ws_port)}, {"HEALTH_PORT": str(relay.health_port)}):
            with pytest.raises(OSError, match="address already in use"):
                await Relay(config(NO_DATABASE, **taken)).__aenter__()
