"""What users cost who are awake and who sleep, measured on the local cluster, and of 1,000 users by that.

`python -m bench.cost` prints the tables of docs/cost.md. Measured is what one user costs: memory and CPU of an idle
relay, its connections to Postgres and their memory, what the API server keeps; and what all share. The rest is sums.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
import tracemalloc
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import asyncpg

from bench.relay.figures import figure
from e2e.cluster import choose
from e2e.sleeping import SOON, activator_pods, wait_asleep
from e2e.system import OPERATOR_NAMESPACE, System, install
from userrealtime_operator.activator.cluster import Requests
from userrealtime_operator.activator.directory import Directory

USERS: Final = 1000
SHARES: Final = (0.01, 0.1, 0.5, 1.0)
"""Of the users, who are awake."""
WATCH_S: Final = 60.0
"""For which the CPU time of idle processes is watched."""
KINDS: Final = "userrealtimes,deployments,replicasets,services,ingresses,secrets,endpointslices,pods"
# Run by a container's own Python: what its first process holds, with its part of what is shared, and has used.
INSIDE: Final = """
import json, os
pss = next(line for line in open("/proc/1/smaps_rollup") if line.startswith("Pss:")).split()[1]
times = open("/proc/1/stat").read().rpartition(")")[2].split()
print(json.dumps({
    "pss": int(pss) << 10,
    "cpu_s": (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK"),
}))
"""


@dataclass(frozen=True)
class Process:
    """Bytes, and seconds of CPU so far."""

    pss: int
    cpu_s: float


def look(system: System, namespace: str, pod: str) -> Process:
    """The first process of a pod."""
    python = ("/app/venv/bin/python", "-c", INSIDE)
    found = json.loads(system.cluster.kubectl("-n", namespace, "exec", pod, "--", *python))
    return Process(found["pss"], found["cpu_s"])


def pods_of(system: System, namespace: str, selector: str) -> list[str]:
    names = system.cluster.kubectl("-n", namespace, "get", "pods", "-l", selector, "-o", "name")
    return [name.removeprefix("pod/") for name in names.split()]


def stored_bytes(system: System, child: str, name: str) -> int:
    """Of all objects of a user, as the API server writes them in JSON."""
    total = len(system.kubectl("get", "urt", name, "-o", "json", "--show-managed-fields"))
    found = json.loads(
        system.kubectl("get", KINDS, "-l", f"app.kubernetes.io/instance={child}", "-o", "json", "--show-managed-fields")
    )
    return total + sum(len(json.dumps(item)) for item in found["items"])


async def backends(database: asyncpg.Connection, system: System) -> tuple[float, float]:
    """How many connections a relay has, and the memory of one, in bytes."""
    rows = await database.fetch("select usename, pid from pg_stat_activity where usename like 'urt\\_%'")
    users = {row["usename"] for row in rows}
    sizes = []
    for row in rows:
        command = f"grep ^Pss: /proc/{row['pid']}/smaps_rollup"
        text = await asyncio.to_thread(
            system.cluster.kubectl, "-n", "postgres", "exec", "postgres-0", "--", "sh", "-c", command
        )
        sizes.append(int(text.split()[1]) << 10)
    return len(rows) / len(users), statistics.mean(sizes)


def activator_bytes(body: Mapping[str, Any]) -> float:
    """What an activator keeps of one user who sleeps."""
    tracemalloc.start()
    directory = Directory()
    requests = Requests(directory)
    before = tracemalloc.get_traced_memory()[0]
    for number in range(USERS):
        text = json.dumps(body).replace(body["metadata"]["name"], f"user-{number:04}")
        requests.put(json.loads(text))
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return used / USERS


def operator_bytes(system: System, pod: str) -> float:
    """The operator's resident memory."""
    with (
        system.cluster.forward(OPERATOR_NAMESPACE, f"pod/{pod}", 8081) as (host, port),
        urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=10) as answer,
    ):
        for line in answer.read().decode().splitlines():
            if line.startswith("process_resident_memory_bytes "):
                return float(line.split()[1])
    raise LookupError("the operator does not say how much memory it holds")


def mib(count: float) -> str:
    return figure(count / 2**20)


async def measure(system: System, database: asyncpg.Connection, count: int) -> None:
    names = [f"cost-{number:02}" for number in range(count)]
    try:
        for name in names:
            await asyncio.to_thread(system.apply_user, name, idle={"warm": True})
        for name in names:
            await asyncio.to_thread(system.wait_ready, name)
        children = {name: str(system.get("urt", name)["status"]["name"]) for name in names}
        relays = [pods_of(system, "users", f"app.kubernetes.io/instance={child}")[0] for child in children.values()]
        activators = activator_pods(system)
        operators = pods_of(system, OPERATOR_NAMESPACE, "app.kubernetes.io/name=userrealtime-operator")
        progress(f"watching {count} idle relays for {WATCH_S:.0f} s")
        await asyncio.sleep(5)
        before = [await asyncio.to_thread(look, system, "users", pod) for pod in relays]
        activators_before = [await asyncio.to_thread(look, system, OPERATOR_NAMESPACE, pod) for pod in activators]
        began = time.monotonic()
        await asyncio.sleep(WATCH_S)
        after = [await asyncio.to_thread(look, system, "users", pod) for pod in relays]
        activators_after = [await asyncio.to_thread(look, system, OPERATOR_NAMESPACE, pod) for pod in activators]
        passed = time.monotonic() - began
        relay = statistics.median(each.pss for each in after)
        cpu = statistics.median((b.cpu_s - a.cpu_s) / passed for a, b in zip(before, after, strict=True))
        activator = statistics.median(each.pss for each in activators_after)
        activator_cpu = statistics.median(
            (b.cpu_s - a.cpu_s) / passed for a, b in zip(activators_before, activators_after, strict=True)
        )
        connections, backend = await backends(database, system)
        awake_bytes = await asyncio.to_thread(stored_bytes, system, children[names[0]], names[0])
        operator = max([await asyncio.to_thread(operator_bytes, system, pod) for pod in operators])
        progress("putting one to sleep")
        await asyncio.to_thread(system.apply_user, names[0], idle=SOON)
        await asyncio.to_thread(wait_asleep, system, names[0])
        asleep_bytes = await asyncio.to_thread(stored_bytes, system, children[names[0]], names[0])
        directory = activator_bytes(system.get("urt", names[0]))
    finally:
        await asyncio.to_thread(system.kubectl, "delete", "urt", *names, "--wait=false")
    print_parts(
        [
            ("relay, awake and idle: memory", f"{mib(relay)} MiB"),
            ("relay, awake and idle: CPU", f"{cpu * 1000:.2f} millicores"),
            ("relay, awake: connections to Postgres", f"{connections:g}"),
            ("memory of such a connection, in Postgres", f"{mib(backend)} MiB"),
            ("objects of a user who is awake, JSON", f"{awake_bytes / 1024:.0f} KiB"),
            ("objects of a user who sleeps, JSON", f"{asleep_bytes / 1024:.0f} KiB"),
            (f"operator, one replica, with {count} users: memory", f"{mib(operator)} MiB"),
            ("activator, one replica: memory", f"{mib(activator)} MiB"),
            ("activator, one replica: CPU", f"{activator_cpu * 1000:.2f} millicores"),
            ("activator: memory for each user it knows", f"{directory / 1024:.1f} KiB"),
        ]
    )
    shared = 2 * (activator + USERS * directory)
    print_users(relay, cpu, connections, backend, shared, 2 * activator_cpu)


def print_parts(rows: Sequence[tuple[str, str]]) -> None:
    print("\n| measured | |\n|---|---|")
    for title, value in rows:
        print(f"| {title} | {value} |")


def print_users(relay: float, cpu: float, connections: float, backend: float, shared: float, shared_cpu: float) -> None:
    """The sums for USERS, with what the two activators take."""
    print(f"\n| of {USERS:,} users, awake | memory of pods, GiB | idle CPU, cores | connections | their memory, GiB |")
    print("|---|---|---|---|---|")
    for share in SHARES:
        awake = share * USERS
        memory = (awake * relay + shared) / 2**30
        used = awake * cpu + shared_cpu
        there = awake * connections
        print(f"| {share:.0%} | {memory:.2f} | {used:.3f} | {there:,.0f} | {there * backend / 2**30:.2f} |")
    always = f"{USERS * relay / 2**30:.2f} | {USERS * cpu:.3f} | {USERS * connections:,.0f}"
    print(f"| always on, without activators | {always} | {USERS * connections * backend / 2**30:.2f} |")


def progress(text: str) -> None:
    print(f"  {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.cost",
        description=(__doc__ or "").partition("\n")[0],
        epilog="It takes the local cluster.",
    )
    parser.add_argument("--users", type=int, default=10, metavar="N", help="how many to measure (default: %(default)s)")
    options = parser.parse_args()
    system = install(choose())

    async def run(url: str) -> None:
        database = await asyncpg.connect(url, timeout=10)
        try:
            await measure(system, database, options.users)
        finally:
            await database.close(timeout=5)

    with system.database.from_host() as url:
        asyncio.run(run(url))


if __name__ == "__main__":
    main()
