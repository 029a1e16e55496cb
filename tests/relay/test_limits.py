"""The memory that clients without reads cost a relay process, as the kernel counts it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import asyncpg

from testing.database import Database
from testing.relay.harness import client, publish, receive, receive_ids, token
from testing.relay.http_client import stream
from testing.relay.process import process, resident, value
from userrealtime_relay.delivery.clients import CHUNK_BYTES, WRITE_LIMIT

CLIENTS = 1000
EVENTS = 1500
EVENT_BYTES = 8_000
RING_BYTES = 2 << 20
CONNECTION_BYTES = 64 << 10
"""More than the objects of one connection need, which this test does not limit."""


@contextlib.contextmanager
def deaf(port: int, number: int) -> Iterator[None]:
    """Connect clients, every second one a stream, that request events and read nothing, not even `connected`."""
    upgrade = (
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    )
    with contextlib.ExitStack() as stack:
        for place in range(number):
            made = stack.enter_context(socket.socket())
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            made.connect(("127.0.0.1", port))
            path, extra = ("/sse", "") if place % 2 else ("/ws", upgrade)
            head = f"GET {path} HTTP/1.1\r\nHost: relay\r\nAuthorization: Bearer {token()}\r\n{extra}\r\n"
            made.sendall(head.encode())
        yield


async def test_a_thousand_that_never_read_are_bounded_and_delay_nobody(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    async with process(
        migrated.url,
        MAX_CONNECTIONS=str(CLIENTS + 2),
        RING_BYTES=str(RING_BYTES),
        PING_INTERVAL="3600",
        SEND_TIMEOUT="3600",
        AUTH_TIMEOUT="60",
    ) as relay:
        await relay.wait_for("connected to Postgres")
        async with client(relay.ws_port) as reading, stream(relay.ws_port) as streaming:
            await receive(reading)
            await streaming.event()
            before = resident(relay.pid)
            with deaf(relay.ws_port, CLIENTS):
                while await value(relay.health_port, "connections") < CLIENTS + 2:
                    await asyncio.sleep(0.1)
                got: list[int] = []
                for last in range(50, EVENTS + 1, 50):
                    await publish(connection, 50, size=EVENT_BYTES)
                    got += await receive_ids(reading, last)
                    assert await streaming.ids(last) == list(range(last - 49, last + 1))
                assert got == list(range(1, EVENTS + 1))
                # No slow client was disconnected, so all undelivered data would be in memory if it were kept.
                assert await value(relay.health_port, "connections") == CLIENTS + 2
                grown = resident(relay.pid) - before
        # For the overhead of byte strings, the page being read and free memory of the allocator: once the ring.
        bound = 2 * RING_BYTES + (CLIENTS + 2) * (CHUNK_BYTES + WRITE_LIMIT + EVENT_BYTES + CONNECTION_BYTES)
        assert grown < bound < CLIENTS * EVENTS * EVENT_BYTES / 50
        print(f"{CLIENTS} clients that read nothing: {grown / CLIENTS / 1024:.0f} KiB each")
