"""The load client against a real WebSocket server: it counts events in pieces of any size."""

from __future__ import annotations

import asyncio
import json

import pytest
from websockets.asyncio.server import ServerConnection, serve

from bench.relay.client import Client, Dialect

EVENTS = 3_000


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
