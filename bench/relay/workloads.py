"""The workloads. All times are from one monotonic clock, in the process of the clients."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import asyncpg

from .client import Client
from .figures import percentile
from .peers import Server, publish_rows

SILENCE_S = 20.0
"""A server that sends nothing for so long has lost what is missing."""
CONNECT_AT_ONCE = 100
SETTLE_S = 0.1
"""Some servers confirm a subscription before it begins."""


@dataclass(frozen=True)
class Size:
    """The size of the workloads."""

    fan_out: tuple[tuple[int, int, int], ...]
    """Clients, events and repetitions: short measurements are repeated."""
    catch_up: int
    catch_ups: int
    rates: tuple[int, ...]
    """Events a second."""
    seconds: float
    """How long events are published at each rate."""
    crowd: int
    """The number of clients for the measurements of memory and of a simultaneous reconnect."""


FULL = Size(((1, 20_000, 5), (10, 10_000, 3), (500, 2_000, 1)), 100_000, 3, (100, 500), 5.0, 1_000)
QUICK = Size(((1, 2_000, 1), (10, 1_000, 1), (50, 200, 1)), 5_000, 1, (100,), 1.0, 50)


class Wrong(AssertionError):
    """A server did not deliver all events correctly, so its figures are invalid."""


@dataclass
class Feed:
    """One user's events: numbers and publishes them, and passes them to servers that do not read the log."""

    connection: asyncpg.Connection
    user: str
    server: Server
    last: int = 0

    def next_numbers(self, count: int) -> list[int]:
        numbers = list(range(self.last + 1, self.last + count + 1))
        self.last += count
        return numbers

    async def publish(self, numbers: list[int]) -> float:
        """Publish in one transaction, and return the time of its commit."""
        await publish_rows(self.connection, self.user, numbers)
        committed = time.perf_counter()
        if self.server.push is not None:
            await self.server.push(numbers)
        return committed

    async def analyze(self) -> None:
        """Gather statistics, as autovacuum does later. Without them, Postgres may read the whole table for a page."""
        await self.connection.execute("analyze userrealtime.event")


@contextlib.asynccontextmanager
async def crowd(server: Server, count: int) -> AsyncIterator[list[Client]]:
    """Yield this number of subscribed clients. The first one checks what it receives."""
    clients: list[Client] = []
    try:
        for start in range(0, count, CONNECT_AT_ONCE):
            clients += await asyncio.gather(
                *(
                    Client.connect(server.dialect, server.port, check=number == 0)
                    for number in range(start, min(start + CONNECT_AT_ONCE, count))
                )
            )
        await asyncio.sleep(SETTLE_S)
        yield clients
    finally:
        for client in clients:
            client.abort()
        await asyncio.sleep(0.2)


async def fan_out(server: Server, feed: Feed, clients: int, events: int) -> tuple[float]:
    """Return the messages per second of all clients, from the commit to the last byte at the last client.

    The response to the commit may be read after the first event: then the time begins with that event.
    """
    async with crowd(server, clients) as connected:
        numbers = feed.next_numbers(events)
        waiting = [asyncio.ensure_future(client.received(events, SILENCE_S)) for client in connected]
        committed = await feed.publish(numbers)
        await asyncio.gather(*waiting)
        took = time.perf_counter() - min(committed, *(client.first_at for client in connected))
        _check(connected[0], numbers)
    return (clients * events / took,)


async def catch_up(server: Server, feed: Feed, count: int) -> tuple[float]:
    """Return the events per second to one client that missed `count` events, from the request to the last byte."""
    since = feed.last - count
    began = time.perf_counter()
    client = await Client.connect(server.dialect, server.port, check=True, since=since)
    try:
        await client.received(count, SILENCE_S)
        took = time.perf_counter() - began
    finally:
        client.abort()
    _check(client, list(range(since + 1, feed.last + 1)))
    return (count / took,)


async def latency(server: Server, feed: Feed, rate: int, seconds: float) -> tuple[float, float]:
    """Return the median and the 99th percentile of the ms from the start of an event's transaction to its arrival."""
    async with crowd(server, 1) as (client,):
        client.started = {}
        count = int(rate * seconds)
        began = time.perf_counter()
        for turn, number in enumerate(feed.next_numbers(count)):
            await asyncio.sleep(max(0.0, began + turn / rate - time.perf_counter()))
            client.started[number] = time.perf_counter()
            await feed.publish([number])
        await client.received(count, SILENCE_S)
        times = [1000 * value for value in client.latencies]
    if len(times) != count:
        raise Wrong(f"{server.name}: {len(times)} of {count} events were timed")
    return percentile(times, 50), percentile(times, 99)


async def memory(server: Server, clients: int) -> tuple[float, float]:
    """Return the resident MiB without connections, and the KiB for each idle connection."""
    await asyncio.sleep(0.5)
    idle = server.rss_mib()
    async with crowd(server, clients):
        await asyncio.sleep(0.5)
        full = server.rss_mib()
    return idle, (full - idle) * 1024 / clients


async def storm(server: Server, feed: Feed, count: int, missed: int = 100) -> tuple[float, float]:
    """Disconnect all clients, publish events, and reconnect all clients together.

    Returns:
        The seconds until all clients have received the missed events, and the share of events that never arrived.
    """
    async with crowd(server, count):
        pass
    since = feed.last
    await feed.publish(feed.next_numbers(missed))
    began = time.perf_counter()

    clients: list[Client] = []

    async def back() -> None:
        client = await Client.connect(server.dialect, server.port, since=since)
        clients.append(client)
        await client.received(missed, SILENCE_S)

    try:
        await asyncio.gather(*(back() for _ in range(count)), return_exceptions=True)
        took = time.perf_counter() - began
        if max(client.events for client in clients) > missed:
            raise Wrong("a client got an event twice")
        return took, 1 - sum(client.events for client in clients) / (count * missed)
    finally:
        for client in clients:
            client.abort()


def _check(client: Client, numbers: list[int]) -> None:
    if client.numbers != numbers:
        raise Wrong(f"a client did not get every event once, in order: {len(client.numbers)} of {len(numbers)}")
