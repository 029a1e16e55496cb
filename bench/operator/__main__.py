"""Creates resources on a real API server, and measures the time until the operator has reconciled all of them.

It then reports all their Deployments as available, and finally restarts the operator, and measures both.

The API server, etcd, PostgreSQL and the operator run on this machine. There is no node and no controller, so no pod is
created: a resource counts as reconciled when all children are stored and the status confirms it. The figures are
therefore those of the operator and the API server, without other load on the cores.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config import load_kube_config

from bench.durable import durable_postgres
from testing.local.apiserver import LocalApiServer
from testing.local.operator import ROOT, LocalOperator
from testing.local.postgres import LocalPostgres
from testing.operator.names import child_name
from userrealtime_operator.kube.client import Api, ApiError
from userrealtime_operator.model.resource import API_VERSION, PLURAL
from userrealtime_operator.postgres.migrate import migrate

NAMESPACE = "users"
LEASE = f"{NAMESPACE}/operator"
CREATORS = 4
QUIET_S = 3.0
CRD = ROOT / "charts" / "userrealtime" / "files" / "userrealtimes.yaml"


def resource(number: int) -> dict[str, Any]:
    name = f"user-{number:05}"
    return {
        "apiVersion": API_VERSION,
        "kind": "UserRealtime",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"userId": name},
    }


async def create(api: Api, numbers: list[int], created: dict[str, float], pause_s: float) -> None:
    """Create resources one after the other with a minimum interval, and record when each was accepted."""
    path = f"/apis/{API_VERSION}/namespaces/{NAMESPACE}/{PLURAL}"
    due = time.monotonic()
    for number in numbers:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        due += pause_s
        item = resource(number)
        while True:
            try:
                await api._request("POST", path, item)
                break
            except ApiError as error:
                if error.status not in (0, 429):
                    raise
                await asyncio.sleep(0.5)
        created[item["metadata"]["name"]] = time.monotonic()


async def make_available(api: Api, numbers: list[int]) -> None:
    """Write the status that the controller gives Deployments with ready pods."""
    condition = {"type": "Available", "status": "True", "reason": "MinimumReplicasAvailable", "message": ""}
    replicas = dict.fromkeys(("replicas", "updatedReplicas", "readyReplicas", "availableReplicas"), 1)
    status = {"observedGeneration": 1, **replicas, "conditions": [condition]}
    for number in numbers:
        name = child_name(resource(number)["spec"]["userId"])
        await api.merge_status("apps/v1", "deployments", NAMESPACE, name, {"status": status})


def observed(item: Mapping[str, Any]) -> bool:
    """Return whether a resource's status contains its generation, which is written last."""
    return bool(item.get("status", {}).get("observedGeneration"))


def ready(item: Mapping[str, Any]) -> bool:
    """Return whether the resource has the condition Ready."""
    conditions = item.get("status", {}).get("conditions", ())
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


async def watch_status(
    config: Configuration, is_so: Callable[[Mapping[str, Any]], bool], since: dict[str, float], count: int
) -> None:
    """Record when each resource first meets a condition; return when all of them do."""
    from kubernetes.aio.client.api.custom_objects_api import CustomObjectsApi
    from kubernetes.aio.client.api_client import ApiClient
    from kubernetes.aio.watch import Watch

    group, _, version = API_VERSION.partition("/")
    async with ApiClient(config) as client, Watch() as watch:  # type: ignore[no-untyped-call]
        listing = CustomObjectsApi(client).list_namespaced_custom_object
        async for event in watch.stream(listing, group, version, NAMESPACE, PLURAL, timeout_seconds=3600):
            item = event["object"]
            if is_so(item):
                since.setdefault(item["metadata"]["name"], time.monotonic())
                if len(since) >= count:
                    return


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process, with its children unless it is this process."""
    if pid == os.getpid():
        return time.process_time()
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # the process has ended
            # proc(5): after the name come the fields 3 (state), 4 (parent) and, from 14 on, the times.
            fields = path.read_text().rpartition(") ")[2].split()
            if pid in (int(path.parent.name), int(fields[1])):
                ticks += sum(int(field) for field in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def peak_memory(pid: int) -> int:
    """Return the peak resident memory of a process in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def progress(text: str) -> None:
    print(f"  {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


async def quiet(operator: LocalOperator, limit_s: float) -> dict[str, int]:
    """Return the operator's requests when their number is stable and no key waits."""
    deadline = time.monotonic() + limit_s
    before: dict[str, int] = {}
    while True:
        await asyncio.sleep(QUIET_S)
        now = await asyncio.to_thread(operator.requests)
        depth = await asyncio.to_thread(operator.metric, "userrealtime_operator_workqueue_depth")
        if now == before and depth == 0 and operator.leads():
            return now
        if time.monotonic() > deadline:
            raise TimeoutError(f"the operator is still at work after {limit_s:.0f} s: {now}")
        before = now


async def measure(server: LocalApiServer, database: LocalPostgres, count: int, rate: float, limit_s: float) -> None:
    """Measure one run, and print its figures as rows of a table."""
    database_url = database.url()
    config = Configuration()
    await load_kube_config(str(server.kubeconfig), client_configuration=config)  # type: ignore[no-untyped-call]
    with LocalOperator(server.kubeconfig, database_url, NAMESPACE, instance="bench", lease=LEASE) as operator:
        await asyncio.to_thread(operator.wait_ready)
        while not await asyncio.to_thread(operator.leads):  # noqa: ASYNC110  (another process)
            await asyncio.sleep(0.2)
        pids = {
            "the operator": operator.pid,
            **server.pids,
            "PostgreSQL": database.pid,
            "the load generator": os.getpid(),
        }
        created: dict[str, float] = {}
        desired: dict[str, float] = {}
        before = {name: cpu_seconds(pid) for name, pid in pids.items()}
        begin = time.monotonic()
        async with asyncio.timeout(limit_s), Api(config) as api, asyncio.TaskGroup() as group:
            watching = group.create_task(watch_status(config, observed, desired, count))
            pause_s = CREATORS / rate if rate else 0.0
            for worker in range(CREATORS):
                group.create_task(create(api, list(range(worker, count, CREATORS)), created, pause_s))
            while not watching.done():
                progress(f"{len(created):,} created, {len(desired):,} desired of {count:,}")
                await asyncio.wait([watching], timeout=5)
        taken = time.monotonic() - begin
        computed = {name: cpu_seconds(pid) - before[name] for name, pid in pids.items()}
        waits = sorted(desired[name] - created[name] for name in created)
        requests = await quiet(operator, limit_s)
        memory = await asyncio.to_thread(operator.metric, "process_resident_memory_bytes")
        row("time until all are reconciled", f"{taken:.1f} s")
        row("resources/s", f"{count / taken:.0f}")
        row(
            "from accepted to reconciled, p50 / p99",
            f"{statistics.median(waits):.2f} s / {percentile(waits, 0.99):.2f} s",
        )
        for name, seconds in computed.items():
            share = seconds / taken / (os.cpu_count() or 1)
            row(f"CPU of {name}", f"{seconds:.1f} s, {share:.0%} of all cores")
        row("memory of the operator, at most", memory_text(memory, operator))
        row("API calls per resource", f"{sum(requests.values()) / count:.2f}")
        for name, number in sorted(requests.items()):
            if number / count >= 0.01:
                row(f"- {name}", f"{number / count:.2f}")
        rounds = await asyncio.to_thread(operator.metric, "userrealtime_operator_reconcile_total", kind="resource")
        row("reconciliations per resource", f"{rounds / count:.2f}")
        looks = await asyncio.to_thread(
            operator.metric, "userrealtime_operator_rest_client_requests_total", resource="pods"
        )
        row("checks for pods that are not created, per resource", f"{looks / count:.2f}")
        progress("marking all pods as ready")
        begin = time.monotonic()
        async with asyncio.timeout(limit_s), Api(config) as api, asyncio.TaskGroup() as group:
            group.create_task(watch_status(config, ready, {}, count))
            for worker in range(CREATORS):
                group.create_task(make_available(api, list(range(worker, count, CREATORS))))
        row("all pods marked as ready: time until all resources are Ready", f"{time.monotonic() - begin:.1f} s")
        await asyncio.to_thread(operator.stop)
        progress("restarting the operator")
        begin = time.monotonic()
        operator.start()
        await asyncio.to_thread(operator.wait_ready, limit_s)
        warm = time.monotonic() - begin
        requests = await quiet(operator, limit_s)
        settled = time.monotonic() - begin - 2 * QUIET_S
        memory = await asyncio.to_thread(operator.metric, "process_resident_memory_bytes")
        row("after a restart: ready", f"{warm:.1f} s")
        row("after a restart: all checked", f"{settled:.0f} s")
        row("after a restart: CPU of the operator", f"{cpu_seconds(operator.pid):.1f} s")
        row("after a restart: writes", f"{sum(n for name, n in requests.items() if not name.startswith('GET'))}")
        row(
            "after a restart: reads, without watches",
            f"{sum(n for name, n in requests.items() if name.startswith('GET'))}",
        )
        row("after a restart: memory of the operator, at most", memory_text(memory, operator))


def memory_text(resident: float, operator: LocalOperator) -> str:
    return f"{resident / 2**20:.0f} MiB, {peak_memory(operator.pid) / 2**20:.0f} MiB"


def percentile(values: list[float], share: float) -> float:
    return values[min(len(values) - 1, int(len(values) * share))]


def row(what: str, figure: str) -> None:
    print(f"| {what} | {figure} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.operator", description=__doc__)
    parser.add_argument("--resources", type=int, default=1_000, metavar="N", help="how many (default: %(default)s)")
    parser.add_argument(
        "--limit", type=float, default=900, metavar="SECONDS", help="for each part of the run (default: %(default)s)"
    )
    parser.add_argument(
        "--rate", type=float, default=0, metavar="N", help="create so many a second (default: as fast as can be)"
    )
    options = parser.parse_args()
    if options.resources < 1:
        parser.error("--resources must be at least 1")
    with durable_postgres() as database, LocalApiServer() as server:
        asyncio.run(migrate(database.url()))
        server.kubectl("create", "namespace", NAMESPACE)
        server.kubectl("apply", "--server-side", "-f", str(CRD))
        server.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", str(CRD))
        print(f"{options.resources:,} resources, {os.cpu_count()} cores\n\n| what | figure |\n|---|---|", flush=True)
        asyncio.run(measure(server, database, options.resources, options.rate, options.limit))


if __name__ == "__main__":
    main()
