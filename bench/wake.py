"""Time from a client's connect to its first event, for sleeping and for awake users, on the local cluster.

`python -m bench.wake` prints the tables of bench/README.md. Each client resumes before an event of its user's log, over
a WebSocket, through the ingress. The stages are read from the clocks of one machine: the client's, the wake request's
own time, the times at which watches report a change, and the lines of the relay's log.

It also measures the time from the commit of an event to the socket of a parked client, and the CPU of a start. For each
slow wake it prints the stages and the warnings of the pod.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import secrets
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence, Set
from datetime import datetime
from typing import Any, Final

import asyncpg
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config import load_kube_config

from bench.node_cpu import RELAY as RELAY_COMPONENT
from bench.node_cpu import difference, read_cpu
from bench.relay.figures import figure, percentile
from testing.client import open_connection, receive
from testing.cluster import choose
from testing.sleeping import SOON, wait_asleep
from testing.system import USERS_NAMESPACE, System, install
from testing.waiting import eventually
from userrealtime_client import Client, Event, Position
from userrealtime_operator.kube.client import CHILD_KINDS, PODS, Api
from userrealtime_operator.kube.reflector import Reflector
from userrealtime_operator.kube.store import Store
from userrealtime_operator.kube.types import Object
from userrealtime_operator.model.labels import MANAGED_BY, RELAY

LIMIT_S: Final = 60.0
APART_S: Final = 6.0
"""Pause between two wakes in sequence, in seconds: until the first wake is complete."""
AWAKE: Final = "wake-never"
"""The user that never sleeps."""
SLOW_S: Final = 1.5
"""Seconds from which a wake is described: the goal of its 99th percentile."""
QUIET_S: Final = 5.0
"""Seconds before and after a start in which the CPU is measured."""
CPU_STARTS: Final = 5
PARK_LIMIT_S: Final = 180.0
"""Relays report once a minute that their clients are quiet, and the operator reads the reports every 15 seconds."""
PARKED: Final = "select user_id from userrealtime.online where parked > 0 and user_id = any($1::text[])"
IMPORTS: Final = (
    "import sys, time; sys.modules['cryptography'] = None; bare = time.process_time()\n"
    "from userrealtime_relay.process import bundle\nbundle.install()\n"
    "from userrealtime_relay.process.imports import fast_imports\n"
    "with fast_imports():\n import userrealtime_relay.server\n"
    "print(bare, time.process_time() - bare)"
)
"""Prints the CPU seconds of the interpreter and of the imports, as `python -m userrealtime_relay` makes them."""
STAGES: Final = (
    ("asked", "the wake is requested"),
    ("scaled", "the operator has scaled the Deployment"),
    ("made", "the pod exists"),
    ("scheduled", "it is assigned to a node"),
    ("begun", "its process has started"),
    ("listening", "the relay listens"),
    ("open", "the client's WebSocket is open"),
    ("event", "the first event has arrived"),
)
Marks = dict[str, float]
"""The times of events by name, in seconds since 1970."""


class Watched(Store):
    """Records when a watch reports a change for the first time, by the name of the user's objects."""

    def __init__(self, marks: Mapping[str, Marks], name: Callable[[Mapping[str, Any]], str], *rules: Rule) -> None:
        self._marks = marks
        self._name = name
        self._rules = rules
        self._listed = False

    def put(self, item: Object) -> None:
        if not self._listed:
            return
        now = time.time()
        for mark, holds in self._rules:
            if holds(item):
                self._marks[self._name(item)].setdefault(mark, now)

    def remove(self, item: Object) -> None:
        pass

    def retain(self, namespace: str, names: Set[str], version: int) -> None:
        self._listed = True


Rule = tuple[str, Callable[[Mapping[str, Any]], Any]]


def is_ready(pod: Mapping[str, Any]) -> bool:
    return any(each["type"] == "Ready" and each["status"] == "True" for each in pod["status"].get("conditions", ()))


@contextlib.asynccontextmanager
async def watching(kubeconfig: str, marks: Mapping[str, Marks]) -> AsyncIterator[None]:
    """Record the changes of Deployments and pods in `marks` while the block runs."""
    deployments = Watched(
        marks, lambda body: str(body["metadata"]["name"]), ("scaled", lambda body: body["spec"]["replicas"] == 1)
    )
    pods = Watched(
        marks,
        lambda body: str(body["metadata"]["labels"]["app.kubernetes.io/instance"]),
        ("made", lambda body: "deletionTimestamp" not in body["metadata"]),
        ("scheduled", lambda body: body["spec"].get("nodeName")),
        ("addressed", lambda body: body["status"].get("podIP")),
        ("ready", is_ready),
    )
    configuration = Configuration()
    await load_kube_config(kubeconfig, client_configuration=configuration)  # type: ignore[no-untyped-call]
    async with Api(configuration) as api, asyncio.TaskGroup() as group:
        reflectors = (
            Reflector(api, CHILD_KINDS["Deployment"], USERS_NAMESPACE, MANAGED_BY, deployments),
            Reflector(api, PODS, USERS_NAMESPACE, RELAY, pods),
        )
        tasks = [group.create_task(reflector.run()) for reflector in reflectors]
        for reflector in reflectors:
            await reflector.wait_for_sync()
        yield
        for task in tasks:
            task.cancel()


@contextlib.asynccontextmanager
async def connected(url: str, token: str, marks: Marks) -> AsyncIterator[None]:
    """Connect one client, and run the block from its first event on."""
    marks["connect"] = time.time()
    async with await open_connection(url, token, last_event_id=0, open_timeout=LIMIT_S) as connection:
        marks["open"] = time.time()
        while (await receive(connection, LIMIT_S))["type"] != "event":
            pass
        marks["event"] = time.time()
        yield


def log_entries(system: System, child: str) -> list[dict[str, Any]]:
    """Return the log of a user's relay."""
    log = system.kubectl("logs", "-l", f"app.kubernetes.io/instance={child}", "--tail=-1")
    return [json.loads(line) for line in log.splitlines()]


def read_logs(system: System, child: str, marks: Marks) -> None:
    """Record the times in the log of a user's relay."""
    for entry in log_entries(system, child):
        moment = datetime.fromisoformat(entry["time"]).timestamp()
        if entry["message"] == "listening":
            marks["listening"] = moment
            marks["begun"] = moment - entry["start_s"]
        elif entry["message"] == "connected to Postgres":
            marks.setdefault("following", moment)


class Crowd:
    """Users of the benchmark: for each the name of its objects, the URL and a token."""

    def __init__(self, system: System, count: int) -> None:
        self._system = system
        self.names = [f"wake-{number:02}" for number in range(count)]
        system.apply_user(AWAKE, idle={"after": "0"})
        for name in self.names:
            system.apply_user(name, idle=SOON)
        for name in (AWAKE, *self.names):
            system.wait_ready(name)
            system.wait_reachable(name)
        self.urls = {name: system.websocket_url(name) for name in (AWAKE, *self.names)}
        self.tokens = {name: system.token(name) for name in (AWAKE, *self.names)}
        self.children = {name: str(system.get("urt", name)["status"]["name"]) for name in self.names}
        self.slow: list[str] = []
        """Descriptions of the slow wakes."""

    async def fall_asleep(self) -> None:
        """Wait until all of them sleep."""
        await asyncio.to_thread(wait_asleep, self._system, *self.names)

    async def wake(self, names: Sequence[str]) -> list[Marks]:
        """Wake these users together; return the result for each."""
        marks: dict[str, Marks] = defaultdict(dict)
        async with (
            watching(self._system.cluster.environment()["KUBECONFIG"], marks),
            asyncio.timeout(LIMIT_S),
            contextlib.AsyncExitStack() as clients,
        ):
            # They stay connected, so the first users do not fall asleep again while the last ones wake.
            entering = (connected(self.urls[name], self.tokens[name], marks[self.children[name]]) for name in names)
            await asyncio.gather(*map(clients.enter_async_context, entering))
            await asyncio.sleep(1.5)  # for later events, such as the probe
        for name in names:
            status = (await asyncio.to_thread(self._system.get, "urt", name))["status"]
            mine = marks[self.children[name]]
            mine["asked"] = datetime.fromisoformat(status["wakeRequestedAt"]).timestamp()
            await asyncio.to_thread(read_logs, self._system, self.children[name], mine)
            if mine["event"] - mine["connect"] > SLOW_S and len(names) == 1:
                self.slow.append(await asyncio.to_thread(self._describe, name, mine))
        return [marks[self.children[name]] for name in names]

    def _describe(self, name: str, marks: Marks) -> str:
        """Return the stages of a wake, and the warnings of the pod."""
        reached = ", ".join(f"{mark} {at - marks['connect']:.2f}" for mark, at in sorted(marks.items(), key=_second))
        found = self._system.kubectl("get", "events", "--field-selector=type=Warning", "-o", "json")
        warnings = {
            each["message"]
            for each in json.loads(found)["items"]
            if each["involvedObject"]["name"].startswith(f"{self.children[name]}-")
            and datetime.fromisoformat(each["lastTimestamp"] or each["eventTime"]).timestamp() > marks["connect"] - 1
        }
        return f"{name}: {reached}; warnings: {'; '.join(sorted(warnings)) or 'none'}"

    async def measure_cpu(self) -> tuple[dict[str, float], float]:
        """Return the CPU seconds of one start by component, without what the idle cluster uses, and the relay's.

        The last figure is the CPU of the relay until it listens.
        """
        starts: list[dict[str, float]] = []
        listening: list[float] = []
        # The clients stay connected, because the CPU of a pod that ends would count as that of other processes.
        async with contextlib.AsyncExitStack() as clients:
            for name in self.names[:CPU_STARTS]:
                starts.append(await self._measure_start(name, clients))
                entries = await asyncio.to_thread(log_entries, self._system, self.children[name])
                listening += [entry["start_cpu_s"] for entry in entries if entry["message"] == "listening"]
        components = {component for start in starts for component in start}
        means = {each: statistics.mean(start.get(each, 0.0) for start in starts) for each in components}
        return means, statistics.mean(listening)

    async def _measure_start(self, name: str, clients: contextlib.AsyncExitStack) -> dict[str, float]:
        """Return the CPU seconds of a user's start by component, without what the idle cluster uses."""
        await asyncio.sleep(QUIET_S)
        readings = [read_cpu()]
        await asyncio.sleep(QUIET_S)
        readings.append(read_cpu())
        marks: Marks = {}
        await clients.enter_async_context(connected(self.urls[name], self.tokens[name], marks))
        await asyncio.sleep(max(0.0, marks["connect"] + QUIET_S - time.time()))
        readings.append(read_cpu())
        first, second, third = (each or {} for each in readings)
        idle = difference(first, second)
        start = difference(second, third)
        return {component: seconds - idle.get(component, 0.0) for component, seconds in start.items()}

    def import_cpu(self) -> tuple[float, float]:
        """Return the CPU seconds of the interpreter and of the relay's imports, measured in a pod."""
        child = self._system.get("urt", AWAKE)["status"]["name"]
        found = []
        for _ in range(CPU_STARTS):
            text = self._system.kubectl("exec", f"deploy/{child}", "--", "/app/venv/bin/python", "-c", IMPORTS)
            found.append([float(word) for word in text.split()])
        return statistics.median(each[0] for each in found), statistics.median(each[1] for each in found)

    async def visit(self) -> Marks:
        """Connect a client of the user that never sleeps."""
        marks: Marks = {}
        async with connected(self.urls[AWAKE], self.tokens[AWAKE], marks):
            return marks

    def remove(self) -> None:
        self._system.kubectl("delete", "urt", AWAKE, *self.names, "--wait=false")


def _second(item: tuple[str, float]) -> float:
    return item[1]


class ParkedCrowd:
    """Users of the benchmark whose clients are parked."""

    def __init__(self, system: System, count: int) -> None:
        self._system = system
        self.names = [f"wake-parked-{number:02}" for number in range(count)]
        for name in self.names:
            system.apply_user(name, idle={"after": "1h", "parkAfter": "2s"})
        for name in self.names:
            system.wait_ready(name)
            system.wait_reachable(name)

    async def measure(self, database: asyncpg.Connection) -> list[float]:
        """Return the seconds from the commit of an event to a parked client's socket, one user after the other."""
        found = []
        async with contextlib.AsyncExitStack() as stack:
            clients: dict[str, Client] = {}
            for name in self.names:
                url = (await asyncio.to_thread(self._system.get, "urt", name))["status"]["url"]
                token = await asyncio.to_thread(self._system.token, name)
                client = clients[name] = await stack.enter_async_context(
                    Client(url, token=token, position=Position(0, None))
                )
                # A log has no epoch before its first event.
                await self._publish(database, name, client)
            await self._wait_parked(database)
            for name, client in clients.items():
                found.append(await self._publish(database, name, client))
                await asyncio.sleep(APART_S)
        return found

    async def _publish(self, database: asyncpg.Connection, name: str, client: Client) -> float:
        """Publish an event; return the seconds from its commit until the client has received it."""
        data = {"mark": secrets.token_hex(8)}
        await database.execute("select userrealtime.publish($1, 'parked', $2)", name, json.dumps(data))
        committed = time.time()
        async with asyncio.timeout(LIMIT_S):
            async for message in client:
                if isinstance(message, Event) and message.data == data:
                    break
        return time.time() - committed

    async def _wait_parked(self, database: asyncpg.Connection) -> None:
        async with asyncio.timeout(PARK_LIMIT_S):
            while len(await database.fetch(PARKED, self.names)) < len(self.names):  # noqa: ASYNC110
                await asyncio.sleep(1)
        await asyncio.to_thread(eventually, self._without_pods, "the parked users have no pods")

    def _without_pods(self) -> bool:
        pods = self._system.kubectl("get", "pods", "-o", "name")
        return not any(f"urt-{name}-" in pods for name in self.names)

    def remove(self) -> None:
        self._system.kubectl("delete", "urt", *self.names, "--wait=false")


def seconds(found: Sequence[Marks]) -> list[float]:
    """Return the seconds from the connect to the first event of each."""
    return [marks["event"] - marks["connect"] for marks in found]


def print_figures(rows: Mapping[str, Sequence[Marks]]) -> None:
    print("\n| connect to first event, s | p50 | p99 | samples |\n|---|---|---|---|")
    for title, found in rows.items():
        values = seconds(found)
        print(f"| {title} | {figure(percentile(values, 50))} | {figure(percentile(values, 99))} | {len(values)} |")


def print_stages(rows: Mapping[str, Sequence[Marks]]) -> None:
    """Return the median of the end and of the duration of each stage."""
    print(f"\n| stage | {' | '.join(f'{title}, s | duration, s' for title in rows)} |\n|---|{'---|' * 2 * len(rows)}")
    before = dict.fromkeys(rows, 0.0)
    for mark, title in STAGES:
        cells = []
        for name, found in rows.items():
            # The log of a pod is lost when the user sleeps again.
            reached = statistics.median(marks[mark] - marks["connect"] for marks in found if mark in marks)
            cells += [f"{reached:.2f}", f"{reached - before[name]:.2f}"]
            before[name] = reached
        print(f"| {title} | {' | '.join(cells)} |")
    for mark, title in (("addressed", "the API reports the pod's address"), ("ready", "the pod is ready")):
        cells = [
            f"{statistics.median(m[mark] - m['connect'] for m in found if mark in m):.2f}" for found in rows.values()
        ]
        print(f"| (for comparison: {title}) | {' | | '.join(cells)} | |")


def print_cpu(components: Mapping[str, float], listening: float, interpreter: float, imports: float) -> None:
    """Print the CPU of a start by component. The relay's has a line for each part."""
    rest = dict(components)
    relay = rest.pop(RELAY_COMPONENT, 0.0)
    lines = {
        "relay: start of the process, and the interpreter": interpreter,
        "relay: imports": imports,
        "relay: configuration, ports": listening - imports - interpreter,
        "relay: the first seconds of service": relay - listening,
        **dict(sorted(rest.items(), key=_second, reverse=True)),
        "all": sum(components.values()),
    }
    print("\n| CPU of a start | ms |\n|---|---|")
    for title, value in lines.items():
        print(f"| {title} | {1000 * value:.0f} |")


def progress(text: str) -> None:
    print(f"  {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


async def measure(system: System, database: asyncpg.Connection, rounds: int, count: int) -> None:
    """Measure wakes through new connections, and the CPU of a start."""
    progress(f"making {count} users")
    crowd = await asyncio.to_thread(Crowd, system, count)
    alone: list[Marks] = []
    together: list[Marks] = []
    awake: list[Marks] = []
    try:
        for name in (AWAKE, *crowd.names):
            await database.execute("select userrealtime.publish($1, 'asleep')", name)
        for turn in range(rounds):
            progress(f"round {turn + 1} of {rounds}: waiting for sleep")
            await crowd.fall_asleep()
            for name in crowd.names:
                progress(f"waking {name}")
                alone += await crowd.wake([name])
                await asyncio.sleep(APART_S)
            await crowd.fall_asleep()
            progress(f"waking all {count}")
            together += await crowd.wake(crowd.names)
            awake += [await crowd.visit() for _ in crowd.names]
        await crowd.fall_asleep()
        progress("measuring the CPU of a start")
        cpu = None if read_cpu() is None else await crowd.measure_cpu()
        imports = await asyncio.to_thread(crowd.import_cpu)
    finally:
        await asyncio.to_thread(crowd.remove)
    print_figures({"awake": awake, "asleep": alone, f"asleep, {count} users at the same time": together})
    print_stages({"one user": alone, f"{count} at the same time": together})
    if cpu is not None:
        print_cpu(*cpu, *imports)
    print(f"\nWakes of one user that took more than {SLOW_S:g} s: {len(crowd.slow)} of {len(alone)}")
    for text in crowd.slow:
        print(f"- {text}")


async def measure_parked(system: System, database: asyncpg.Connection, count: int) -> None:
    """Measure the time from the commit of an event to the socket of a parked client."""
    progress(f"parking the clients of {count} users")
    crowd = await asyncio.to_thread(ParkedCrowd, system, count)
    try:
        values = await crowd.measure(database)
    finally:
        await asyncio.to_thread(crowd.remove)
    print("\n| commit of an event to the socket of a parked client, s | p50 | p99 | samples |\n|---|---|---|---|")
    print(f"| parked | {figure(percentile(values, 50))} | {figure(percentile(values, 99))} | {len(values)} |")


async def run(system: System, database_url: str, options: argparse.Namespace) -> None:
    database = await asyncpg.connect(database_url, timeout=10)
    try:
        if options.rounds:
            await measure(system, database, options.rounds, options.users)
        if options.parked:
            await measure_parked(system, database, options.parked)
    finally:
        await database.close(timeout=5)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.wake",
        description=(__doc__ or "").partition("\n")[0],
        epilog="It takes the local cluster.",
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="how often (default: %(default)s)")
    parser.add_argument("--users", type=int, default=20, metavar="N", help="how many (default: %(default)s)")
    parser.add_argument(
        "--parked", type=int, default=20, metavar="N", help="how many users with a parked client (default: %(default)s)"
    )
    options = parser.parse_args()
    system = install(choose())
    with system.database.from_host() as url:
        asyncio.run(run(system, url, options))


if __name__ == "__main__":
    main()
