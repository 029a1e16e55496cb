"""Time from a client's connect to its first event, for sleeping and for awake users, on the local cluster.

`python -m bench.wake` prints the tables of bench/README.md. Each client resumes before an event of its user's log, over
a WebSocket, through the ingress. The stages are read from the clocks of one machine: the client's, the wake request's
own time, the times at which watches report a change, and the lines of the relay's log.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
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

from bench.relay.figures import figure, percentile
from testing.client import open_connection, receive
from testing.cluster import choose
from testing.sleeping import SOON, wait_asleep
from testing.system import USERS_NAMESPACE, System, install
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


async def connect(url: str, token: str, marks: Marks) -> None:
    """Connect one client, and wait for its first event."""
    marks["connect"] = time.time()
    async with await open_connection(url, token, last_event_id=0, open_timeout=LIMIT_S) as connection:
        marks["open"] = time.time()
        while (await receive(connection, LIMIT_S))["type"] != "event":
            pass
        marks["event"] = time.time()


def read_logs(system: System, child: str, marks: Marks) -> None:
    """Return the times of the wake in the resource and in the relay's log."""
    for line in system.kubectl("logs", "-l", f"app.kubernetes.io/instance={child}", "--tail=-1").splitlines():
        entry = json.loads(line)
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

    async def fall_asleep(self) -> None:
        """Wait until all of them sleep."""
        await asyncio.to_thread(wait_asleep, self._system, *self.names)

    async def wake(self, names: Sequence[str]) -> list[Marks]:
        """Wake these users together; return the result for each."""
        marks: dict[str, Marks] = defaultdict(dict)
        async with watching(self._system.cluster.environment()["KUBECONFIG"], marks), asyncio.timeout(LIMIT_S):
            await asyncio.gather(
                *(connect(self.urls[name], self.tokens[name], marks[self.children[name]]) for name in names)
            )
            await asyncio.sleep(1.5)  # for later events, such as the probe
        for name in names:
            status = (await asyncio.to_thread(self._system.get, "urt", name))["status"]
            mine = marks[self.children[name]]
            mine["asked"] = datetime.fromisoformat(status["wakeRequestedAt"]).timestamp()
            await asyncio.to_thread(read_logs, self._system, self.children[name], mine)
        return [marks[self.children[name]] for name in names]

    async def visit(self) -> Marks:
        """Connect a client of the user that never sleeps."""
        marks: Marks = {}
        await connect(self.urls[AWAKE], self.tokens[AWAKE], marks)
        return marks

    def remove(self) -> None:
        self._system.kubectl("delete", "urt", AWAKE, *self.names, "--wait=false")


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


def progress(text: str) -> None:
    print(f"  {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


async def measure(system: System, database_url: str, rounds: int, count: int) -> None:
    progress(f"making {count} users")
    crowd = await asyncio.to_thread(Crowd, system, count)
    alone: list[Marks] = []
    together: list[Marks] = []
    awake: list[Marks] = []
    try:
        database = await asyncpg.connect(database_url, timeout=10)
        try:
            for name in (AWAKE, *crowd.names):
                await database.execute("select userrealtime.publish($1, 'asleep')", name)
        finally:
            await database.close(timeout=5)
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
    finally:
        await asyncio.to_thread(crowd.remove)
    print_figures({"awake": awake, "asleep": alone, f"asleep, {count} users at the same time": together})
    print_stages({"one user": alone, f"{count} at the same time": together})


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.wake",
        description=(__doc__ or "").partition("\n")[0],
        epilog="It takes the local cluster.",
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="how often (default: %(default)s)")
    parser.add_argument("--users", type=int, default=20, metavar="N", help="how many (default: %(default)s)")
    options = parser.parse_args()
    system = install(choose())
    with system.database.from_host() as url:
        asyncio.run(measure(system, url, options.rounds, options.users))


if __name__ == "__main__":
    main()
