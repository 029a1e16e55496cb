"""Users that are parked and woken at random, by two activators that end at random: every client has every event once.

The clients use all three transports, and reconnect as the documentation asks for: with the last id and its epoch.
"""

# ruff: noqa: S311 (nothing here is secret)

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import urlencode
from uuid import uuid4

import asyncpg
import pytest
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from testing.database import Database
from testing.operator.activator import SERVICE, resource, secret
from testing.relay.harness import KEY, PATIENCE_S, USER, client, publish, running, until
from testing.relay.http_client import request, stream
from userrealtime_core.relay_settings import RelaySettings
from userrealtime_core.secret import Secret
from userrealtime_operator.activator.metrics import Metrics
from userrealtime_operator.activator.parking.heads import Heads
from userrealtime_operator.activator.parking.parking import Parking
from userrealtime_operator.activator.pods import Pod
from userrealtime_operator.activator.proxy.admission import Admission, Limits
from userrealtime_operator.activator.proxy.origins import Origins
from userrealtime_operator.activator.proxy.proxy import ActivatorProxy
from userrealtime_operator.activator.routes import Route, RouteTable
from userrealtime_operator.activator.tokens import Tokens
from userrealtime_operator.activator.wakes import Wakes
from userrealtime_operator.kube.types import NamespacedName
from userrealtime_relay.notify.listen import listen

ALICE: Final = NamespacedName("users", "alice")
STEPS: Final = 25
LOST: Final = (OSError, EOFError, TimeoutError, ConnectionClosed, InvalidHandshake, ValueError)


class World:
    """A user with a relay or without one, and two activators. Implements `wakes.Cluster`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.parked = False
        self.parks = self.wakes = 0
        self.activators: list[Activator] = []
        self._pod: Pod | None = None
        self._relay = contextlib.AsyncExitStack()
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()
        self._starts = 0

    async def request_wake(self, route: Route) -> bool:
        await self.wake()
        return True

    async def wake(self) -> None:
        """Start a relay, as the operator does."""
        async with self._turn:
            if self._pod is not None:
                return
            self._set_parked(False)
            self.wakes += 1
            self._starts += 1
            settings = {"INSTANCE": f"pod-{self._starts}", "DRAIN_TIMEOUT": "0.2"}
            relay = await self._relay.enter_async_context(running(self.url, listen, **settings))
            self._pod = Pod(True, "", ("127.0.0.1", relay.ws_port))
            self._changed.set()
            self._changed.clear()

    async def park(self) -> None:
        """End the relay, as the operator does with a user whose clients are quiet."""
        async with self._turn:
            if self._pod is None:
                return
            self.parks += 1
            self._set_parked(True)
            await self._stop()

    async def close(self) -> None:
        async with self._turn:
            await self._stop()

    async def _stop(self) -> None:
        self._pod = None
        # As preStop: the pod accepts connections until no proxy uses its address.
        await asyncio.sleep(0.3)
        await self._relay.aclose()

    def _set_parked(self, parked: bool) -> None:
        self.parked = parked
        if not parked:
            for each in self.activators:
                each.parking.unpark(ALICE)

    def has_pod(self, _: Route) -> bool:
        return self._pod is not None

    def pod(self, _: Route) -> Pod | None:
        return self._pod

    async def wait_for_change(self, _: Route) -> None:
        await self._changed.wait()

    def register_address(self, route: Route, ip: str) -> None:
        raise AssertionError("no pod announces itself here")

    def port(self) -> int:
        """Return where a new connection arrives."""
        if self._pod is not None and random.random() < 0.7:
            return self._pod.address[1]
        return random.choice(self.activators).port


class Activator:
    """One activator, which can be killed: its reports to the database stay."""

    def __init__(self, world: World, name: str) -> None:
        async def read(_: Route) -> dict[str, Any]:
            return secret(KEY)

        routes, metrics, settings = RouteTable(), Metrics(), RelaySettings.from_environment({"PING_INTERVAL": "1"})
        routes.put(resource(url="http://127.0.0.1"))
        tokens, limits = Tokens(settings, read), Limits()
        self.heads = Heads(Secret(world.url), name, Parking.wake)
        self.parking = Parking(self.heads, tokens, lambda _: world.parked, settings, metrics)
        admission = Admission(routes, Origins(()), tokens, limits)
        self._proxy = ActivatorProxy(admission, Wakes(world, metrics), metrics, limits.idle_s, self.parking)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def port(self) -> int:
        return self._proxy.port

    async def start(self) -> None:
        self._tasks = [asyncio.create_task(work) for work in (self.heads.run(), self.parking.run())]
        await self._proxy.listen("127.0.0.1", 0)
        await until(lambda: self.heads.connected)

    async def kill(self) -> None:
        for task in self._tasks:
            task.cancel()
        await self._proxy.drain(0)


class Reader:
    """A client that reconnects. `ids` are the events that it has received."""

    def __init__(self, world: World, epoch: str, receive_some: Callable[[Reader], Awaitable[None]]) -> None:
        self.world = world
        self.epoch = epoch
        self.ids: list[int] = []
        self.errors: list[object] = []
        self.sent = 0
        self._receive_some = receive_some

    @property
    def cursor(self) -> int:
        return self.ids[-1] if self.ids else 0

    def handle(self, message: dict[str, Any]) -> None:
        if message["type"] == "event":
            self.ids.append(message["id"])
        elif (message["type"] == "connected" and message["cursor"] != self.cursor) or message["type"] == "reset":
            self.errors.append(message)

    async def run(self) -> None:
        while True:
            with contextlib.suppress(*LOST):
                await self._receive_some(self)
            await asyncio.sleep(random.uniform(0, 0.1))


async def by_websocket(reader: Reader) -> None:
    position: dict[str, Any] = {"last_event_id": str(reader.cursor), "epoch": reader.epoch}
    async with client(reader.world.port(), **position) as connection:
        until_drop = asyncio.get_running_loop().time() + random.uniform(0.5, 5)
        while asyncio.get_running_loop().time() < until_drop:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    reader.handle(json.loads(await connection.recv()))
            if random.random() < 0.05:
                reader.sent += 1
                await connection.send(json.dumps({"type": "publish", "ref": str(uuid4()), "event": "x"}))
        connection.transport.abort()


async def by_stream(reader: Reader) -> None:
    headers = {**SERVICE, "Last-Event-ID": f"{reader.cursor}:{reader.epoch}"}
    async with asyncio.timeout(random.uniform(0.5, 5)), stream(reader.world.port(), headers=headers) as events:
        if events.answer.status == 200:
            while (message := await events.event()) is not None:
                reader.handle(message)


async def by_poll(reader: Reader) -> None:
    query = urlencode({"cursor": reader.cursor, "epoch": reader.epoch, "timeout": 1})
    answer = await request(reader.world.port(), f"/poll?{query}", headers=SERVICE)
    if answer.status == 200:
        if "reset" in answer.json:
            reader.errors.append(answer.json)
        for event in answer.json["events"]:
            reader.handle(event)


@asynccontextmanager
async def world_of(database: Database, connection: asyncpg.Connection) -> AsyncIterator[tuple[World, list[Reader]]]:
    await connection.execute(
        "insert into userrealtime.registration (resource, scope, user_id) values ($1, 'here/users', $2)", uuid4(), USER
    )
    await publish(connection)
    epoch = await connection.fetchval("select epoch from userrealtime.log where user_id = $1", USER)
    world = World(database.url)
    readers = [Reader(world, epoch, receive_some) for receive_some in (by_websocket, by_websocket, by_stream, by_poll)]
    for name in ("first", "second"):
        world.activators.append(Activator(world, name))
        await world.activators[-1].start()
    await world.wake()
    tasks = [asyncio.create_task(reader.run()) for reader in readers]
    try:
        yield world, readers
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for each in world.activators:
            await each.kill()
        await world.close()


async def take_step(world: World, connection: asyncpg.Connection, number: int) -> None:
    match random.choices(("publish", "park", "wake", "kill", "disconnect", "wait"), weights=(6, 6, 1, 1, 1, 3)):
        case ["publish"]:
            await publish(connection, random.randint(1, 3))
        case ["park"]:
            await world.park()
        case ["wake"]:
            await world.wake()
        case ["kill"]:
            replaced = random.randrange(2)
            other = Activator(world, f"next-{number}")
            await other.start()
            killed, world.activators[replaced] = world.activators[replaced], other
            await killed.kill()
        case ["disconnect"]:
            await connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where application_name = 'userrealtime-activator' and datname = current_database()"
            )
    await asyncio.sleep(random.uniform(0, 0.6))


@pytest.mark.parametrize("seed", range(1, 4))
async def test_every_client_has_every_event_once(migrated: Database, connection: asyncpg.Connection, seed: int) -> None:
    random.seed(seed)
    async with world_of(migrated, connection) as (world, readers):
        for number in range(STEPS):
            await take_step(world, connection, number)
        last = await connection.fetchval("select head from userrealtime.log where user_id = $1", USER)
        async with asyncio.timeout(PATIENCE_S):
            while any(reader.cursor != last for reader in readers):
                assert not any(reader.errors for reader in readers), [reader.errors for reader in readers]
                await asyncio.sleep(0.05)
        for reader in readers:
            assert reader.ids == list(range(1, last + 1))
            assert reader.errors == []
        assert world.parks > 0
        assert world.wakes > 1
