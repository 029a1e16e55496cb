"""The scalability of each signal: 1 to 2,000 relays, in `listen`, `poll`, `nats` and `redis`, in one run.

`python -m bench.scale` prints the table of docs/scale.md, and draws its lines into docs/scale.svg with `--plot`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import re
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import asyncpg

from bench.durable import DEFAULT_FLUSH_MS, described, durable_postgres, machine
from bench.relay.figures import figure, percentile
from testing.local.brokers import BROKERS
from testing.local.ports import free_port
from testing.local.postgres import LocalPostgres
from userrealtime_operator.postgres.migrate import migrate

from .plot import plot

MODES = ("listen", "poll", "nats", "redis")
COUNTS = (1, 100, 300, 1000, 2000)
CALM_RATES = (20, 100, 500)
"""Events a second at which the latency of every mode is printed."""
BUSY_RATES = (1000, 1500, 2000)
BUSY_P99_MS = 50
"""The limit for the latencies at the busy rates."""
BUSY_TRIES = 3
"""The attempts for a busy rate. Other load, on this machine or on its host, may take seconds of one."""
WRITERS = 16
"""Enough for the busy rates: each waits for the WAL flush at every commit."""
WRITE_TIMEOUT_S = 300
SCRIPT = b"""
\\set number random(0, :users - 1)
select userrealtime.publish('user-' || :number, 'test', '{"text": "hello"}');
"""
START_TIMEOUT_S = 320
DRAIN_S = 20
POSTGRES = {"max_connections": "2300", "shared_buffers": "256MB"}
IDLE_AFTER_S = 8
"""With a broker: the relays' own default is 30, too long for this benchmark."""
T = TypeVar("T")
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Busy:
    """The best try at one of the busy rates. Latencies are in ms, from commit to socket."""

    rate: float
    """The requested events/s."""
    committed: float
    """The committed events/s."""
    p50: float
    p99: float

    @property
    def kept(self) -> bool:
        return self.committed >= 0.95 * self.rate

    @property
    def borne(self) -> bool:
        return self.kept and self.p99 <= BUSY_P99_MS


@dataclass(frozen=True)
class Point:
    """The result of one mode with one number of relays. Latencies are in ms, from commit to socket."""

    mode: str
    relays: int
    rate: float
    """The events/s that were committed without pauses and reached their sockets."""
    calm: dict[int, tuple[float, float]]
    """Median and 99th percentile at each of the calm rates."""
    busy: list[Busy]
    """The busy rates up to and including the first one that was not sustained."""
    connections: int
    """Connections to Postgres after some time without events."""
    quiet_cpu: float
    """The CPU of Postgres in this time, in percent of one core."""
    event_cpu: dict[str, float]
    """The CPU in ms per event at the first busy rate, by process: postgres, relays, and bridge and broker if any."""
    stolen: float
    """The CPU that the host took from the machine in this time, in percent of its cores."""


class Relays:
    """The process with the relays."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pid = process.pid

    async def take(self, what: str = "") -> list[float]:
        """Return the latencies of the events since the last call, or of the `broadcasts`."""
        _there(self._process.stdin).write(what.encode() + b"\n")
        async with asyncio.timeout(60):
            taken: list[float] = json.loads(await _there(self._process.stdout).readline())
        return taken


def _there(pipe: T | None) -> T:
    """Return a pipe of a process, which was started with it."""
    if pipe is None:
        raise RuntimeError("there is no pipe")
    return pipe


@asynccontextmanager
async def running(*command: str, **variables: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-OO",
        "-m",
        *command,
        env={**os.environ, **variables},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=64 << 20,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


@asynccontextmanager
async def relays_of(count: int, url: str, variables: dict[str, str]) -> AsyncIterator[Relays]:
    async with running("bench.scale.relays", str(count), DATABASE_URL=url, **variables) as process:
        async with asyncio.timeout(START_TIMEOUT_S):
            said = await _there(process.stdout).readline()
        if said != b"ready\n":
            raise RuntimeError(f"the relays ended; their output {said!r}")
        yield Relays(process)


def announcing(url: str) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
    """Run the announcer, as the operator does, in a separate process."""
    return running("bench.scale.announcer", DATABASE_URL=url)


@asynccontextmanager
async def signalled(mode: str, url: str) -> AsyncIterator[tuple[dict[str, str], dict[str, int]]]:
    """Run the processes of a mode; yield the environment for relays, and the process ids by name."""
    if mode not in BROKERS:
        async with announcing(url) as process:
            yield {"SIGNAL": mode}, {"announcer": process.pid}
        return
    async with BROKERS[mode]() as broker:
        port = str(free_port())
        bridge = {"DATABASE_URL": url, "HOST": "127.0.0.1", "HEALTH_PORT": port, **broker.variables}
        async with running("userrealtime_relay.bridge", **bridge) as process:
            drained = asyncio.create_task(_there(process.stdout).read())
            await asyncio.sleep(2)
            processes = {"bridge": process.pid, "broker": broker.pid or 0}
            yield {**broker.variables, "DATABASE_IDLE_AFTER": str(IDLE_AFTER_S)}, processes
        await drained


class Writers:
    """Connections that publish to random users, each event in a separate transaction.

    They belong to `pgbench`, which uses less CPU than a client in Python.
    """

    def __init__(self, server: LocalPostgres, database: str, users: int, script: bytes = SCRIPT) -> None:
        self._script = script
        self._program = server.program("pgbench")
        self._url = server.url(database)
        self._users = users

    async def back_to_back(self, seconds: float) -> int:
        """Publish without pauses for this time, in whole seconds; return the number of committed events."""
        done, _ = await self._run("--time", str(max(1, round(seconds))))
        return done

    async def at(self, rate: float, seconds: float) -> tuple[int, float]:
        """Publish at this average rate, independent of the latency; return the number of events and the duration."""
        each = math.ceil(rate * seconds / WRITERS)
        return await self._run("--rate", str(rate), "--transactions", str(each))

    async def to_each(self) -> int:
        """Publish one event to each user, one after the other; return their number."""
        connection = await asyncpg.connect(self._url)
        try:
            for number in range(self._users):
                await connection.execute("select userrealtime.publish($1, 'test')", f"user-{number}")
        finally:
            connection.terminate()
        return self._users

    async def _run(self, *options: str) -> tuple[int, float]:
        process = await asyncio.create_subprocess_exec(
            self._program,
            *("--no-vacuum", "--protocol", "prepared", "--client", str(WRITERS), "--file", "-"),
            *("--define", f"users={self._users}", *options, self._url),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                output, errors = await process.communicate(self._script)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        said = output.decode()
        done = re.search(r"^number of transactions actually processed: (\d+)", said, re.MULTILINE)
        rate = re.search(r"^tps = ([\d.]+)", said, re.MULTILINE)
        if process.returncode != 0 or done is None or rate is None:
            raise RuntimeError(f"pgbench failed: {errors.decode()[-1000:]}")
        return int(done[1]), int(done[1]) / float(rate[1])


async def arrived(relays: Relays, count: int) -> list[float]:
    """Return the latencies of this number of events, or of fewer if no more arrive."""
    latencies = await relays.take()
    deadline = time.monotonic() + DRAIN_S
    while len(latencies) < count and time.monotonic() < deadline:
        await asyncio.sleep(0.2)
        more = await relays.take()
        latencies += more
        if more:
            deadline = time.monotonic() + DRAIN_S
    if len(latencies) != count:
        raise RuntimeError(f"{len(latencies)} of {count} events arrived")
    return latencies


async def measure(mode: str, count: int, server: LocalPostgres, seconds: float) -> Point:
    """Measure one point, on a separate database."""
    name = f"scale_{mode}_{count}"
    entered, stolen = time.monotonic(), _stolen()
    admin = await asyncpg.connect(server.url())
    await admin.execute(f"create database {name}")
    url = server.url(name)
    await migrate(url)
    try:
        connection = await asyncpg.connect(url)
        await connection.execute(
            "insert into userrealtime.log (user_id) select 'user-' || n from generate_series(0, $1::int - 1) n", count
        )
        await connection.execute("analyze userrealtime.log")
        await connection.close()
        writers = Writers(server, name, count)
        async with signalled(mode, url) as (variables, processes), relays_of(count, url, variables) as relays:
            processes["relays"] = relays.pid

            def cpu() -> dict[str, float]:
                return {"postgres": _cpu(server), **{name: _cpu_of(pid) for name, pid in processes.items()}}

            await arrived(relays, await writers.back_to_back(1))  # to warm up
            calm = {}
            for wanted in CALM_RATES:
                done, _ = await writers.at(wanted, seconds)
                latencies = await arrived(relays, done)
                calm[wanted] = percentile(latencies, 50), percentile(latencies, 99)
            began = time.monotonic()
            done = await writers.back_to_back(seconds)
            await arrived(relays, done)
            rate = done / (time.monotonic() - began)
            # The next measurements need active users: with a broker, only their relays are connected to Postgres.
            await arrived(relays, await writers.to_each())
            busy: list[Busy] = []
            event_cpu: dict[str, float] = {}
            for wanted in BUSY_RATES:
                tries: list[Busy] = []
                for _ in range(BUSY_TRIES):
                    had = None if event_cpu else cpu()
                    done, took = await writers.at(wanted, seconds)
                    latencies = await arrived(relays, done)
                    tries.append(Busy(wanted, done / took, percentile(latencies, 50), percentile(latencies, 99)))
                    if had is not None:
                        event_cpu = {name: (value - had[name]) / done * 1000 for name, value in cpu().items()}
                    if tries[-1].borne or not tries[-1].kept:
                        break
                busy.append(min(tries, key=lambda one: (not one.borne, one.p99)))
                if not busy[-1].borne:
                    break
            await asyncio.sleep(IDLE_AFTER_S + 2)  # until unused connections are closed
            before, began = _cpu(server), time.monotonic()
            await asyncio.sleep(seconds)
            quiet_s = time.monotonic() - began
            quiet_cpu = (_cpu(server) - before) / quiet_s
            held: int = await admin.fetchval(
                "select count(*) from pg_stat_activity where datname = $1 and application_name like 'userrealtime-%'",
                name,
            )
    finally:
        await admin.execute(f"drop database {name} with (force)")
        await admin.close()
    return Point(
        mode,
        count,
        rate,
        calm,
        busy,
        held,
        quiet_cpu * 100,
        event_cpu,
        (_stolen() - stolen) / (time.monotonic() - entered) / (os.cpu_count() or 1) * 100,
    )


async def _described(server: LocalPostgres) -> str:
    """Return the properties of the server and its machine that determine the cost of connections."""
    connection = await asyncpg.connect(server.url())
    try:
        [(version, huge)] = await connection.fetch(
            "select current_setting('server_version'), current_setting('huge_pages_status')"
        )
    finally:
        await connection.close()
    return f"PostgreSQL {version}, huge pages {huge}"


def _stolen() -> float:
    """Return the seconds of CPU that the host took from this machine (steal)."""
    return int(Path("/proc/stat").read_text().split(maxsplit=9)[8]) / _TICK


def _cpu_of(pid: int) -> float:
    """Return the seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def _cpu(server: LocalPostgres) -> float:
    """Return the seconds of CPU of the server and its backends, including ended ones."""
    postmaster = server.pid
    ticks = nanoseconds = 0
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(OSError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(folder.name) == postmaster:
                    ticks += sum(int(value) for value in fields[11:15])  # utime, stime, cutime and cstime
                elif int(fields[1]) == postmaster:
                    # In nanoseconds, because most of a thousand backends have used less than a tick.
                    nanoseconds += int((folder / "schedstat").read_text().split()[0])
    return ticks / _TICK + nanoseconds / 1e9


def table(points: list[Point]) -> str:
    """Return the results as a Markdown table."""
    calm_titles = " | ".join(f"p50, p99 at {rate}/s" for rate in CALM_RATES)
    lines = [
        f"| signal | relays | events/s | {calm_titles} | highest rate with p99 of {BUSY_P99_MS} ms: p50, p99 | "
        "connections, quiet | Postgres CPU, quiet | CPU for each event |",
        "|---|---|---|" + "---|" * (len(CALM_RATES) + 4),
    ]
    for p in points:
        borne = [one for one in p.busy if one.borne]
        busy = f"{borne[-1].rate:,.0f}/s: {figure(borne[-1].p50)}, {figure(borne[-1].p99)} ms" if borne else "—"
        calm = " | ".join(f"{figure(p50)}, {figure(p99)} ms" for p50, p99 in p.calm.values())
        cpu = ", ".join(f"{name} {figure(value)} ms" for name, value in p.event_cpu.items())
        lines.append(
            f"| {p.mode} | {p.relays:,} | {figure(p.rate)} | {calm} | {busy} | "
            f"{p.connections:,} | {figure(p.quiet_cpu)} % | {cpu} |"
        )
    return "\n".join(lines)


def drawing(points: list[Point], modes: Sequence[str]) -> str:
    """Return the results as an SVG."""

    def lines(value: Callable[[Point], float]) -> dict[str, list[tuple[float, float]]]:
        return {mode: [(p.relays, value(p)) for p in points if p.mode == mode] for mode in modes}

    return plot(
        {
            "ms of Postgres' CPU for each event": lines(lambda point: point.event_cpu["postgres"]),
            "events/s, committed and delivered": lines(lambda point: point.rate),
            f"ms from commit to socket, p99 at {CALM_RATES[0]}/s": lines(lambda point: point.calm[CALM_RATES[0]][1]),
        }
    )


async def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--modes", nargs="+", choices=[*MODES, "kafka"], default=MODES)
    parser.add_argument("--relays", nargs="+", type=int, default=COUNTS, metavar="COUNT")
    parser.add_argument("--seconds", type=float, default=5, help="how long each load lasts (default: 5)")
    parser.add_argument("--flush", type=float, default=DEFAULT_FLUSH_MS, metavar="MS", help="WAL flush (default: 2 ms)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the lines into this SVG file")
    arguments = parser.parse_args()
    points: list[Point] = []
    with durable_postgres(arguments.flush, POSTGRES) as server:
        print(
            f"{machine()}; Python {sys.version.split()[0]}; {await _described(server)}, {described(arguments.flush)}",
            flush=True,
        )
        for count in arguments.relays:
            for mode in arguments.modes:
                try:
                    point = await measure(mode, count, server, arguments.seconds)
                except (TimeoutError, RuntimeError, OSError, asyncpg.PostgresError) as error:
                    print(f"  {mode} with {count}: failed: {type(error).__name__}: {error}", flush=True)
                    continue
                print(f"  {json.dumps(asdict(point))}", flush=True)
                points.append(point)
    points.sort(key=lambda point: (arguments.modes.index(point.mode), point.relays))
    print(f"\n{table(points)}")
    if arguments.plot is not None:
        arguments.plot.write_text(drawing(points, arguments.modes))
    return 0 if len(points) == len(arguments.modes) * len(arguments.relays) else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
