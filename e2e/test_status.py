"""Errors are reported in the conditions of the resource and in `kubectl describe`."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from testing.client import ResumingClient
from testing.patience import PATIENCE_S
from testing.system import OPERATOR_NAMESPACE, System
from testing.waiting import eventually

MakeUser = Callable[..., str]
WRONG_IMAGE = {"image": "127.0.0.1:1/no-such-image:1"}
TOO_LARGE = {"resources": {"requests": {"memory": "900Ti"}}}


@pytest.fixture
def troubled(system: System) -> Iterator[Callable[..., str]]:
    """A function that creates users that are not expected to become Ready."""
    made: list[str] = []

    def make(name: str, **spec: Any) -> str:
        made.append(name)
        system.apply_user(name, **spec)
        return name

    yield make
    for name in made:
        system.delete_user(name)


def ready(system: System, name: str) -> tuple[str, str, str]:
    """Return the status, reason and message of the condition Ready."""
    conditions = system.get("urt", name).get("status", {}).get("conditions", [])
    return next(((c["status"], c["reason"], c["message"]) for c in conditions if c["type"] == "Ready"), ("", "", ""))


def says(system: System, name: str, reason: str, *parts: str) -> None:
    """Assert that the resource and its description have the reason, with advice."""
    eventually(lambda: ready(system, name)[1] == reason, f"the reason {reason}, but {ready(system, name)}")
    assert ready(system, name)[0] == "False"
    for part in parts:
        assert part in ready(system, name)[2]

    def described() -> bool:
        text = system.kubectl("describe", "urt", name)
        _, _, events = text.rpartition("Events:")
        return reason in text and "Warning" in events and reason in events

    eventually(described, f"{reason} among the events of `kubectl describe`")


def test_an_image_that_cannot_be_pulled(system: System, troubled: Callable[..., str]) -> None:
    name = troubled("wrong-image", relay=WRONG_IMAGE)
    says(system, name, "ImagePullFailed", "no-such-image", "spec.relay.image")
    system.apply_user(name)
    system.wait_ready(name)
    eventually(lambda: "Resolved" in system.kubectl("describe", "urt", name), "the event Resolved")


async def test_a_new_image_that_cannot_be_pulled_leaves_the_old_pod_serving(
    system: System, users: MakeUser, database: asyncpg.Connection
) -> None:
    name = users("half")
    async with ResumingClient(system.websocket_url(name), system.token(name)) as client:
        await asyncio.to_thread(system.apply_user, name, relay=WRONG_IMAGE)

        def progressing() -> str:
            conditions = system.get("urt", name)["status"]["conditions"]
            return next(str(c["reason"]) for c in conditions if c["type"] == "Progressing")

        await asyncio.to_thread(eventually, lambda: progressing() == "ImagePullFailed", "Progressing tells why")
        assert (await asyncio.to_thread(ready, system, name))[0] == "True"
        await database.execute("select userrealtime.publish($1, 'still')", name)
        await client.wait_for_events(1)
        assert client.connections == 1


def test_a_pod_that_no_node_can_take(system: System, troubled: Callable[..., str]) -> None:
    says(system, troubled("too-large", relay=TOO_LARGE), "Unschedulable", "memory")


def test_a_quota_that_leaves_no_room(system: System, troubled: Callable[..., str]) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "full", "namespace": "users"},
        "spec": {"hard": {"pods": "0"}},
    }
    system.cluster.apply(json.dumps(quota))
    try:
        name = troubled("over-quota")
        says(system, name, "QuotaExceeded", "pods=")
    finally:
        system.kubectl("delete", "resourcequota", "full")
    system.wait_ready(name)


def test_a_user_who_is_served_already(system: System, users: MakeUser, troubled: Callable[..., str]) -> None:
    first = users("first")
    says(system, troubled("second", userId=first), "DuplicateUserId", first)


async def test_a_database_that_is_away(system: System, troubled: Callable[..., str], database_url: str) -> None:
    async with closed_database(database_url):
        name = await asyncio.to_thread(troubled, "no-database")
        await asyncio.to_thread(says, system, name, "DatabaseUnavailable")
    await asyncio.to_thread(system.wait_ready, name)
    logs = await asyncio.to_thread(
        system.cluster.kubectl,
        *("-n", OPERATOR_NAMESPACE, "logs", "-l", "app.kubernetes.io/name=userrealtime-operator", "--tail=-1"),
    )
    password = system.database.url.split("@")[0].rpartition(":")[2]
    assert logs
    assert password not in logs
    assert password not in await asyncio.to_thread(system.kubectl, "describe", "urt", name)


async def test_a_database_that_goes_away_from_a_user_who_was_ready(
    system: System, troubled: Callable[..., str], database_url: str
) -> None:
    name = await asyncio.to_thread(troubled, "lost-database")
    await asyncio.to_thread(system.wait_ready, name)
    async with closed_database(database_url, "userrealtime-relay"):
        await asyncio.to_thread(says, system, name, "DatabaseUnavailable")
    await asyncio.to_thread(system.wait_ready, name)


@contextlib.asynccontextmanager
async def closed_database(url: str, *others: str) -> AsyncIterator[None]:
    """Reject new connections to the database, and end the connections of the operator and of `others`."""
    address = urlsplit(url)
    name = address.path.strip("/")
    # From another database of the server: a session cannot close its own database.
    connection = await asyncpg.connect(address._replace(path="/template1").geturl(), timeout=PATIENCE_S)
    try:
        await connection.execute(f'alter database "{name}" allow_connections false')
        await connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = any($1)",
            ["userrealtime-operator", *others],
        )
        yield
    finally:
        await connection.execute(f'alter database "{name}" allow_connections true')
        await connection.close(timeout=PATIENCE_S)
