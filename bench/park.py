"""The memory and the CPU of parked connections on one activator, with a PostgreSQL on loopback.

`python -m bench.park` parks 10,000 WebSockets, each of another user, and prints one line for each figure. The goals are
20 KiB of memory and 5 µs of CPU a second for a connection, and less than 512 MiB for the process.
At the end, events are published to some of the users, to measure the time from their commit to the wake.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import logging
import multiprocessing
import os
import resource
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, cast

import asyncpg
import jwt
from prometheus_client import CollectorRegistry

from bench.durable import durable_postgres
from bench.relay.figures import figure, percentile
from userrealtime_core.announcer import Announcer
from userrealtime_core.announcer import Metrics as AnnouncerMetrics
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
from userrealtime_operator.postgres.migrate import migrate

EPOCH: Final = "e"
AT_ONCE: Final = 50
"""How many clients connect at the same time."""
LIMIT_S: Final = 600.0
WAKES: Final = 200
HANDSHAKE: Final = (
    "GET /{name}/ws?last_event_id=0&epoch={epoch} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\n"
    "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    "Authorization: Bearer {token}\r\n\r\n"
)
PONG: Final = b"\x8a\x80\x00\x00\x00\x00"
MESSAGE: Final = b'{"type":"ping"}'
PING_MESSAGE: Final = bytes((0x81, 0x80 | len(MESSAGE), 0, 0, 0, 0)) + MESSAGE
MESSAGE_S: Final = 25.0
"""How often our clients send this message while nothing arrives."""
STEPS: Final = 50


def user_name(number: int) -> str:
    """Return the id of a user, which is also the name of its objects."""
    return f"user-{number}"


class Wakeful:
    """A cluster without pods. It sends the user and the time of each wake request, which then fails."""

    def __init__(self, woken: Any) -> None:
        self._woken = woken

    async def request_wake(self, route: Route) -> bool:
        self._woken.send((route.user_id, time.time()))
        raise OSError("no pod can start here")  # otherwise later wakes would wait for the end of this one

    def has_pod(self, _: Route) -> bool:
        return False

    def pod(self, _: Route) -> Pod | None:
        return None

    async def wait_for_change(self, _: Route) -> None:
        await asyncio.Event().wait()

    def register_address(self, route: Route, ip: str) -> None:
        """No pod announces itself."""


def run_activator(url: str, key: str, users: int, pipe: Any) -> None:
    """Run an activator whose users are all parked. Sends its port, and never returns."""
    logging.disable(logging.WARNING)  # every wake fails

    async def read(_: Route) -> dict[str, Any]:
        return {"data": {"TOKEN_KEY": base64.b64encode(key.encode()).decode()}}

    async def serve() -> None:
        routes = RouteTable()
        for name in map(user_name, range(users)):
            routes.put(
                {
                    "metadata": {"namespace": "users", "name": name},
                    "spec": {"userId": name},
                    "status": {"name": name, "url": f"http://127.0.0.1/{name}"},
                }
            )
        metrics, common = Metrics(), RelaySettings.from_environment({})
        tokens, limits = Tokens(common, read), Limits()
        heads = Heads(Secret(url), "bench", Parking.wake)
        parking = Parking(heads, tokens, lambda _: True, common, metrics)
        admission = Admission(routes, Origins(()), tokens, limits)
        proxy = ActivatorProxy(admission, Wakes(Wakeful(pipe), metrics), metrics, limits.idle_s, parking)
        await proxy.listen("127.0.0.1", 0)
        async with asyncio.TaskGroup() as group:
            group.create_task(heads.run())
            group.create_task(parking.run())
            while not heads.connected:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            pipe.send(proxy.port)

    asyncio.run(serve())


@asynccontextmanager
async def activator(url: str, key: str, users: int) -> AsyncIterator[tuple[int, int, Any]]:
    """Run an activator in a separate process; yield its process id, its port and the pipe of its wake requests."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=run_activator, args=(url, key, users, theirs), daemon=True)
    process.start()
    try:
        if not await asyncio.to_thread(ours.poll, LIMIT_S):
            raise TimeoutError("the activator did not start")
        yield cast(int, process.pid), ours.recv(), ours
    finally:
        process.kill()
        process.join()


class ParkedClient(asyncio.Protocol):
    """A client that answers pings. `greeted` is done when it has received `connected`."""

    def __init__(self, request: bytes) -> None:
        self.greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.open = True
        self.pings = 0
        self._request = request
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if not self.greeted.done():
            self._received += data
            if b'"connected"' in self._received:
                self.greeted.set_result(None)
                self._received = b""
        # The greeting does not contain these bytes, but a ping may follow it in the same piece.
        pings = data.count(b"\x89\x00")
        self.pings += pings
        if pings:
            self._transport.write(PONG * pings)

    def send_message(self) -> None:
        """Send a ping of the protocol, as our clients do."""
        self._transport.write(PING_MESSAGE)

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        if not self.greeted.done():
            self.greeted.set_exception(ConnectionResetError(repr(self._received[:200])))


async def connect_all(port: int, key: str, users: int) -> list[ParkedClient]:
    """Connect one client of each user, and wait until all are parked."""
    loop = asyncio.get_running_loop()
    clients: list[ParkedClient] = []

    async def connect_some(numbers: range) -> None:
        for name in map(user_name, numbers):
            token = jwt.encode({"sub": name, "exp": int(time.time()) + 36_000}, key, algorithm="HS256")
            request = HANDSHAKE.format(name=name, epoch=EPOCH, token=token).encode()
            _, client = await loop.create_connection(lambda r=request: ParkedClient(r), "127.0.0.1", port)  # type: ignore[misc]
            clients.append(client)
            await client.greeted

    async with asyncio.timeout(LIMIT_S):
        await asyncio.gather(*(connect_some(range(first, users, AT_ONCE)) for first in range(AT_ONCE)))
    return clients


async def send_messages(clients: list[ParkedClient]) -> None:
    """Send a message from each client once in `MESSAGE_S`. Never returns."""
    while True:
        for step in range(STEPS):
            await asyncio.sleep(MESSAGE_S / STEPS)
            for client in clients[step::STEPS]:
                client.send_message()


def memory(pid: int) -> int:
    """Return the resident memory of a process in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def cpu(pid: int) -> float:
    """Return the seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def wake_some(database: asyncpg.Connection, woken: Any, users: int) -> list[float]:
    """Publish to some users, one after the other; return the milliseconds from each commit to the wake request."""
    found = []
    step = max(1, users // WAKES)
    for number in range(0, users, step):
        await database.execute("select userrealtime.publish($1, 'x')", user_name(number))
        committed = time.time()
        if not await asyncio.to_thread(woken.poll, LIMIT_S):
            raise TimeoutError("an event did not wake its user")
        name, at = woken.recv()
        assert name == user_name(number)  # noqa: S101 (the benchmark is wrong otherwise)
        found.append(1000 * max(0.0, at - committed))
    return found


async def run(users: int, seconds: float) -> None:
    key = secrets.token_urlsafe(32)
    with durable_postgres() as server:
        await migrate(server.url())
        database = await asyncpg.connect(server.url())
        await database.execute(
            "insert into userrealtime.log (user_id, epoch) select 'user-' || n, $2 from generate_series(0, $1 - 1) n",
            users,
            EPOCH,
        )
        await database.execute(
            "insert into userrealtime.registration (resource, scope, user_id) "
            "select gen_random_uuid(), 'bench/users', user_id from userrealtime.log"
        )
        announcer = asyncio.create_task(
            Announcer(Secret(server.url()), "bench", AnnouncerMetrics(CollectorRegistry(), "bench")).run()
        )
        async with activator(server.url(), key, users) as (pid, port, woken):
            before = memory(pid)
            began = time.monotonic()
            clients = await connect_all(port, key, users)
            took = time.monotonic() - began
            messages = asyncio.create_task(send_messages(clients))
            await asyncio.sleep(5)
            parked = await database.fetchval("select count(*) from userrealtime.online where parked > 0")
            pings, used, at = sum(client.pings for client in clients), cpu(pid), time.monotonic()
            await asyncio.sleep(seconds)
            elapsed = time.monotonic() - at
            used = cpu(pid) - used
            pings = sum(client.pings for client in clients) - pings
            after = memory(pid)
            still_open = sum(client.open for client in clients)
            print(f"| parked connections, and users online in SQL | {still_open}, {parked} |")
            print(f"| connections per second while they are parked | {figure(len(clients) / took)} |")
            print(f"| memory of the process without and with them, MiB | {before >> 20}, {after >> 20} |")
            print(f"| memory per connection, KiB | {figure((after - before) / 1024 / users)} |")
            print(f"| CPU per connection, µs a second | {figure(1e6 * used / elapsed / users)} |")
            print(f"| pings per connection, a minute | {figure(60 * pings / elapsed / users)} |", flush=True)
            waits = await wake_some(database, woken, users)
            line = ", ".join(figure(percentile(waits, each)) for each in (50, 99))
            print(f"| from a commit to the wake request, p50 and p99, ms | {line} |", flush=True)
            for task in (announcer, messages):
                task.cancel()
            await asyncio.gather(announcer, messages, return_exceptions=True)
        await database.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.park", description=__doc__)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=60, help="the time over which the CPU is measured")
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    print("| figure | value |\n|---|---|", flush=True)
    asyncio.run(run(options.connections, options.seconds))


if __name__ == "__main__":
    main()
