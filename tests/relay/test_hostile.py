"""Hostile input against a relay as a process, over real sockets: it ends that client, and serves others as before."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from testing.database import Database
from testing.relay.harness import PATIENCE_S, client, receive, token
from testing.relay.process import Process, process, resident, value

MAX_CONNECTIONS = 50
AUTH_TIMEOUT_S = 1
GROWTH_BYTES = 16 << 20
"""Far more than 3 x 50 connections may hold (64 KiB each), and far less than the tests send to the relay."""
GOOD_KEY = (
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: "
    + "A" * 22
    + "==\r\n"
)


def upgrade(extra: str = "") -> bytes:
    return f"GET /ws HTTP/1.1\r\nHost: relay\r\nAuthorization: Bearer {token()}\r\n{GOOD_KEY}{extra}\r\n".encode()


def frame(first: int, payload: bytes, *, masked: bool = True) -> bytes:
    """A frame with any first byte; with a mask of zero, which leaves the payload unchanged."""
    size = len(payload)
    flag = 0x80 if masked else 0
    if size < 126:
        head = bytes((first, flag | size))
    elif size < 1 << 16:
        head = struct.pack("!BBH", first, flag | 126, size)
    else:
        head = struct.pack("!BBQ", first, flag | 127, size)
    return head + (bytes(4) if masked else b"") + payload


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@asynccontextmanager
async def unharmed(url: str, **changes: str) -> AsyncIterator[Process]:
    """Yield a relay; assert afterwards that it serves a valid client, and holds no more files, clients or memory."""
    limits = {"MAX_CONNECTIONS": str(MAX_CONNECTIONS), "AUTH_TIMEOUT": str(AUTH_TIMEOUT_S), **changes}
    async with process(url, **limits) as relay:
        await relay.wait_for("connected to Postgres")
        await greeted(relay)
        await asyncio.sleep(0.1)
        files, memory = open_files(relay.pid), resident(relay.pid)
        yield relay
        await greeted(relay)
        async with asyncio.timeout(PATIENCE_S):
            while open_files(relay.pid) > files or await value(relay.health_port, "connections") > 0:
                await asyncio.sleep(0.05)
        assert resident(relay.pid) - memory < GROWTH_BYTES


async def greeted(relay: Process) -> None:
    async with client(relay.ws_port) as good:
        assert (await receive(good))["type"] == "connected"


async def said(relay: Process, *pieces: bytes, pause_s: float = 0) -> bytes:
    """Send these pieces; return all that the relay sends until it ends the connection, which it must do."""
    reader, writer = await asyncio.open_connection("127.0.0.1", relay.ws_port)
    answer = bytearray()
    try:
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                writer.write(piece)
                await asyncio.wait_for(writer.drain(), PATIENCE_S)
                if pause_s:
                    await asyncio.sleep(pause_s)
                if b"Upgrade: websocket" in piece and piece.endswith(b"\r\n\r\n"):  # frames may come after the answer
                    answer += await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
                if reader.at_eof():
                    break
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(PATIENCE_S):
                while got := await reader.read(1 << 16):
                    answer += got
        return bytes(answer)
    finally:
        writer.transport.abort()


def close_code(answer: bytes) -> int:
    """Return the code of the close frame at the end of a response."""
    place = answer.rindex(b"\x88", answer.index(b"\r\n\r\n"))
    return int.from_bytes(answer[place + 2 : place + 4], "big")


# --- requests


async def test_requests_a_byte_at_a_time_and_silence_are_cut(migrated: Database) -> None:
    async with unharmed(migrated.url) as relay:
        endless = itertools.chain(b"GET /ws HTTP/1.1\r\nX: ", itertools.repeat(ord("x"), 10_000))
        slow = said(relay, *(bytes((byte,)) for byte in endless), pause_s=0.02)
        assert await asyncio.gather(slow, *(said(relay) for _ in range(20))) == [b""] * 21
        assert await value(relay.health_port, 'limited_total{limit="request_time"}') == 21


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /" + b"x" * (1 << 20) + b" HTTP/1.1\r\nHost: relay\r\n\r\n",
        b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\nHost: relay\r\n\r\n",
        b"GET /ws HTTP/1.1\r\nHost: relay\r\nX: " + b"x" * (1 << 20) + b"\r\n\r\n",
        b"GET /ws HTTP/1.1\r\nHost: relay\r\n" + b"X: y\r\n" * 100_000 + b"\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(1000),
        b"GET /x HTTP/1.1\r\nHost: relay\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET /x HTTP/1.1\r\nHost: relay\r\n\r\n" + b"\x00garbage\r\n\r\n" * 1000,
    ],
    ids=["line", "line-of-one-read", "header", "headers", "tls", "two-lengths", "pipelined"],
)
async def test_a_request_that_is_none_is_refused(migrated: Database, request_bytes: bytes) -> None:
    async with unharmed(migrated.url) as relay:
        answer = await said(relay, request_bytes)
        # The kernel may drop the response of a connection that is closed while the peer still sends.
        assert b" 400 " in answer or (answer == b"" and len(request_bytes) > 1 << 16)


@pytest.mark.parametrize(
    "body",
    [
        b"Transfer-Encoding: chunked\r\n\r\nno number\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 100_000,
        b"Content-Length: 100\r\n\r\n{",
    ],
    ids=["chunk", "chunk-size", "length"],
)
async def test_a_body_that_is_none_is_cut(migrated: Database, body: bytes) -> None:
    async with unharmed(migrated.url, SEND_TIMEOUT="1") as relay:
        head = f"POST /publish HTTP/1.1\r\nHost: relay\r\nAuthorization: Bearer {token()}\r\n".encode()
        assert b" 200 " not in await said(relay, head + body)


# --- frames


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (frame(0xC1, b"{}"), 1002),
        (frame(0x83, b"{}"), 1002),
        (frame(0x8B, b""), 1002),
        (frame(0x81, b"{}", masked=False), 1002),
        (frame(0x89, b"x" * 126), 1002),
        (frame(0x09, b"x"), 1002),
        (frame(0x80, b"x"), 1002),
        (frame(0x81, b"\xff\xfe"), 1007),
        (frame(0x88, (1005).to_bytes(2, "big")), 1002),
        (frame(0x88, b"\x03"), 1002),
        (frame(0x81, b"x" * (1 << 20)), 1009),
        (frame(0x01, b"x") + frame(0x00, b"x") * 100_000, 1009),
        (frame(0x81, b"x") * 5_000, 1013),
    ],
    ids=[
        "reserved-bit", "opcode", "control-opcode", "unmasked", "long-ping", "fragmented-ping", "no-beginning", "utf-8",
        "close-code", "short-close", "big", "fragments", "flood",
    ],
)  # fmt: skip
async def test_frames_that_may_not_be_are_answered_by_their_close_code(
    migrated: Database, frames: bytes, code: int
) -> None:
    async with unharmed(migrated.url, MAX_MESSAGES_PER_SECOND="5") as relay:
        assert close_code(await said(relay, upgrade(), frames)) == code


async def test_compression_is_not_negotiated(migrated: Database) -> None:
    async with unharmed(migrated.url) as relay:
        extra = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
        answer = await said(relay, upgrade(extra), frame(0xC1, b"bomb"))
        assert b"sec-websocket-extensions" not in answer.lower()
        assert close_code(answer) == 1002


async def test_many_half_open_handshakes_leave_nothing(migrated: Database) -> None:
    async with unharmed(migrated.url) as relay:
        half = upgrade()[:-2]
        for _ in range(10):
            answers = await asyncio.gather(*(said(relay, half) for _ in range(200)))
            assert set(answers) == {b""}


# --- haste


async def test_what_comes_with_the_handshake_is_heard(migrated: Database) -> None:
    """A client may not wait for the answer before it authenticates. It must not be forgotten for that."""
    async with process(migrated.url) as relay:
        await relay.wait_for("connected to Postgres")
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.ws_port)
        hello = json.dumps({"type": "auth", "token": token()}).encode()
        writer.write(f"GET /ws HTTP/1.1\r\nHost: relay\r\n{GOOD_KEY}\r\n".encode() + frame(0x81, hello))
        async with asyncio.timeout(PATIENCE_S):
            answer = await reader.readuntil(b'"connected"')
        assert answer.startswith(b"HTTP/1.1 101")
        writer.transport.abort()
