"""The relay's part of Redis' protocol, against servers that violate it. The real server is in
test_signals_brokers.py."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from testing.relay.harness import PATIENCE_S, until
from userrealtime_core.secret import Secret
from userrealtime_core.wire.position import LogMoved, LogPosition
from userrealtime_relay.notify import Unreachable, redis

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
SUBSCRIBED = b"*3\r\n$9\r\nsubscribe\r\n$17\r\nuser:alice:events\r\n:1\r\n"


@asynccontextmanager
async def answering(serve: Serve) -> AsyncIterator[Secret]:
    """Run a server; yield its URL."""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await serve(reader, writer)
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield Secret(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    finally:
        server.close()


async def subscribe(url: Secret, heard: list[bytes]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        await redis.subscribe(url, "alice", heard.append)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"*3\r\n$9\r\nsubs",
        b"-ERR unknown command\r\n",
        b"HTTP/1.1 400 Bad Request\r\n",
        b"$x\r\n",
        b"$99999999999\r\n",
        b"*99999999999\r\n",
        b"*1\r\n" * 100_000,
        b"+" + b"x" * 200_000,
    ],
)
async def test_what_is_no_answer_ends_the_connection(answer: bytes) -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)

    heard: list[bytes] = []
    async with answering(serve) as url:
        with pytest.raises(Unreachable):
            await subscribe(url, heard)
    assert heard == []


async def test_what_comes_in_pieces_and_what_was_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis, "PING_INTERVAL", 1.0)
    message = b"*3\r\n$7\r\nmessage\r\n$17\r\nuser:alice:events\r\n$3\r\n1 e\r\n"
    asked = b""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        writer.write(SUBSCRIBED + b"*-1\r\n$-1\r\n:7\r\n*0\r\n*3\r\n:1\r\n:2\r\n:3\r\n")
        for piece in (message[:3], message[3:30], message[30:]):
            writer.write(piece)
            await asyncio.sleep(0.6)  # in total, longer than the interval of pings
        asked = await reader.read(1000)
        writer.write(message)
        await reader.read()

    heard: list[bytes] = []
    async with answering(serve) as url:
        task = asyncio.create_task(subscribe(url, heard))
        await until(lambda: len(heard) == 3 or task.done())
        task.cancel()
        await asyncio.wait([task])
    assert heard == [b"", b"1 e", b"1 e"]
    assert asked.startswith(b"*2\r\n$9\r\nSUBSCRIBE\r\n$17\r\nuser:alice:events\r\n")


async def test_a_server_that_falls_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis, "PING_INTERVAL", 0.1)
    monkeypatch.setattr(redis, "ANSWER_TIMEOUT", 0.1)
    said: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SUBSCRIBED)
        while data := await reader.read(1000):
            said.append(data)

    async with answering(serve) as url:
        with pytest.raises(Unreachable, match="does not answer"):
            await subscribe(url, [])
        assert b"PING" in b"".join(said)
        with pytest.raises(Unreachable):
            async with redis.publishing(url) as publish:
                await publish([LogMoved("alice", LogPosition(1, "e"))])


async def test_the_next_server_is_taken_if_the_first_is_away() -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SUBSCRIBED)

    heard: list[bytes] = []
    async with answering(serve) as url:
        with pytest.raises(Unreachable):
            await subscribe(Secret(f"redis://127.0.0.1:1,{url.reveal()}"), heard)
    assert heard == [b""]
