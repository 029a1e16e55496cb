"""The life of a resource: validation, repair of its children, and complete removal."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import yaml

from testing.client import ResumingClient
from testing.cluster import ClusterError
from testing.patience import PATIENCE_S, WITHIN
from testing.system import ROOT, System
from testing.waiting import eventually

MakeUser = Callable[..., str]
CHILDREN = "deployments,services,secrets,ingresses,replicasets,pods"


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ({"userId": ""}, "spec.userId"),
        ({"userId": "a\nb"}, "userId must not contain control characters"),
        ({"userId": "x" * 254}, "spec.userId"),
        ({"limits": {"connections": 0}}, "spec.limits.connections"),
        ({"limits": {"messageBytes": 10}}, "spec.limits.messageBytes"),
        ({"limits": {"messagesPerSecond": 0}}, "spec.limits.messagesPerSecond"),
        ({"limits": {"broadcastsPerSecond": -1}}, "spec.limits.broadcastsPerSecond"),
        ({"relay": {"logLevel": "loud"}}, 'spec.relay.logLevel: Unsupported value: "loud"'),
        ({"protocols": ["gopher"]}, r'spec.protocols\[0\]: Unsupported value: "gopher"'),
        ({"route": {"url": "nowhere"}}, r"url must be http\(s\)://host"),
        ({"relay": {"resources": {"limits": {"memory": "a lot"}}}}, "spec.relay.resources.limits.memory"),
    ],
)
def test_a_bad_spec_is_refused_at_apply_time_and_its_field_named(
    system: System, spec: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ClusterError, match=complaint):
        system.apply_user("never-made", **spec)


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_the_examples_are_accepted(system: System, example: Path) -> None:
    items = list(yaml.safe_load_all(example.read_text()))
    for item in items:
        item["metadata"]["name"] += "-dry"  # the user of `make up` may have this name
    manifest = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    system.cluster.kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", input=manifest)


def test_the_user_of_a_resource_cannot_be_changed(system: System, users: MakeUser) -> None:
    name = users()
    with pytest.raises(ClusterError, match="userId is immutable"):
        system.apply_user(name, userId="somebody-else")


async def test_user_ids_of_any_shape(system: System, users: MakeUser, database: asyncpg.Connection) -> None:
    run = time.time_ns()
    user_ids = [
        f"Ann.Lee+{run}@Example.com",
        f"ann.lee+{run}@example.com",
        f"{run}{'x' * 181}",
        f"Jörg {run} 🙂",
        f"$(HOME) $${run}",
    ]
    made = (asyncio.to_thread(users, "shape", userId=user_id) for user_id in user_ids)
    names = await asyncio.gather(*made)
    assert len({system.get("urt", name)["status"]["name"] for name in names}) == len(user_ids)
    for name, user_id in zip(names, user_ids, strict=True):
        async with ResumingClient(system.websocket_url(name), system.token(name)) as client:
            await database.execute("select userrealtime.publish($1, 'x')", user_id)
            await client.wait_for_events(1)
            assert client.ids == [1]


def test_the_status_tells_people_and_tools(system: System, users: MakeUser) -> None:
    name = users()
    resource = system.get("urt", name)
    status = resource["status"]
    assert status["observedGeneration"] == resource["metadata"]["generation"]
    assert {(c["type"], c["status"]) for c in status["conditions"]} == {
        ("Ready", "True"),
        ("Progressing", "False"),
        ("DatabaseReady", "True"),
        ("Asleep", "False"),
    }
    assert status["url"].endswith(f"/{status['name']}")
    row = system.kubectl("get", "urt", name).splitlines()
    assert row[0].split() == ["NAME", "USER", "READY", "STATE", "URL", "AGE"]
    assert row[1].split()[:5] == [name, name, "True", "Awake", status["url"]]
    system.kubectl("wait", "--for=condition=Ready", f"urt/{name}", "--timeout=5s")


@pytest.mark.parametrize("kind", ["deployment", "service", "secret", "ingress"])
def test_a_deleted_child_comes_back(system: System, users: MakeUser, kind: str) -> None:
    user = users()
    name = system.get("urt", user)["status"]["name"]
    before = system.get(kind, name)["metadata"]["uid"]
    system.kubectl("delete", kind, name, WITHIN)
    eventually(lambda: system.get(kind, name)["metadata"]["uid"] != before, f"another {kind}")
    system.wait_ready(user)


@pytest.mark.parametrize(
    ("kind", "patch"),
    [
        ("deployment", {"spec": {"template": {"spec": {"automountServiceAccountToken": True}}}}),
        ("deployment", {"spec": {"replicas": 3}}),
        ("deployment", {"metadata": {"ownerReferences": None}}),
        ("service", {"spec": {"selector": {"app.kubernetes.io/instance": "other"}}}),
        ("ingress", {"spec": {"rules": [{"host": "elsewhere.example.com"}]}}),
        ("secret", {"data": {"TOKEN_KEY_PREVIOUS": "eA=="}}),
    ],
)
def test_an_edited_child_is_put_right(system: System, users: MakeUser, kind: str, patch: dict[str, Any]) -> None:
    user = users()
    name = system.get("urt", user)["status"]["name"]
    before = essence(system.get(kind, name))
    system.kubectl("patch", kind, name, "--type=merge", "-p", json.dumps(patch))
    eventually(lambda: essence(system.get(kind, name)) == before, f"the {kind} as it was")


def essence(item: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that a person can edit."""
    metadata = item["metadata"]
    annotations = {key: value for key, value in metadata["annotations"].items() if "deployment.kubernetes" not in key}
    return {
        "metadata": {
            "labels": metadata["labels"],
            "annotations": annotations,
            "owner": metadata.get("ownerReferences"),
        },
        **{key: value for key, value in item.items() if key in ("spec", "data", "type")},
    }


def test_a_changed_spec_rolls_out(system: System, users: MakeUser) -> None:
    user = users()
    name = system.get("urt", user)["status"]["name"]
    system.apply_user(user, limits={"connections": 7})
    system.wait_ready(user)
    pods = json.loads(system.kubectl("get", "pods", "-l", f"app.kubernetes.io/instance={name}", "-o", "json"))["items"]
    running = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
    environment = {entry["name"]: entry.get("value") for entry in running[0]["spec"]["containers"][0]["env"]}
    assert (len(running), environment["MAX_CONNECTIONS"]) == (1, "7")


def test_a_route_switched_off_and_on(system: System, users: MakeUser) -> None:
    user = users()
    name = system.get("urt", user)["status"]["name"]
    system.apply_user(user, route={"enabled": False})
    eventually(lambda: name not in system.kubectl("get", "ingress", "-o", "name"), "no ingress")
    eventually(lambda: "url" not in system.get("urt", user)["status"], "no URL")
    system.apply_user(user)
    eventually(lambda: name in system.kubectl("get", "ingress", "-o", "name"), "an ingress")


def test_the_second_resource_of_a_user_says_so(system: System, users: MakeUser) -> None:
    first = users()
    second = f"{first}-again"
    try:
        system.apply_user(second, userId=first)

        def reason() -> str:
            conditions = system.get("urt", second).get("status", {}).get("conditions", [])
            return next((c["reason"] for c in conditions if c["type"] == "Ready"), "")

        eventually(lambda: reason() == "DuplicateUserId", "the reason DuplicateUserId")
        system.wait_ready(first)
    finally:
        system.delete_user(second)


async def test_deletion_leaves_nothing_in_kubernetes_and_postgres(
    system: System, users: MakeUser, database: asyncpg.Connection
) -> None:
    gone, stays = await asyncio.gather(*(asyncio.to_thread(users, label) for label in ("gone", "stays")))
    name = system.get("urt", gone)["status"]["name"]
    for user in (gone, stays):
        async with ResumingClient(system.websocket_url(user), system.token(user)) as client:
            await database.execute("select userrealtime.publish($1, 'x') from generate_series(1, 100)", user)
            await database.execute("select userrealtime.submit($1, 'ref', 'x', '{}')", user)
            await client.wait_for_events(100)

    pod_ips = {user: await asyncio.to_thread(pod_addresses, system, user) for user in (gone, stays)}

    async def traces(user: str) -> dict[str, int]:
        found = {
            table: await database.fetchval(f"select count(*) from userrealtime.{table} where user_id = $1", user)
            for table in ("registration", "log", "event", "inbox")
        }
        found["connections"] = await database.fetchval(
            "select count(*) from pg_stat_activity where host(client_addr) = any ($1)", pod_ips[user]
        )
        return found

    there = {"registration": 1, "log": 1, "event": 100, "inbox": 1, "connections": 1}
    assert await traces(gone) == await traces(stays) == there
    await asyncio.to_thread(system.delete_user, gone)
    left = ("get", CHILDREN, "-l", f"app.kubernetes.io/instance={name}", "-o", "name")
    await asyncio.to_thread(eventually, lambda: not system.kubectl(*left).strip(), "no child left")
    async with asyncio.timeout(PATIENCE_S):
        while any((await traces(gone)).values()):
            await asyncio.sleep(0.2)
    assert await traces(stays) == there


def pod_addresses(system: System, user: str) -> list[str]:
    """Return the addresses of a user's pods."""
    selector = f"app.kubernetes.io/instance={system.get('urt', user)['status']['name']}"
    return system.kubectl("get", "pods", "-l", selector, "-o", "jsonpath={.items[*].status.podIP}").split()
