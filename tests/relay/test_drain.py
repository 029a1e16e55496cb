"""A rolling restart under load: two relays behind a switch like a Service, and clients of every transport."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from websockets.exceptions import ConnectionClosed

from testing.database import Database
from testing.relay.harness import PATIENCE_S, client, publish
from testing.relay.http_client import request, stream
from testing.relay.process import process

CLIENTS = 200
DRAIN_S = 4
GRACE_S = DRAIN_S + 10
"""The grace period of the pod that docs/relay.md requires, and the operator's pods have."""


class Switch:
    """Forwards each new connection to `target` and records its time. Existing connections stay."""

    def __init__(self) -> None:
        self.target = 0
        self.port = 0
        self.arrivals: list[float] = []
        self.tasks: set[asyncio.Task[Any]] = set()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.arrivals.append(asyncio.get_running_loop().time())
        task = asyncio.create_task(_carry(self.target, reader, writer))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


async def _carry(port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", port)
        ways = [asyncio.create_task(_copy(reader, to_writer)), asyncio.create_task(_copy(to_reader, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            await _close(to_writer)
    await _close(writer)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


@asynccontextmanager
async def switch() -> AsyncIterator[Switch]:
    made = Switch()
    server = await asyncio.start_server(made, "127.0.0.1", 0, backlog=512)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        # The relays have ended, and so have the forwarded connections.
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*made.tasks)


class Follower:
    """A client that reconnects as documented, and records every id that it receives."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.ids: list[int] = []
        self.codes: Counter[int] = Counter()
        self._epoch: str | None = None

    def take(self, message: dict[str, Any]) -> None:
        if message["type"] == "event":
            self.ids.append(message["id"])
        elif message["type"] == "close":
            self.codes[message["code"]] += 1
        else:
            assert message["type"] == "connected", message

    @property
    def cursor(self) -> int:
        return self.ids[-1] if self.ids else 0

    async def websocket(self) -> None:
        while True:
            try:
                async with client(self.port, last_event_id=self.cursor) as connection:
                    while True:
                        self.take(json.loads(await connection.recv()))
            except ConnectionClosed as closed:
                self.codes[1006 if closed.rcvd is None else closed.rcvd.code] += 1
            await asyncio.sleep(0.1)

    async def sse(self) -> None:
        last_id = "0"
        while True:
            async with stream(self.port, headers={"Last-Event-ID": last_id}) as events:
                while (message := await events.event()) is not None:
                    self.take(message)
                    last_id = events.last_id
                retry_s = events.retry_ms / 1000
            await asyncio.sleep(retry_s)

    async def poll(self) -> None:
        while True:
            answer = await request(self.port, f"/poll?cursor={self.cursor}")
            if answer.status == 503:
                self.codes[503] += 1
                await asyncio.sleep(float(answer.headers["retry-after"]))
                continue
            assert answer.status == 200
            assert "reset" not in answer.json
            for event in answer.json["events"]:
                self.take(event)
            if answer.headers.get("connection") == "close":
                self.codes[1012] += 1


async def test_a_rolling_restart_of_many_clients_loses_nothing(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    settings = {"DRAIN_TIMEOUT": str(DRAIN_S), "MAX_CONNECTIONS": str(2 * CLIENTS)}
    loop = asyncio.get_running_loop()
    async with (
        switch() as between,
        process(migrated.url, **settings) as first,
        process(migrated.url, **settings) as second,
    ):
        await first.wait_for("connected to Postgres")
        await second.wait_for("connected to Postgres")
        between.target = first.ws_port
        followers = [Follower(between.port) for _ in range(CLIENTS)]
        ways = (Follower.websocket, Follower.sse, Follower.websocket, Follower.poll)
        tasks = [asyncio.create_task(ways[place % 4](each)) for place, each in enumerate(followers)]
        published = 0

        async def publish_until(condition: Any) -> None:
            nonlocal published
            async with asyncio.timeout(2 * PATIENCE_S):
                while not condition():
                    await publish(connection, 2)
                    published += 2
                    await asyncio.sleep(0.02)
                    for task in tasks:
                        if task.done():
                            task.result()

        await publish_until(lambda: all(len(each.ids) >= 5 for each in followers))
        between.target = second.ws_port
        between.arrivals.clear()
        told = loop.time()
        first.send(signal.SIGTERM)
        ended = asyncio.create_task(first.end())
        await publish_until(ended.done)
        assert ended.result() == 0
        assert loop.time() - told < GRACE_S
        moved = [arrival - told for arrival in between.arrivals]
        await publish_until(lambda: all(each.cursor >= published - 20 for each in followers))
        async with asyncio.timeout(PATIENCE_S):
            while not all(each.cursor == published for each in followers):
                await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    expected = list(range(1, published + 1))
    for each in followers:
        assert each.ids == expected
        assert set(each.codes) <= {1012, 503}
    # Each stream and WebSocket gets one close; a poll gets one, or was between two requests.
    assert sum(each.codes[1012] for place, each in enumerate(followers) if place % 4 != 3) == CLIENTS * 3 // 4
    # They are closed over the whole drain time, not together.
    assert sum(moment > DRAIN_S / 2 for moment in moved) >= CLIENTS / 8
    busiest = max(Counter(int(moment / DRAIN_S * 10) for moment in moved).values())
    assert busiest < len(moved) / 2
