"""The latency of a client with a valid token, while clients without a token work against the relay and the activator.

`python -m bench.strangers` prints one line for each process: the p50 and p99 of the client, first without strangers and
then with 100 open connections without a token, and one more that sends 0.4 MB/s of chunks of a single byte.
The goal is a p99 within twice the idle value. Every process runs on its own, so the measured client shares a CPU with
them on a small machine.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import multiprocessing
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

import asyncpg
import jwt
from websockets.asyncio.client import connect

from bench.durable import durable_postgres
from bench.relay.figures import figure, percentile
from testing.local.relay import running_relay
from userrealtime_core.relay_settings import RelaySettings
from userrealtime_operator.activator.metrics import Metrics
from userrealtime_operator.activator.pods import Pod
from userrealtime_operator.activator.proxy.admission import Admission, Limits
from userrealtime_operator.activator.proxy.origins import Origins
from userrealtime_operator.activator.proxy.proxy import ActivatorProxy
from userrealtime_operator.activator.routes import Route, RouteTable
from userrealtime_operator.activator.tokens import Tokens
from userrealtime_operator.activator.wakes import Wakes
from userrealtime_operator.postgres.migrate import migrate

USER: Final = "alice"
OPEN_CONNECTIONS: Final = 100
CHUNK_RATE: Final = 400_000
"""Bytes per second of 1-byte chunks."""
CHUNKS: Final = b"1\r\nx\r\n" * 3_000
PER_SECOND: Final = 20
"""The rate of measurements: far below the limit of either process."""
SETTLE_S: Final = 2.0
LIMIT_S: Final = 60.0
HANDSHAKE: Final = (
    b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
STARTS: Final = (b"", b"GET /poll HTTP/1.1\r\nX: ", HANDSHAKE)
"""The bytes that an open connection sends: none, half a head, or a request for a WebSocket."""


def hold_connections(port: int) -> None:
    """Keep `OPEN_CONNECTIONS` connections open, and open each again when it is closed. Never returns."""

    async def hold(start: bytes) -> None:
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(start)
                while await reader.read(1000):
                    pass
                writer.close()
            await asyncio.sleep(0.1)

    async def hold_all() -> None:
        await asyncio.gather(*(hold(STARTS[number % len(STARTS)]) for number in range(OPEN_CONNECTIONS)))

    asyncio.run(hold_all())


def send_chunks(port: int) -> None:
    """Send 1-byte chunks without a token, on a new connection whenever one is closed. Never returns."""
    due = time.monotonic()
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as connection:
            connection.sendall(b"POST /publish HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n")
            while True:
                connection.sendall(CHUNKS)
                due = max(due, time.monotonic() - 1) + len(CHUNKS) / CHUNK_RATE
                time.sleep(max(0.0, due - time.monotonic()))
        time.sleep(0.01)


@contextmanager
def strangers(port: int) -> Iterator[None]:
    """Run clients without a token, in two processes, while the block runs."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=work, args=(port,), daemon=True) for work in (hold_connections, send_chunks)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


class OnePod:
    """A cluster with one user, whose pod always exists."""

    def __init__(self, port: int) -> None:
        self._pod = Pod(True, "", ("127.0.0.1", port))

    async def request_wake(self, route: Route) -> bool:
        return False  # the pod is there

    def has_pod(self, _: Route) -> bool:
        return True

    def pod(self, _: Route) -> Pod:
        return self._pod

    async def wait_for_change(self, _: Route) -> None:
        await asyncio.Event().wait()

    def register_address(self, route: Route, ip: str) -> None:
        """The pod is there."""


def run_activator(relay_port: int, key: str, port: Any) -> None:
    """Run an activator in front of one relay. Sends its port, and never returns."""

    async def read(_: Route) -> dict[str, Any]:
        return {"data": {"TOKEN_KEY": base64.b64encode(key.encode()).decode()}}

    async def serve() -> None:
        routes = RouteTable()
        routes.put(
            {
                "metadata": {"namespace": "users", "name": USER},
                "spec": {"userId": USER},
                "status": {"name": f"urt-{USER}", "url": "http://127.0.0.1"},
            }
        )
        metrics, common = Metrics(), RelaySettings.from_environment({})
        wakes = Wakes(OnePod(relay_port), metrics)
        limits = Limits()
        admission = Admission(routes, Origins(()), Tokens(common, read), limits)
        proxy = ActivatorProxy(admission, wakes, metrics, limits.idle_s)
        await proxy.listen("127.0.0.1", 0)
        port.send(proxy.port)
        await asyncio.Event().wait()

    asyncio.run(serve())


@asynccontextmanager
async def activator(relay_port: int, key: str) -> AsyncIterator[int]:
    """Run an activator in a separate process; yield its port."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=run_activator, args=(relay_port, key, theirs), daemon=True)
    process.start()
    try:
        if not await asyncio.to_thread(ours.poll, LIMIT_S):
            raise TimeoutError("the activator did not start")
        yield ours.recv()
    finally:
        process.kill()
        process.join()


async def measure(once: Callable[[], Awaitable[None]], seconds: float) -> list[float]:
    """Return the milliseconds of each call, at `PER_SECOND` calls per second."""
    found = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.perf_counter()
        async with asyncio.timeout(LIMIT_S):
            await once()
        found.append(1000 * (time.perf_counter() - began))
        await asyncio.sleep(1 / PER_SECOND)
    return found


async def compare(name: str, port: int, once: Callable[[], Awaitable[None]], seconds: float) -> None:
    """Measure a process and print a line: without strangers, and with them."""
    await measure(once, SETTLE_S)
    idle = await measure(once, seconds)
    with strangers(port):
        await asyncio.sleep(SETTLE_S)
        busy = await measure(once, seconds)
    cells = [figure(percentile(values, percent)) for values in (idle, busy) for percent in (50, 99)]
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


async def run(seconds: float) -> None:
    key = secrets.token_urlsafe(32)
    token = jwt.encode({"sub": USER, "exp": int(time.time()) + 3600}, key, algorithm="HS256")
    authorization = {"Authorization": f"Bearer {token}"}
    with durable_postgres() as server:
        await migrate(server.url())
        database = await asyncpg.connect(server.url())
        async with running_relay({"USER_ID": USER, "DATABASE_URL": server.url(), "TOKEN_KEY": key}) as relay:
            print("| | idle: p50, ms | p99, ms | with strangers: p50, ms | p99, ms |", flush=True)
            print("|---|---|---|---|---|", flush=True)
            url = f"ws://127.0.0.1:{relay}/ws"
            async with connect(url, additional_headers=authorization, ping_interval=None) as client:
                await client.recv()

                async def receive_event() -> None:
                    await database.execute("select userrealtime.publish($1, 'bench', '{}')", USER)
                    await client.recv()

                await compare("relay: publish to receipt over a WebSocket", relay, receive_event, seconds)

            async with activator(relay, key) as port:

                async def poll() -> None:
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                    head = f"GET /poll HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n\r\n"
                    writer.write(head.encode())
                    answer = await reader.read()
                    writer.close()
                    if not answer.startswith(b"HTTP/1.1 200 "):
                        raise ConnectionError(f"a poll with a valid token was answered with {answer[:60]!r}")

                await compare("activator: a poll on a new connection", port, poll, seconds)
        await database.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20, help="of each measurement (default: %(default)s)")
    asyncio.run(run(parser.parse_args().seconds))


if __name__ == "__main__":
    main()
