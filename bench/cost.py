"""The cost of awake and of sleeping users: measured parts, and the sum for 1,000 users.

`python -m bench.cost` prints the tables of docs/cost.md. It runs relays, the operator and an activator as processes of
this machine, with a separate PostgreSQL and API server, and probes them as often as a kubelet would. Memory is the
proportional set size (PSS): what a process has for itself, and its part of what it shares with others.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import asyncpg
import yaml
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config import load_kube_config

from bench.durable import durable_postgres
from bench.operator.__main__ import CRD, LEASE, NAMESPACE, create, progress, quiet
from bench.relay.figures import figure
from testing.local.apiserver import LocalApiServer
from testing.local.operator import ROOT, LocalOperator
from testing.local.ports import free_port
from userrealtime_operator.kube.client import Api
from userrealtime_operator.postgres.migrate import migrate

SHARES: Final = (0.01, 0.1, 0.5)
"""The share of the users that are awake."""
ACTIVATORS: Final = 2
OPERATORS: Final = 2
WATCH_S: Final = 60.0
"""How long idle processes are measured."""
READY_S: Final = 1.0
SHARED_READY_S: Final = 2.0
"""The intervals of the readiness probes of a relay, and of the other pods, as in the chart."""
START_S: Final = 60.0
LIMIT_S: Final = 900.0
Row = tuple[str, str]


def pss(pid: int) -> int:
    """Return the proportional set size of a process in bytes."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Pss:")).split()[1]) << 10


def cpu_s(pid: int) -> float:
    """Return the seconds of CPU that the threads of a process have used."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(path.read_text().split()[0]) for path in tasks) / 1e9


@contextlib.contextmanager
def started(module: str, arguments: Sequence[str], environment: Mapping[str, str], url: str) -> Iterator[int]:
    """Run a Python process; yield its pid when `url` responds."""
    paths = os.pathsep.join(str(ROOT / name) for name in ("operator", "relay", "core"))
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(  # noqa: S603  (ours)
            [sys.executable, "-m", module, *arguments],
            env={**os.environ, "PYTHONPATH": paths, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        try:
            deadline = time.monotonic() + START_S
            while True:
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(url, timeout=5).close()  # noqa: S310  (http)
                    break
                if process.poll() is not None or time.monotonic() > deadline:
                    output.seek(0)
                    raise RuntimeError(f"{module} does not start:\n{output.read().decode()[-3000:]}")
                time.sleep(0.1)
            yield process.pid
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(timeout=10)


async def probe(port: int, path: str, period_s: float) -> None:
    """Probe a process, as a kubelet does, until cancelled."""
    while True:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n".encode())
        if not (await reader.read()).startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(f"{path} is not answered with 200")
        writer.close()
        await asyncio.sleep(period_s)


async def idle(pids: Sequence[int], ports: Sequence[int], path: str, period_s: float) -> tuple[float, float]:
    """Return the bytes of memory of a process, and its share of a CPU, while the processes are only probed."""
    before = [cpu_s(pid) for pid in pids]
    began = time.monotonic()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(WATCH_S):
            await asyncio.gather(*(probe(port, path, period_s) for port in ports))
    passed = time.monotonic() - began
    used = [(cpu_s(pid) - earlier) / passed for pid, earlier in zip(pids, before, strict=True)]
    return statistics.median(pss(pid) for pid in pids), statistics.median(used)


async def backends(url: str) -> list[int]:
    """Return the ids of the backends of the other connections."""
    connection = await asyncpg.connect(url, timeout=10)
    try:
        rows = await connection.fetch(
            "select pid from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()"
        )
    finally:
        await connection.close(timeout=5)
    return [row["pid"] for row in rows]


async def measure_relays(url: str, count: int) -> tuple[float, float, float, float]:
    """Measure an awake relay without clients: memory, CPU, connections to Postgres, and the memory of one."""
    progress(f"{count} relays, for {WATCH_S:.0f} s")
    with contextlib.ExitStack() as stack:
        pids, ports = [], []
        for number in range(count):
            port = free_port()
            ports.append(port)
            environment = {
                "USER_ID": f"user-{number:05}",
                "DATABASE_URL": url,
                "TOKEN_KEY": secrets.token_urlsafe(32),
                "HOST": "127.0.0.1",
                "WS_PORT": "0",
                "HEALTH_PORT": str(port),
                "PYTHONOPTIMIZE": "2",
            }
            pids.append(
                stack.enter_context(started("userrealtime_relay", (), environment, f"http://127.0.0.1:{port}/ready"))
            )
        memory, cpu = await idle(pids, ports, "/ready", READY_S)
        there = await backends(url)
        return memory, cpu, len(there) / count, statistics.mean(pss(pid) for pid in there)


async def measure_shared(server: LocalApiServer, url: str, count: int) -> tuple[float, float, float, float]:
    """Return the memory and CPU of an operator, and of an activator, with this number of inactive users."""
    config = Configuration()
    await load_kube_config(str(server.kubeconfig), client_configuration=config)  # type: ignore[no-untyped-call]
    with LocalOperator(server.kubeconfig, url, NAMESPACE, instance="bench", lease=LEASE) as operator:
        await asyncio.to_thread(operator.wait_ready)
        progress(f"creating {count:,} users")
        async with asyncio.timeout(LIMIT_S), Api(config) as api:
            await asyncio.gather(*(create(api, list(range(first, count, 4)), {}, 0) for first in range(4)))
        await quiet(operator, LIMIT_S)
        progress(f"an activator, and the operator, for {WATCH_S:.0f} s")
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump({"namespaces": [NAMESPACE], "relay": {"image": "relay:none"}}, file)
            file.flush()
            port = free_port()
            arguments = (f"--config={file.name}", f"--port={free_port()}", f"--health-port={port}")
            environment = {"KUBECONFIG": str(server.kubeconfig)}
            with started(
                "userrealtime_operator.activator", arguments, environment, f"http://127.0.0.1:{port}/ready"
            ) as activator:
                await quiet(operator, LIMIT_S)
                assert operator.process is not None  # noqa: S101  (it was started)
                (operator_memory, operator_cpu), (memory, cpu) = await asyncio.gather(
                    idle([operator.process.pid], [operator.port], "/ready", SHARED_READY_S),
                    idle([activator], [port], "/ready", SHARED_READY_S),
                )
                return operator_memory, operator_cpu, memory, cpu


def mib(count: float) -> str:
    return f"{figure(count / 2**20)} MiB"


def gib(count: float) -> str:
    return f"{figure(count / 2**30)} GiB"


async def measure(server: LocalApiServer, url: str, users: int, relays: int) -> None:
    await migrate(url)
    relay, relay_cpu, connections, backend = await measure_relays(url, relays)
    operator, operator_cpu, activator, activator_cpu = await measure_shared(server, url, users)
    print("\n| measured, of one | memory | CPU, idle |\n|---|---|---|")
    print(f"| relay, awake, no client connected | {mib(relay)} | {figure(relay_cpu * 1000)} millicores |")
    print(f"| its connection to Postgres ({connections:g}), in Postgres | {mib(backend)} | |")
    print(f"| operator, {users:,} users | {mib(operator)} | {figure(operator_cpu * 1000)} millicores |")
    print(f"| activator, {users:,} users | {mib(activator)} | {figure(activator_cpu * 1000)} millicores |")
    print(f"\n| {users:,} users, fraction awake | relays and activators | Postgres | CPU, idle | connections |")
    print("|---|---|---|---|---|")
    for title, share, helpers in (*((f"{share:.0%}", share, ACTIVATORS) for share in SHARES), ("all, always", 1.0, 0)):
        awake = share * users
        memory, there = awake * relay + helpers * activator, awake * connections
        cpu = awake * relay_cpu + helpers * activator_cpu
        print(f"| {title} | {gib(memory)} | {gib(there * backend)} | {figure(cpu)} cores | {there:,.0f} |")
    print(
        f"\nIn addition, however many users are awake: {OPERATORS} operators, {mib(OPERATORS * operator)} and "
        f"{figure(OPERATORS * operator_cpu * 1000)} millicores."
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.cost", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--users", type=int, default=1000, metavar="N", help="how many (default: %(default)s)")
    parser.add_argument("--relays", type=int, default=5, metavar="N", help="to measure (default: %(default)s)")
    options = parser.parse_args()
    with durable_postgres() as database, LocalApiServer() as server:
        server.kubectl("create", "namespace", NAMESPACE)
        server.kubectl("apply", "--server-side", "-f", str(CRD))
        server.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", str(CRD))
        asyncio.run(measure(server, database.url(), options.users, options.relays))


if __name__ == "__main__":
    main()
