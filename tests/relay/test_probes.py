"""The private port, as any program in the cluster may use it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from testing.patience import PATIENCE_S
from userrealtime_core.probes import CONNECTIONS
from userrealtime_relay.process import probes

pytestmark = pytest.mark.unit


@contextlib.asynccontextmanager
async def port(reason: str | None = None) -> AsyncIterator[int]:
    """Serve the port for the time of the block, and yield its number."""
    listener = await probes.listen("127.0.0.1", 0, lambda: reason, lambda: b"metric 1\n")
    try:
        yield listener.port
    finally:
        listener.close()
        await asyncio.sleep(0)


async def response(number: int, *pieces: bytes) -> tuple[bytes, bytes]:
    """Send a request; return the head of the response, and its body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", number)
    async with asyncio.timeout(PATIENCE_S):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return head, body


async def test_responses() -> None:
    async with port() as number:
        head, body = await response(number, b"GET /metrics?x HTTP/1.1\r\nHost: a\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"Content-Type: text/plain" in head
        assert b"Connection: close" in head
        assert body == b"metric 1\n"
        head, body = await response(number, *(bytes([byte]) for byte in b"GET /health HTTP/1.0\r\n\r\n"))
        assert (head.split()[1], body) == (b"200", b'{"status":"ok"}')
        assert (await response(number, b"GET /ready HTTP/1.1\r\n\r\n"))[1] == b'{"status":"ready"}'
        assert (await response(number, b"GET / HTTP/1.1\r\n\r\n"))[1] == b'{"error":"not found"}'
        head, _ = await response(number, b"PUT /health HTTP/1.1\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 405 ")
        assert b"Allow: GET" in head
    async with port("draining") as number:
        head, body = await response(number, b"GET /ready HTTP/1.1\r\n\r\n")
        assert (head.split()[1], body) == (b"503", b'{"status":"not ready","reason":"draining"}')


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"\x16\x03\x01 this is TLS\r\n\r\n", b"400"),
        (b"GET /health\r\n\r\n", b"400"),
        (b"GET /h\xf6 HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\nHost: a\n\n", b"400"),
        (b"GET /health HTTP/1.1\r\nno colon\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\n" + 200 * b"X: y\r\n" + b"\r\n", b"400"),
        (b"POST /health HTTP/1.1\r\nContent-Length: 1\r\n\r\nx", b"400"),
        (b"POST /health HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\nX: " + b"x" * probes.MAX_HEAD, b"431"),
    ],
)
async def test_what_is_no_request_is_rejected(request_: bytes, status: bytes) -> None:
    async with port() as number:
        head, _ = await response(number, request_)
        assert head.split()[1] == status
        assert (await response(number, b"GET /health HTTP/1.1\r\n\r\n"))[0].split()[1] == b"200"


async def test_a_request_has_a_limited_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("userrealtime_core.probes.TIMEOUT_S", 0.1)
    async with port() as number:
        with contextlib.suppress(ConnectionResetError):
            assert await response(number, b"GET /health HTTP/1.1\r\n") == (b"", b"")


async def test_the_oldest_connection_makes_room() -> None:
    async with port() as number:
        idle = [await asyncio.open_connection("127.0.0.1", number) for _ in range(CONNECTIONS)]
        assert (await response(number, b"GET /health HTTP/1.1\r\n\r\n"))[0].split()[1] == b"200"
        async with asyncio.timeout(PATIENCE_S):
            with contextlib.suppress(ConnectionResetError):
                assert await idle[0][0].read() == b""
        assert not idle[1][0].at_eof()
        for _, writer in idle:
            writer.close()


async def test_connections_end_with_the_port() -> None:
    async with port() as number:
        reader, writer = await asyncio.open_connection("127.0.0.1", number)
        assert (await response(number, b"GET /health HTTP/1.1\r\n\r\n"))[0].split()[1] == b"200"
    async with asyncio.timeout(PATIENCE_S):
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
    writer.close()
