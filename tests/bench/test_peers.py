"""The servers of the benchmark are correct: the load client receives each event once, with each protocol."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import asyncpg
import pytest

from bench.relay.client import Client
from bench.relay.dialects import PROTOCOLS
from bench.relay.install import Unavailable
from bench.relay.peers import PEERS, Server, running, through
from bench.relay.workloads import Feed, crowd
from testing.database import Database
from testing.patience import PATIENCE_S

USER = "peers"
BEFORE = 20
EVENTS = 1_500
CLIENTS = 200
LIMIT_S = PATIENCE_S


@contextlib.asynccontextmanager
async def publishing(feed: Feed) -> AsyncIterator[None]:
    """Publish one event after another while the block runs."""
    stop = asyncio.Event()

    async def publish() -> None:
        while not stop.is_set():
            await feed.publish(feed.next_numbers(1))
            await asyncio.sleep(0.001)

    task = asyncio.create_task(publish())
    try:
        yield
    finally:
        stop.set()
        await task


async def prepared(name: str, database: Database, stack: contextlib.AsyncExitStack) -> Server:
    """Return a peer that is running until the stack is closed."""
    peer = next(peer for peer in PEERS if peer.name == name)
    try:
        command = peer.prepare()
    except Unavailable as error:
        pytest.skip(str(error))
    return await stack.enter_async_context(running(peer, command, database.url, USER, None))


async def resumed(server: Server, feed: Feed) -> tuple[int, Client]:
    """Return the position of a client that resumes a few events ago, and the client."""
    since = feed.last - BEFORE
    return since, await Client.connect(server.dialect, server.port, check=True, since=since)


@pytest.mark.parametrize("name", ["ws", "Socket.IO"])
async def test_clients_that_come_while_events_do_get_each_once(
    name: str, migrated: Database, connection: asyncpg.Connection
) -> None:
    clients: list[tuple[int, Client]] = []
    try:
        async with contextlib.AsyncExitStack() as stack:
            server = await prepared(name, migrated, stack)
            feed = Feed(connection, USER, server)
            await feed.publish(feed.next_numbers(BEFORE))
            async with publishing(feed):
                for _ in range(CLIENTS // 10):
                    clients += await asyncio.gather(*(resumed(server, feed) for _ in range(10)))
            with contextlib.suppress(TimeoutError):  # reported below
                async with asyncio.timeout(LIMIT_S):
                    for since, client in clients:
                        await client.received(feed.last - since, LIMIT_S)
            await asyncio.sleep(0.2)  # a duplicate may arrive late
            wrong = sum(client.numbers != list(range(since + 1, feed.last + 1)) for since, client in clients)
            assert wrong == 0, f"{wrong} of {CLIENTS} clients, of events up to {feed.last}"
    finally:
        for _, client in clients:
            client.abort()


@pytest.mark.parametrize("name", [*(through(protocol.name) for protocol in PROTOCOLS), "durable-streams"])
async def test_clients_of_other_protocols_get_each_event_once(
    name: str, migrated: Database, connection: asyncpg.Connection
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        server = await prepared(name, migrated, stack)
        feed = Feed(connection, USER, server)
        clients = await stack.enter_async_context(crowd(server, 3))
        await feed.publish(feed.next_numbers(EVENTS))
        async with asyncio.timeout(LIMIT_S):
            for client in clients:
                await client.received(EVENTS, LIMIT_S)
        assert clients[0].numbers == list(range(1, EVENTS + 1))
