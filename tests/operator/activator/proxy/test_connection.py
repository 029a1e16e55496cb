"""A client's connection before it is forwarded, over loopback."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import pytest
from websockets.frames import Close, Frame, Opcode

from testing.operator.streams import Stream, connected
from testing.patience import PATIENCE_S
from userrealtime_operator.activator.proxy.connection import EARLY_FRAMES, MAX_BUFFERED_BYTES, ClientConnection
from userrealtime_operator.activator.proxy.frames import FrameTracker
from userrealtime_operator.activator.proxy.responses import Rejected, evicted, unauthorized

GET = b"GET /sse HTTP/1.1\r\nHost: urt-a\r\n\r\n"
UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: urt-a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)
AUTH = json.dumps({"type": "auth", "token": "abc"}).encode()


def frame(data: bytes, opcode: Opcode = Opcode.TEXT, *, fin: bool = True) -> bytes:
    return Frame(opcode, data, fin=fin).serialize(mask=True)


@contextlib.asynccontextmanager
async def client() -> AsyncIterator[tuple[ClientConnection, Stream]]:
    async with asyncio.timeout(PATIENCE_S), connected() as (ours, theirs):
        yield ClientConnection(*ours), theirs


async def test_a_request_is_read_in_pieces() -> None:
    async with client() as (connection, (_, writer)):
        writer.write(GET[:10])
        reading = asyncio.create_task(connection.read_request())
        await asyncio.sleep(0.01)
        assert not reading.done()
        writer.write(GET[10:] + b"ignored")
        assert (await reading).path == "/sse"
        assert connection.buffered == b""


async def test_a_connection_without_a_request() -> None:
    async with client() as (connection, (_, writer)):
        writer.write_eof()
        with pytest.raises(EOFError):
            await connection.read_request()


async def test_half_a_request_is_rejected() -> None:
    async with client() as (connection, (_, writer)):
        writer.write(GET[:10])
        writer.write_eof()
        with pytest.raises(Rejected, match="malformed"):
            await connection.read_request()


async def test_the_bytes_after_a_handshake_are_buffered_for_the_pod() -> None:
    async with client() as (connection, (_, writer)):
        sent = frame(AUTH)
        writer.write(UPGRADE + b"\r\n" + sent)
        await connection.read_request()
        assert connection.buffered == sent


async def test_the_handshake_is_accepted_once() -> None:
    async with client() as (connection, (reader, writer)):
        writer.write(UPGRADE + b"Sec-WebSocket-Protocol: other, userrealtime.v1\r\n\r\n")
        await connection.read_request()
        await connection.accept_websocket()
        await connection.accept_websocket()
        assert connection.upgraded
        response = await reader.readuntil(b"\r\n\r\n")
        assert response.startswith(b"HTTP/1.1 101 ")
        assert b"Sec-WebSocket-Protocol: userrealtime.v1\r\n" in response
        assert b"Extensions" not in response


async def test_an_invalid_handshake_is_rejected() -> None:
    async with client() as (connection, (_, writer)):
        writer.write(UPGRADE.replace(b"Version: 13", b"Version: 7") + b"\r\n")
        await connection.read_request()
        with pytest.raises(Rejected, match="not a WebSocket handshake"):
            await connection.accept_websocket()


@pytest.mark.parametrize(
    ("frames", "token"),
    [
        pytest.param([frame(AUTH)], "abc", id="one frame"),
        pytest.param([frame(AUTH[:5], fin=False), frame(AUTH[5:], Opcode.CONT)], "abc", id="fragments"),
        pytest.param([frame(b"?", Opcode.PING), frame(AUTH)], "abc", id="after a ping"),
        pytest.param([frame(b'{"type": "auth"}')], None, id="no token"),
        pytest.param([frame(b'{"type": "auth", "token": 1}')], None, id="a token that is not a string"),
        pytest.param([frame(b'{"type": "resume", "token": "abc"}')], None, id="another message"),
        pytest.param([frame(b"[]")], None, id="an array"),
        pytest.param([frame(b"\xff")], None, id="not UTF-8"),
        pytest.param([frame(AUTH, Opcode.BINARY)], None, id="binary"),
        pytest.param([frame(b"", Opcode.PING)] * 1000 + [frame(AUTH)], None, id="too many frames"),
    ],
)
async def test_the_token_of_the_first_message(frames: list[bytes], token: str | None) -> None:
    async with client() as (connection, (_, writer)):
        writer.write(UPGRADE + b"\r\n")
        await connection.read_request()
        await connection.accept_websocket()
        sent = b"".join(frames)
        writer.write(sent)
        assert await connection.read_first_token() == token
        assert connection.buffered == sent[: len(connection.buffered)]
        assert len(frames) <= EARLY_FRAMES or token is None


@pytest.mark.parametrize(
    "last", [frame(Close(1000, "").serialize(), Opcode.CLOSE), None], ids=["a close frame", "no frame"]
)
async def test_a_client_that_leaves_before_its_token(last: bytes | None) -> None:
    async with client() as (connection, (_, writer)):
        writer.write(UPGRADE + b"\r\n" + (last or b""))
        await connection.read_request()
        await connection.accept_websocket()
        writer.write_eof()
        with pytest.raises(EOFError):
            await connection.read_first_token()


async def test_waiting_ends_when_the_client_leaves() -> None:
    cancelled = asyncio.Event()

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with client() as (connection, (_, writer)):
        waiting = asyncio.create_task(connection.while_connected(wait()))
        writer.write(b"buffered")
        await asyncio.sleep(0.01)
        writer.write_eof()
        with pytest.raises(EOFError):
            await waiting
        assert cancelled.is_set()
        assert connection.buffered == b"buffered"


async def test_a_client_that_sends_too_much_while_it_waits_is_rejected() -> None:
    async with client() as (connection, (_, writer)):
        waiting = asyncio.create_task(connection.while_connected(asyncio.Event().wait()))
        writer.write(bytes(MAX_BUFFERED_BYTES + 1))
        with pytest.raises(Rejected) as caught:
            await waiting
        assert caught.value.close_code == 1013


async def test_the_result_of_waiting() -> None:
    async def answer() -> int:
        return 42

    async with client() as (connection, _):
        assert await connection.while_connected(answer()) == 42


async def test_a_rejection_of_a_request_is_a_response() -> None:
    async with client() as (connection, (reader, writer)):
        writer.write(GET)
        await connection.read_request()
        connection.cors_headers = [("Access-Control-Allow-Origin", "*")]
        rejecting = asyncio.create_task(connection.reject(unauthorized()))
        response = await reader.read()
        writer.close()
        await rejecting
        assert response.startswith(b"HTTP/1.1 401 ")
        assert b"Access-Control-Allow-Origin: *\r\n" in response


async def test_a_rejection_of_a_websocket_is_a_close_frame() -> None:
    async with client() as (connection, (reader, writer)):
        writer.write(UPGRADE + b"\r\n")
        await connection.read_request()
        await connection.accept_websocket()
        await reader.readuntil(b"\r\n\r\n")
        rejecting = asyncio.create_task(connection.reject(unauthorized()))
        assert await reader.read() == Frame(Opcode.CLOSE, Close(1008, "Unauthorized").serialize()).serialize(mask=False)
        writer.close()
        await rejecting


async def test_an_eviction_does_not_wait_and_is_not_a_second_response() -> None:
    async with client() as (connection, (reader, writer)):
        assert connection.evict(evicted()), "nothing was requested"
    async with client() as (connection, (reader, writer)):
        writer.write(GET)
        await connection.read_request()
        assert connection.evict(evicted())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 503 ")
    async with client() as (connection, (reader, writer)):
        writer.write(GET)
        await connection.read_request()
        await connection.start_response(b"HTTP/1.1 200 OK\r\n")
        assert not connection.evict(evicted())
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() in (b"", b"HTTP/1.1 200 OK\r\n")


async def test_a_drain_closes_a_connection_between_messages() -> None:
    async with client() as (connection, (reader, writer)):
        await connection.drain()
        connection.writer.close()
        assert await reader.read() == b"", "nothing was requested"
    async with client() as (connection, (reader, writer)):
        writer.write(GET)
        await connection.read_request()
        draining = asyncio.create_task(connection.drain())
        assert (await reader.read()).startswith(b"HTTP/1.1 503 ")
        writer.close()
        await draining
    for begun, expected in ((b"", b"\x88\x0c\x03\xf4Restarting"), (b"\x81\x05hel", b"")):
        async with client() as (connection, (reader, writer)):
            writer.write(UPGRADE + b"\r\n")
            await connection.read_request()
            await connection.start_response(b"")
            connection.pod_frames = FrameTracker()
            connection.pod_frames.feed(begun)
            writer.write_eof()
            await connection.drain()
            connection.writer.close()
            assert await reader.read() == expected
