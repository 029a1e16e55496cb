"""An announcer in the event loop of the test, and fake relays that record their wake-ups."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Self

import asyncpg
from prometheus_client import CollectorRegistry

from testing import patience
from userrealtime_core.announcer import Announcer, Broadcaster, BroadcastMetrics, Metrics
from userrealtime_core.secret import Secret
from userrealtime_core.wire.broadcast import Broadcast
from userrealtime_core.wire.position import LogMoved

PATIENCE_S = patience.PATIENCE_S
NAME = "test-announcer"
PREFIX = "test"


class Running:
    """A running loop, and its metrics."""

    def __init__(self, registry: CollectorRegistry, lease: str) -> None:
        self._registry = registry
        self._lease = lease

    def metric(self, name: str) -> float:
        value = self._registry.get_sample_value(f"{PREFIX}_{name}")
        assert value is not None, name
        return value

    @property
    def leased(self) -> bool:
        return self.metric(self._lease) == 1


class Announcing(Running):
    """A running announcer, and the heads that it has reported."""

    def __init__(self, announcer: Announcer, registry: CollectorRegistry, heads: dict[str, int]) -> None:
        super().__init__(registry, "announcer_leased")
        self.announcer = announcer
        self.heads = heads


class Broadcasting(Running):
    """A running broadcaster, and what it has reported for the broker."""

    def __init__(self, broadcaster: Broadcaster, registry: CollectorRegistry, reported: list[Broadcast]) -> None:
        super().__init__(registry, "broadcast_leased")
        self.broadcaster = broadcaster
        self.reported = reported


@asynccontextmanager
async def _connected(loop: Announcer | Broadcaster) -> AsyncIterator[None]:
    """Run a loop; yield when it has reached its queue."""
    task = asyncio.create_task(loop.run())
    try:
        await until(lambda: loop.connected or task.done())
        if task.done():
            task.result()
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def announcing(url: str) -> AsyncIterator[Announcing]:
    """Run an announcer; yield it when it has read the queue."""
    registry, heads = CollectorRegistry(), dict[str, int]()

    def report(moved: Sequence[LogMoved]) -> None:
        for user_id, position in moved:
            heads[user_id] = max(position.head, heads.get(user_id, 0))

    announcer = Announcer(Secret(url), NAME, Metrics(registry, PREFIX), report)
    async with _connected(announcer):
        yield Announcing(announcer, registry, heads)


@asynccontextmanager
async def broadcasting(url: str, name: str = NAME) -> AsyncIterator[Broadcasting]:
    """Run a broadcaster; yield it when it waits for broadcasts."""
    registry, reported = CollectorRegistry(), list[Broadcast]()
    broadcaster = Broadcaster(Secret(url), name, BroadcastMetrics(registry, PREFIX), reported.extend)
    async with _connected(broadcaster):
        yield Broadcasting(broadcaster, registry, reported)


@asynccontextmanager
async def hearing_broadcasts(url: str, user: str = "alice") -> AsyncIterator[list[str]]:
    """Receive the broadcasts of a user as a relay that listens does; yield the list of their texts."""
    connection, heard = await asyncpg.connect(url), list[str]()

    def receive(_connection: object, _pid: int, _channel: str, payload: object) -> None:
        heard.append(str(payload).partition(" ")[2])

    await connection.execute("select userrealtime.attend($1, 'pod', true)", user)
    await connection.add_listener(await connection.fetchval("select userrealtime.broadcast_channel($1)", user), receive)
    try:
        yield heard
    finally:
        await connection.close()


class Listener:
    """A relay that listens for one user: it counts its wake-ups, and reads the head at each."""

    def __init__(self, connection: asyncpg.Connection, user: str) -> None:
        self._connection = connection
        self._user = user
        self.wakes = 0
        self.head = 0
        self._woken = asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def listening(cls, url: str, user: str) -> AsyncIterator[Self]:
        """Start in the order of a real relay: report, listen, read."""
        connection = await asyncpg.connect(url)
        listener = cls(connection, user)
        await connection.execute("select userrealtime.attend($1, 'pod', true)", user)
        channel = await connection.fetchval("select userrealtime.channel($1)", user)
        await connection.add_listener(channel, listener._notified)
        task = asyncio.create_task(listener._read())
        try:
            yield listener
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await connection.close()

    def _notified(self, *_: object) -> None:
        self.wakes += 1
        self._woken.set()

    async def _read(self) -> None:
        while True:
            self._woken.clear()
            query = "select coalesce((select head from userrealtime.log where user_id = $1), 0)"
            self.head = await self._connection.fetchval(query, self._user)
            await self._woken.wait()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.005)


async def until_async(condition: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await condition():
            await asyncio.sleep(0.02)


async def publish(connection: asyncpg.Connection, user: str = "alice") -> None:
    await connection.execute("select userrealtime.publish($1, 'test')", user)


async def make_busy(connection: asyncpg.Connection, running: Announcing) -> None:
    """Ring until the announcer polls."""
    async with asyncio.timeout(PATIENCE_S):
        while not running.leased:
            await connection.execute("select pg_notify('userrealtime_doorbell', n::text) from generate_series(1, 8) n")
            await asyncio.sleep(0.005)


async def make_quiet(running: Announcing) -> None:
    """Wait until the announcer has released the lease."""
    await until(lambda: not running.leased)
