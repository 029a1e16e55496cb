"""Several operators, of which one is active, and their requests. On a local API server without a node."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import NamedTuple

import pytest

from testing.faults.proxy import Link
from testing.local.apiserver import LocalApiServer, Write
from testing.local.operator import ROOT, LocalOperator
from testing.local.postgres import LocalPostgres
from testing.operator.names import child_name
from testing.patience import PATIENCE_S, WITHIN
from userrealtime_operator.model.naming import CREDENTIALS_SUFFIX
from userrealtime_operator.postgres.migrate import migrate

NAMESPACE = "users"
LEASE = f"{NAMESPACE}/operator"
CRD = ROOT / "charts" / "userrealtime" / "files" / "userrealtimes.yaml"
TAKEOVER_S = 20.0
RELAY = "userrealtime-relay"
WORKERS = 8
REPLICAS = ("first", "second")
MAY_WORK = {
    "apiGroups": [
        *("", "apps", "discovery.k8s.io", "events.k8s.io", "networking.k8s.io", "policy"),
        "userrealtime.dev",
    ]
}
MAY_LEAD = {"apiGroups": ["coordination.k8s.io"]}


@pytest.fixture
async def database_url() -> AsyncIterator[str]:
    """A new database. A user belongs to one cluster, and each test has another cluster."""
    with LocalPostgres() as server:
        await migrate(server.url())
        yield server.url()


@contextlib.contextmanager
def prepared(*options: str) -> Iterator[LocalApiServer]:
    """An API server with an audit log. Each replica is a separate user without the rights of an
    administrator, whose requests would not be limited."""
    with LocalApiServer(*options, audit=True) as api:
        api.kubectl("create", "namespace", NAMESPACE)
        api.kubectl("apply", "--server-side", "-f", str(CRD))
        api.kubectl("wait", "--for=condition=Established", WITHIN, "-f", str(CRD))
        for role, rule in {"work": MAY_WORK, "lead": MAY_LEAD}.items():
            rules = [{**rule, "resources": ["*"], "verbs": ["*"]}]
            item = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": role}}
            api.kubectl("create", "-f", "-", input=json.dumps({**item, "rules": rules}))
            for user in REPLICAS:
                api.kubectl("create", "clusterrolebinding", f"{user}-{role}", f"--clusterrole={role}", f"--user={user}")
        yield api


@pytest.fixture
def server() -> Iterator[LocalApiServer]:
    with prepared() as api:
        yield api


def replica(name: str, server: LocalApiServer, url: str, port: int | None = None) -> LocalOperator:
    """An operator that reaches the API server by this port, as a user of the same name."""
    kubeconfig = server.kubeconfig_for(port or server.port, name)
    return LocalOperator(kubeconfig, url, NAMESPACE, instance=name, lease=LEASE)


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


async def eventually(condition: Callable[[], bool], what: str, timeout: float = PATIENCE_S) -> float:
    """Wait until `condition` holds; return the seconds that it took."""
    begin = time.monotonic()
    while not await asyncio.to_thread(condition):
        if time.monotonic() - begin > timeout:
            pytest.fail(f"not within {timeout:.0f} s: {what}")
        await asyncio.sleep(0.1)
    return time.monotonic() - begin


@contextlib.asynccontextmanager
async def two_operators(
    server: LocalApiServer, url: str, ports: tuple[int, int] | None = None
) -> AsyncIterator[list[LocalOperator]]:
    """Start two operators, which use the API server at these ports; the first leads, and the second is on standby."""
    first_port, second_port = ports or (server.port, server.port)
    with replica("first", server, url, first_port) as first, contextlib.ExitStack() as stack:
        await asyncio.to_thread(first.wait_ready)
        await eventually(first.leads, "the first leads")
        second = stack.enter_context(replica("second", server, url, second_port))
        await asyncio.to_thread(second.wait_ready)
        assert not second.leads()
        yield [first, second]


async def test_the_leader_is_killed_and_the_other_acts(server: LocalApiServer, database_url: str) -> None:
    async with two_operators(server, database_url) as (first, second):
        first.kill()
        apply_users(server, "late")
        taken = await eventually(lambda: has_deployment(server, "late"), "the other acts", TAKEOVER_S)
        assert second.leads()
        print(f"\nthe leader killed, the other acted after {taken:.1f} s")


async def test_an_orderly_end_hands_over_at_once(server: LocalApiServer, database_url: str) -> None:
    async with two_operators(server, database_url) as (first, second):
        await asyncio.to_thread(first.stop)
        taken = await eventually(second.leads, "the other leads", 8.0)  # less than any lease takes to expire
        print(f"\nthe leader ended in order, the other led after {taken:.1f} s")


class Term(NamedTuple):
    """The time from a replica's acquisition of the Lease to the next request for it, and all writes in this time."""

    holder: str
    begin: datetime
    end: datetime
    writes: list[Write]


def terms(server: LocalApiServer) -> list[Term]:
    """Return the terms from the audit log of the API server. A write belongs to the term of its response."""
    writes = server.writes(*REPLICAS)
    claims: list[Write] = []
    for write in writes:
        if write.lease_holder and (not claims or claims[-1].user != write.user):
            assert write.lease_holder.startswith(write.user)
            claims.append(write)
    ends = [*(claim.received for claim in claims[1:]), datetime.max.replace(tzinfo=UTC)]
    starts = [claim.answered for claim in claims]
    work = [write for write in writes if write.resource != "leases"]
    assert not [write for write in work if write.answered <= starts[0]]
    return [
        Term(claim.user, start, end, [write for write in work if start < write.answered <= following])
        for claim, start, end, following in zip(claims, starts, ends, [*starts[1:], ends[-1]], strict=True)
    ]


async def test_never_two_at_once(server: LocalApiServer, database_url: str) -> None:
    """Leaders that are cut off, that hear no answers, and that may do everything but renew the Lease. All the while
    every resource is changed: an operator that believes itself the leader writes."""
    async with Link(server.port) as one, Link(server.port) as two:
        links = dict(zip(REPLICAS, (one, two), strict=True))
        async with two_operators(server, database_url, (one.port, two.port)) as operators:
            changing = asyncio.create_task(keep_changing(server, [f"user-{number}" for number in range(20)]))
            leader, other = operators
            for trouble in ("cut off", "no answers", "no renewal"):
                begun = len(server.writes(leader.instance))
                await eventually(lambda: len(server.writes(leader.instance)) > begun + 40, "the leader works")  # noqa: B023
                link = links[leader.instance]
                if trouble == "no renewal":
                    await asyncio.to_thread(server.kubectl, "delete", "clusterrolebinding", f"{leader.instance}-lead")
                else:
                    link.hold(up=trouble == "cut off", down=True)
                taken = await eventually(other.leads, "the other leads", TAKEOVER_S)
                print(f"\n{trouble}: the other led after {taken:.1f} s")
                await eventually(lambda: not leader.leads(), "the first is on standby")  # noqa: B023
                # Delayed requests must not arrive later; then the first operator is back, on standby.
                link.cut()
                link.release()
                leader, other = other, leader
            begun = len(server.writes(leader.instance))
            await eventually(lambda: len(server.writes(leader.instance)) > begun + 40, "the last leader works")
            assert not other.leads()
            changing.cancel()
            await asyncio.gather(changing, return_exceptions=True)
    found = terms(server)
    assert [term.holder for term in found] == ["first", "second", "first", "second"]
    for term in found:
        assert len(term.writes) > 20
        wrong = [w for w in term.writes if w.user != term.holder or w.received <= term.begin or w.answered >= term.end]
        assert not wrong, f"outside of the term of {term.holder} from {term.begin} to {term.end}: {wrong}"
    for term, after in pairwise(found):
        pause = (after.begin - max(write.answered for write in term.writes)).total_seconds()
        print(f"{term.holder} wrote last {pause:.1f} s before {after.holder} held the lease")


async def keep_changing(server: LocalApiServer, names: list[str]) -> None:
    connections = 10
    while True:
        connections += 1
        await asyncio.to_thread(functools.partial(apply_users, server, *names, connections=connections))
        await asyncio.sleep(0.3)


async def test_a_dead_and_a_silent_api_server_are_survived(server: LocalApiServer, database_url: str) -> None:
    """It dies during writes. No write is lost, and only writes without a response are repeated."""
    with replica("first", server, database_url) as operator:
        await asyncio.to_thread(operator.wait_ready)
        await eventually(operator.leads, "it leads")
        names = [f"user-{number}" for number in range(200)]
        await asyncio.to_thread(apply_users, server, *names)
        await eventually(lambda: len(server.writes("first")) > 200, "it works")
        server.kill()
        before = written(server)
        assert 40 < len(before) < 900
        await eventually(lambda: not operator.leads(), "it is on standby while the API server is down", 20)
        await asyncio.to_thread(server.start)
        await eventually(lambda: stored(server) == expected(names), "all are served", 2 * PATIENCE_S)
        await settled(operator)
        # A write without a response is not in the audit log, so its repetition counts once.
        children = children_of(written(server))
        again = children.total() - len(children)
        print(f"\nof 800 children, {again} were written again after the death of the API server")
        assert again <= WORKERS
        server.pause()
        try:
            await eventually(lambda: not operator.leads(), "it is on standby while the API server does not respond", 20)
        finally:
            server.resume()
        await asyncio.to_thread(apply_users, server, "after-silence")
        await eventually(lambda: has_deployment(server, "after-silence"), "it acts again")
        assert operator.process is not None
        assert operator.process.poll() is None


async def test_an_overloaded_api_server_is_left_alone_and_nothing_is_lost(database_url: str) -> None:
    """An API server that accepts one write at a time and responds to all others with 429."""
    limits = "--enable-priority-and-fairness=false", "--max-mutating-requests-inflight=1"
    with prepared(*limits) as server, replica("first", server, database_url) as operator:
        await asyncio.to_thread(operator.wait_ready)
        names = [f"user-{number}" for number in range(100)]
        await asyncio.to_thread(apply_users, server, *names)
        await eventually(lambda: set(written(server)) == expected(names), "all are served", 2 * PATIENCE_S)
        await settled(operator)
        refused = operator.metric("userrealtime_operator_rest_client_requests_total", code="429")
        print(f"\n{refused:.0f} writes were refused with 429")
        assert refused > 0
        assert set(written(server)) == expected(names)
        assert set(children_of(written(server)).values()) == {1}


def written(server: LocalApiServer) -> Counter[tuple[str, str]]:
    """Return the number of writes of each object, and of each resource's status, by an operator."""
    return Counter((w.resource, w.name) for w in server.writes(*REPLICAS) if w.resource != "leases")


def stored(server: LocalApiServer) -> set[tuple[str, str]]:
    """Return the existing children, and the users with a status."""
    kinds = ("secrets", "services", "deployments", "ingresses")
    found = server.kubectl(
        "-n", NAMESPACE, "get", ",".join(kinds), "-o", "json", "-l", f"app.kubernetes.io/name={RELAY}"
    )
    plurals = {kind.removesuffix("es" if kind == "ingresses" else "s"): kind for kind in kinds}
    users = json.loads(server.kubectl("-n", NAMESPACE, "get", "urt", "-o", "json"))["items"]
    return {(plurals[item["kind"].lower()], item["metadata"]["name"]) for item in json.loads(found)["items"]} | {
        ("userrealtimes/status", user["metadata"]["name"]) for user in users if "status" in user
    }


def children_of(counts: Counter[tuple[str, str]]) -> Counter[tuple[str, str]]:
    """Return the writes without those of statuses, whose number depends on the number of users (docs/signals.md)."""
    return Counter({key: count for key, count in counts.items() if key[0] != "userrealtimes/status"})


def expected(users: Sequence[str]) -> set[tuple[str, str]]:
    """Return the writes that are expected for users with default settings."""
    children = {
        (kind, child_name(user)) for user in users for kind in ("secrets", "services", "deployments", "ingresses")
    }
    children |= {("secrets", child_name(user) + CREDENTIALS_SUFFIX) for user in users}
    return children | {("userrealtimes/status", user) for user in users}


async def settled(operator: LocalOperator, quiet_s: float = 3) -> dict[str, int]:
    """Return the operator's requests when no work is left and there was no request for `quiet_s`."""
    requests: dict[str, int] = {}
    deadline = time.monotonic() + 2 * PATIENCE_S
    while True:
        await asyncio.sleep(quiet_s)
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
    with replica("first", server, database_url) as operator:
        await asyncio.to_thread(operator.wait_ready)
        figures: dict[str, dict[str, int]] = {}
        await asyncio.to_thread(apply_users, server, *names)
        figures["create"] = total = await settled(operator)
        await asyncio.to_thread(apply_users, server, *names, connections=7)
        total, before = await settled(operator), total
        figures["update"] = {name: number - before.get(name, 0) for name, number in total.items()}
        selector = ("-n", NAMESPACE, "annotate", "urt", "--all", "touched=yes")
        await asyncio.to_thread(server.kubectl, *selector)
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
    # five children and the changes of the status; one Deployment and the status
    assert 6 * count <= writes(figures["create"]) <= 8 * count
    assert 2 * count <= writes(figures["update"]) <= 4 * count


# a manual change of a child, and the repair of the child
DRIFTS: list[tuple[str, dict[str, object] | None]] = [
    ("deployments", {"spec": {"replicas": 3}}),
    ("deployments", {"spec": {"template": {"spec": {"automountServiceAccountToken": True}}}}),
    ("deployments", {"metadata": {"ownerReferences": None}}),
    ("services", {"spec": {"selector": {"app.kubernetes.io/instance": "other"}}}),
    ("services", {"metadata": {"labels": {"app.kubernetes.io/managed-by": None}}}),
    ("ingresses", {"spec": {"rules": [{"host": "elsewhere.example.com"}]}}),
    ("secrets", {"data": {"TOKEN_KEY_PREVIOUS": "eA=="}}),
    ("secrets", {"metadata": {"labels": {"app.kubernetes.io/managed-by": None}}}),
    *((kind, None) for kind in ("deployments", "services", "ingresses", "secrets")),
]


async def test_drift_in_every_child_is_repaired_by_the_watch(server: LocalApiServer, database_url: str) -> None:
    """No timer causes it: the operator waits for nothing, and checks all resources every five minutes."""
    child = child_name("alice")

    def contents(kind: str) -> dict[str, object]:
        item = json.loads(server.kubectl("-n", NAMESPACE, "get", kind, child, "-o", "json"))
        metadata = {name: item["metadata"].get(name) for name in ("labels", "annotations", "ownerReferences")}
        return {"metadata": metadata, **{name: item.get(name) for name in ("spec", "data", "type")}}

    def repairs(kind: str) -> list[Write]:
        return [w for w in server.writes("first") if (w.resource, w.name) == (kind, child)]

    with replica("first", server, database_url) as operator:
        await asyncio.to_thread(operator.wait_ready)
        await asyncio.to_thread(apply_users, server, "alice")
        await eventually(lambda: has_deployment(server, "alice"), "it has a Deployment")
        await settled(operator)
        # The operator checks periodically why a pod is not ready. All pods are ready, so there are no such checks.
        condition = {"type": "Available", "status": "True"}
        replicas = dict.fromkeys(("replicas", "updatedReplicas", "readyReplicas", "availableReplicas"), 1)
        status = json.dumps({"status": {"observedGeneration": 99, **replicas, "conditions": [condition]}})
        patch = ("-n", NAMESPACE, "patch", "--type=merge")
        figures = []
        for kind, change in DRIFTS:
            server.kubectl(*patch, "deployment", child, "--subresource=status", "-p", status)
            server.kubectl("-n", NAMESPACE, "wait", "--for=condition=Progressing=False", "urt/alice", WITHIN)
            await settled(operator, quiet_s=1)  # there is a single user
            looks = operator.metric("userrealtime_operator_rest_client_requests_total", resource="pods")
            before, known = await asyncio.to_thread(contents, kind), len(repairs(kind))
            if change is None:
                server.kubectl("-n", NAMESPACE, "delete", kind, child)
            else:
                server.kubectl(*patch, kind, child, "-p", json.dumps(change))
            await eventually(lambda: len(repairs(kind)) > known, f"{kind} repaired after {change}")  # noqa: B023
            done = [w for w in server.writes("admin") if (w.resource, w.name) == (kind, child)][-1]
            figures.append((repairs(kind)[known].answered - done.received).total_seconds())
            print(f"\n{kind} {json.dumps(change) if change else 'deleted'}: repaired after {figures[-1]:.3f} s", end="")
            if change is not None:
                assert await asyncio.to_thread(contents, kind) == before
                assert operator.metric("userrealtime_operator_rest_client_requests_total", resource="pods") == looks
        print(f"\nat the most {max(figures):.3f} s")
