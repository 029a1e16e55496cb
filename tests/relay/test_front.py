"""The first request of a connection: a plain WebSocket, or a request for the HTTP server, which is then imported."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys

import pytest

from testing.database import Database
from testing.patience import PATIENCE_S
from testing.relay.harness import config, running, token
from userrealtime_relay.server import Relay
from userrealtime_relay.transports.front import MAX_REQUEST_HEAD, is_plain_handshake

# No program listens there.
NO_DATABASE = "postgresql://nobody@127.0.0.1:1/none"
HEADERS = (
    "Host: relay",
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


def head(*headers: str, line: str = "GET /ws HTTP/1.1", end: str = "\r\n") -> bytes:
    return end.join([line, *headers, "", ""]).encode("latin-1")


@pytest.mark.parametrize(
    "request_",
    [
        head(*HEADERS),
        head(*(header.lower() for header in HEADERS)),
        head("Host:relay", "Connection: keep-alive, Upgrade", "UPGRADE:\tWebSocket ", *HEADERS[3:]),
        head("Host: relay", "Connection: keep-alive", "Connection: upgrade", *HEADERS[2:]),
        head(*HEADERS, "X-Name: J\xf6rg", line="GET /ws?token=a HTTP/1.1"),
    ],
)
def test_plain_handshakes(request_: bytes) -> None:
    assert is_plain_handshake(request_)


@pytest.mark.parametrize(
    "request_",
    [
        head(*HEADERS[1:]),
        head("Host: other", *HEADERS),
        head(*(header for header in HEADERS if header != "Connection: Upgrade")),
        head(*(header for header in HEADERS if header != "Upgrade: websocket")),
        head(*HEADERS, "Upgrade: websocket"),
        head(*HEADERS, "Upgrade: h2c"),
        head(*HEADERS, "Content-Length: 0"),
        head(*HEADERS, "Transfer-Encoding: chunked"),
        head(*HEADERS, " folded"),
        head(*HEADERS, "Space : before the colon"),
        head(*HEADERS, "no colon"),
        head(*HEADERS, "Null: \0"),
        head(*HEADERS, "Return: a\rb"),
        head(*HEADERS, line="POST /ws HTTP/1.1"),
        head(*HEADERS, line="get /ws HTTP/1.1"),
        head(*HEADERS, line="GET /ws HTTP/1.0"),
        head(*HEADERS, line="GET  /ws HTTP/1.1"),
        head(*HEADERS, line="GET /w\xf6 HTTP/1.1"),
        head(*HEADERS, end="\n"),
        head(*HEADERS) + b"more",
        head(),
    ],
)
def test_other_requests(request_: bytes) -> None:
    assert not is_plain_handshake(request_)


IMPORTED = """
import asyncio, os, sys
from testing.relay.harness import config, get
from userrealtime_relay.server import Relay

async def main():
    async with Relay(config(os.environ["NO_DATABASE"])) as relay:
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.ws_port)
        writer.write(os.environ["HANDSHAKE"].encode())
        print((await reader.readline()).split()[1].decode())
        writer.close()
        for path in ("/health", "/ready", "/metrics", "/other"):
            print((await get(relay.health_port, path))[0])
        print([name for name in ("starlette", "uvicorn", "h11") if name in sys.modules])
        print((await get(relay.ws_port, "/poll"))[0])
        print([name for name in ("starlette", "uvicorn", "h11") if name in sys.modules])

asyncio.run(main())
"""


def test_the_http_server_is_imported_with_the_first_request_that_needs_it() -> None:
    environment = {**os.environ, "NO_DATABASE": NO_DATABASE, "HANDSHAKE": head(*HEADERS).decode()}
    command = [sys.executable, "-c", IMPORTED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    expected = ["101", "200", "503", "200", "404", "[]", "401", "['starlette', 'uvicorn', 'h11']"]
    assert done.stdout.splitlines() == expected


async def first_line(relay: Relay, *pieces: bytes) -> bytes:
    """Return the first line of the response to a request that is sent in pieces."""
    reader, writer = await asyncio.open_connection("127.0.0.1", relay.ws_port)
    try:
        async with asyncio.timeout(PATIENCE_S):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            return await reader.readline()
    finally:
        writer.close()


SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\n"


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(head(*HEADERS), id="plain"),
        pytest.param(head(*HEADERS, end="\n"), id="without CR"),
        pytest.param(head(*HEADERS, "Content-Length: 0"), id="with the length of no body"),
    ],
)
async def test_handshakes_succeed_whoever_reads_them(request_: bytes) -> None:
    async with Relay(config(NO_DATABASE)) as relay:
        assert await first_line(relay, request_) == SWITCHING
        assert await first_line(relay, *(bytes([byte]) for byte in request_)) == SWITCHING


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (head("Host: relay", line="GET /poll HTTP/1.1"), 401),
        (head("Host: relay", "Content-Length: 2", line="POST /publish HTTP/1.1") + b"{}", 401),
        (head("Host: relay", line="G HTTP/1.1"), 400),
        (b"GE\r\n\r\n", 400),
        (head(line="GET / HTTP/1.1"), 400),
        (head("Host: relay", "X: " + 2 * MAX_REQUEST_HEAD * "x"), 400),
    ],
)
async def test_other_requests_get_the_answer_of_the_http_server(request_: bytes, status: int) -> None:
    async with Relay(config(NO_DATABASE)) as relay:
        for pieces in ([request_], [request_[:2], request_[2:]]):
            assert (await first_line(relay, *pieces)).split()[1] == str(status).encode()


async def test_messages_may_follow_the_handshake_in_the_same_packet(migrated: Database) -> None:
    request_ = head(*HEADERS, f"Authorization: Bearer {token()}")
    ping = bytes([0x89, 0x80, 0, 0, 0, 0])
    async with running(migrated.url) as relay:
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.ws_port)
        writer.write(request_ + ping)
        async with asyncio.timeout(PATIENCE_S):
            await reader.readuntil(b"\r\n\r\n")
            frames = [await frame(reader), await frame(reader)]
        writer.close()
    assert (0x8A, b"") in frames
    assert any(json.loads(body)["type"] == "connected" for _, body in frames if body)


async def frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Read one frame of fewer than 64 KiB; return its first byte and its payload."""
    first, length = await reader.readexactly(2)
    if length == 126:
        length = int.from_bytes(await reader.readexactly(2))
    return first, await reader.readexactly(length)


@pytest.mark.parametrize("begun", [b"", b"GET", head(*HEADERS)[:-2], b"POST / HTTP/1.1\r\n"])
async def test_a_request_has_a_limited_time_wherever_it_is_read(begun: bytes) -> None:
    async with Relay(config(NO_DATABASE, AUTH_TIMEOUT="1")) as relay:
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.ws_port)
        writer.write(begun)
        async with asyncio.timeout(PATIENCE_S):
            with contextlib.suppress(ConnectionResetError):  # it was aborted with unread data
                assert await reader.read() == b""
        writer.close()
        assert relay.metrics.value("limited_total", limit="request_time") == 1


async def test_connections_without_a_request_end_with_the_port() -> None:
    async with Relay(config(NO_DATABASE)) as relay:
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.ws_port)
        writer.write(b"GET /ws")
        async with asyncio.timeout(PATIENCE_S):
            while len(relay.clients.unauthenticated) == 0:
                await asyncio.sleep(0.01)
    async with asyncio.timeout(PATIENCE_S):
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
    writer.close()
    assert len(relay.clients.unauthenticated) == 0
