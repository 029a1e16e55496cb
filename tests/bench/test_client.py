"""The load client against a real WebSocket server: it counts events in pieces of any size."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from websockets.asyncio.server import ServerConnection, serve

from bench.relay import workloads
from bench.relay.client import Client, Dialect

EVENTS = 3_000
LATE_S = 0.2


async def test_every_event_is_counted_and_read_once() -> None:
    async def handler(connection: ServerConnection) -> None:
        await connection.send('{"type":"connected"}')
        assert await connection.recv() == "go"
        for number in range(1, EVENTS + 1):
            # Frames with heads of all sizes. One head contains the byte of a tilde.
            await connection.send(json.dumps({"filler": "x" * (number % 300), "data": {"n": number, "tag": "@@@"}}))

    async with serve(handler, "127.0.0.1", 0, compression=None) as server:
        port = server.sockets[0].getsockname()[1]
        dialect = Dialect("/", hello=("go",), ready=b'"connected"')
        client = await Client.connect(dialect, port, check=True)
        await client.received(EVENTS, 20)
        client.abort()
    assert client.events == EVENTS
    assert client.numbers == list(range(1, EVENTS + 1))


async def test_a_server_that_refuses_is_told_at_once() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with server:
        with pytest.raises(ConnectionResetError, match="403"):
            await Client.connect(Dialect("/"), server.sockets[0].getsockname()[1])


async def test_a_response_that_does_not_end_is_read_like_a_websocket() -> None:
    requests = []
    ended = asyncio.Event()

    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\ndata:up to date\n\n")
        for number in range(1, 4):
            writer.write(b'data:[{"data":{"n":%d,"tag":"@@@"}}]\n\n' % number)
        await writer.drain()
        await reader.read()  # until the client ends
        writer.close()
        await writer.wait_closed()
        ended.set()

    server = await asyncio.start_server(stream, "127.0.0.1", 0)
    async with server:
        dialect = Dialect("/", upgrade=False, ready=b"up to date", headers={"Authorization": "Bearer x"})
        client = await Client.connect(dialect, server.sockets[0].getsockname()[1], check=True)
        await client.received(3, 20)
        client.abort()
        await asyncio.wait_for(ended.wait(), 20)
    assert client.numbers == [1, 2, 3]
    assert requests[0].startswith(b"GET / HTTP/1.0\r\n")
    assert b"Authorization: Bearer x\r\n" in requests[0]
    assert b"Upgrade" not in requests[0]


async def test_a_client_responds_to_what_the_server_sends_first() -> None:
    async def handler(connection: ServerConnection) -> None:
        await connection.send("hello 4711")
        assert await connection.recv() == "4711!"
        await connection.send("ready")
        await connection.send('{"n":1,"tag":"@@@"}')
        await connection.wait_closed()

    def response(received: bytes) -> str | None:
        _, found, number = received.partition(b"hello ")
        return f"{number.decode()}!" if found else None

    async with serve(handler, "127.0.0.1", 0, compression=None) as server:
        dialect = Dialect("/", response=response, ready=b"ready")
        client = await Client.connect(dialect, server.sockets[0].getsockname()[1], check=True)
        await client.received(1, 20)
        client.abort()
    assert client.numbers == [1]


async def test_a_server_that_loses_events_is_detected() -> None:
    async def handler(connection: ServerConnection) -> None:
        await connection.send('ready {"n":1,"tag":"@@@"}')
        await connection.wait_closed()

    async with serve(handler, "127.0.0.1", 0, compression=None) as server:
        client = await Client.connect(Dialect("/", ready=b"ready"), server.sockets[0].getsockname()[1])
        with pytest.raises(TimeoutError, match="1 of 2 events"):
            await client.received(2, 0.1)
        client.abort()


async def test_the_time_of_a_fan_out_begins_with_the_first_event() -> None:
    """The response to the commit can be read after the last event."""
    go = asyncio.Event()

    async def handler(connection: ServerConnection) -> None:
        await connection.send("ready")
        await go.wait()
        for number in (1, 2):
            await connection.send(json.dumps({"n": number, "tag": "@@@"}))
            await asyncio.sleep(LATE_S)
        await connection.wait_closed()

    class Feed:
        def next_numbers(self, count: int) -> list[int]:
            return list(range(1, count + 1))

        async def publish(self, numbers: list[int]) -> float:
            go.set()
            await asyncio.sleep(2 * LATE_S)
            return time.perf_counter()

    async with serve(handler, "127.0.0.1", 0, compression=None) as server:

        class Peer:
            name, dialect, port = "peer", Dialect("/", ready=b"ready"), server.sockets[0].getsockname()[1]

        [rate] = await workloads.fan_out(Peer(), Feed(), 3, 2)  # type: ignore[arg-type]
    assert 0 < rate < 3 * 2 / LATE_S
