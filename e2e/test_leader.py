"""Several operators, of which one works; and what their work costs. On an API server of their own, without a node."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from tests.faults.proxy import Link
from userrealtime_operator.migrate import migrate

from .local.apiserver import LocalApiServer
from .local.operator import ROOT, LocalOperator
from .local.postgres import LocalPostgres

NAMESPACE = "users"
LEASE = f"{NAMESPACE}/operator"
CRD = ROOT / "charts" / "userrealtime" / "files" / "userrealtimes.yaml"
APPLIED = re.compile(r"^(\S+ \S+) INFO userrealtime_operator.reconcile: applied ", re.MULTILINE)
TAKEOVER_S = 20.0


@pytest.fixture(scope="module")
def database_url() -> Iterator[str]:
    with LocalPostgres() as server:
        asyncio.run(migrate(server.url()))
        yield server.url()


@pytest.fixture
def server() -> Iterator[LocalApiServer]:
    with LocalApiServer() as api:
        api.kubectl("create", "namespace", NAMESPACE)
        api.kubectl("apply", "--server-side", "-f", str(CRD))
        api.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", str(CRD))
        yield api


def apply_users(server: LocalApiServer, *names: str, connections: int = 100) -> None:
    items = [
        {
            "apiVersion": "userrealtime.dev/v1alpha1",
            "kind": "UserRealtime",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {"userId": name, "limits": {"connections": connections}},
        }
        for name in names
    ]
    server.kubectl(
        *("apply", "--server-side", "-f", "-"), input=json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    )


def has_deployment(server: LocalApiServer, name: str) -> bool:
    return f"/urt-{name}-" in server.kubectl("-n", NAMESPACE, "get", "deployments", "-o", "name")


async def eventually(condition: Callable[[], bool], what: str, timeout: float = 60) -> float:
    """Until `condition` holds; the seconds it took."""
    begin = time.monotonic()
    while not await asyncio.to_thread(condition):
        if time.monotonic() - begin > timeout:
            pytest.fail(f"not within {timeout:.0f} s: {what}")
        await asyncio.sleep(0.1)
    return time.monotonic() - begin


def applied_at(operator: LocalOperator) -> list[float]:
    """When an operator applied something, by its log."""
    return [
        datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S,%f").timestamp()
        for stamp in APPLIED.findall(operator.log.read_text())
    ]


@contextlib.asynccontextmanager
async def two_operators(kubeconfig: Path, server: LocalApiServer, url: str) -> AsyncIterator[list[LocalOperator]]:
    """The first one leads, reaching the API server by `kubeconfig`; the second stands by."""
    with (
        LocalOperator(kubeconfig, url, NAMESPACE, instance="first", lease=LEASE) as first,
        contextlib.ExitStack() as stack,
    ):
        await asyncio.to_thread(first.wait_ready)
        await eventually(first.leads, "the first leads")
        second = stack.enter_context(LocalOperator(server.kubeconfig, url, NAMESPACE, instance="second", lease=LEASE))
        await asyncio.to_thread(second.wait_ready)
        assert not second.leads()
        yield [first, second]


async def test_the_leader_is_killed_and_the_other_acts(server: LocalApiServer, database_url: str) -> None:
    async with two_operators(server.kubeconfig, server, database_url) as (first, second):
        first.kill()
        apply_users(server, "late")
        taken = await eventually(lambda: has_deployment(server, "late"), "the other acts", TAKEOVER_S)
        assert second.leads()
        print(f"\nthe leader killed, the other acted after {taken:.1f} s")


async def test_an_orderly_end_hands_over_at_once(server: LocalApiServer, database_url: str) -> None:
    async with two_operators(server.kubeconfig, server, database_url) as (first, second):
        await asyncio.to_thread(first.stop)
        taken = await eventually(second.leads, "the other leads", 8.0)  # less than any lease takes to expire
        print(f"\nthe leader ended in order, the other led after {taken:.1f} s")


async def test_a_leader_cut_off_stops_before_another_begins(server: LocalApiServer, database_url: str) -> None:
    """All the while both are told to change everything, so that whoever may write does."""
    async with Link(server.port) as link:
        kubeconfig = server.kubeconfig_for(link.port)
        async with two_operators(kubeconfig, server, database_url) as (first, second):
            names = [f"user-{number}" for number in range(20)]
            changing = asyncio.create_task(keep_changing(server, names))
            await eventually(lambda: len(applied_at(first)) > 40, "the first works")
            link.hold(up=True, down=True)
            cut = time.time()
            taken = await eventually(second.leads, "the second leads", TAKEOVER_S)
            await eventually(lambda: len(applied_at(second)) > 20, "the second works")
            assert not first.leads()
            # What was held back must not arrive late; then the first one is back, and stands by.
            link.cut()
            link.release()
            await asyncio.sleep(6)
            assert not first.leads()
            changing.cancel()
            await asyncio.gather(changing, return_exceptions=True)
            last, begin = max(applied_at(first)), min(applied_at(second))
            print(
                f"\ncut off: the other led after {taken:.1f} s, {begin - last:.1f} s after the last write of the first"
            )
            assert cut - 5 < last < begin


async def keep_changing(server: LocalApiServer, names: list[str]) -> None:
    connections = 10
    while True:
        connections += 1
        await asyncio.to_thread(functools.partial(apply_users, server, *names, connections=connections))
        await asyncio.sleep(0.3)


async def test_a_dead_and_a_silent_api_server_are_survived(server: LocalApiServer, database_url: str) -> None:
    with LocalOperator(server.kubeconfig, database_url, NAMESPACE, instance="only", lease=LEASE) as operator:
        await asyncio.to_thread(operator.wait_ready)
        await eventually(operator.leads, "it leads")
        server.kill()
        await eventually(lambda: not operator.leads(), "it stands by while the API server is dead", 20)
        await asyncio.to_thread(server.start)
        apply_users(server, "after-death")
        await eventually(lambda: has_deployment(server, "after-death"), "it acts again")
        server.pause()
        try:
            await eventually(lambda: not operator.leads(), "it stands by while the API server is silent", 20)
        finally:
            server.resume()
        await asyncio.to_thread(apply_users, server, "after-silence")
        await eventually(lambda: has_deployment(server, "after-silence"), "it acts again")
        assert operator.process is not None
        assert operator.process.poll() is None


async def settled(operator: LocalOperator) -> dict[str, int]:
    """The operator's requests, once there is nothing left to do."""
    requests: dict[str, int] = {}
    deadline = time.monotonic() + 240
    while True:
        await asyncio.sleep(3)
        now = await asyncio.to_thread(operator.requests)
        if now == requests and operator.metric("userrealtime_operator_workqueue_depth") == 0 and operator.leads():
            return requests
        assert time.monotonic() < deadline, f"still at work: {now}"
        requests = now


def writes(requests: dict[str, int]) -> int:
    return sum(number for name, number in requests.items() if not name.startswith("GET "))


async def test_api_calls_a_resource(server: LocalApiServer, database_url: str) -> None:
    """A thousand resources: created, changed, touched without a change; and a restart that writes nothing."""
    count = 1_000
    names = [f"user-{number}" for number in range(count)]
    with LocalOperator(server.kubeconfig, database_url, NAMESPACE, instance="counted", lease=LEASE) as operator:
        await asyncio.to_thread(operator.wait_ready)
        figures: dict[str, dict[str, int]] = {}
        await asyncio.to_thread(apply_users, server, *names)
        figures["create"] = total = await settled(operator)
        await asyncio.to_thread(apply_users, server, *names, connections=7)
        total, before = await settled(operator), total
        figures["update"] = {name: number - before.get(name, 0) for name, number in total.items()}
        selector = ("-n", NAMESPACE, "annotate", "urt", "--all", "touched=yes")
        await asyncio.to_thread(server.kubectl, *selector, timeout=120)
        total, before = await settled(operator), total
        figures["no change"] = {name: number - before.get(name, 0) for name, number in total.items()}
        await asyncio.to_thread(operator.stop)
        operator.start()
        await asyncio.to_thread(operator.wait_ready)
        figures["restart"] = await settled(operator)
    print()
    for what, requests in figures.items():
        print(f"{what}: {sum(requests.values()) / count:.2f} calls a resource, of which {writes(requests)} writes")
    assert writes(figures["no change"]) == writes(figures["restart"]) == 0
    # Four children, and the status as it becomes; one Deployment and the status.
    assert 5 * count <= writes(figures["create"]) <= 7 * count
    assert 2 * count <= writes(figures["update"]) <= 4 * count
