"""Faults during the delivery of events. Every client has every event once and in order."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import asyncpg

from testing.attempts import Attempts
from testing.client import ResumingClient
from testing.clients import standard
from testing.cluster import ClusterError
from testing.patience import PATIENCE_S, WITHIN
from testing.system import OPERATOR_NAMESPACE, RELEASE, System
from testing.waiting import eventually

MakeUser = Callable[..., str]
PUBLISH_INTERVAL_S = 0.01
NO_NODE_HAS: dict[str, Any] = {"resources": {"requests": {"cpu": "1000"}}}


class Publisher:
    """Publishes numbered events until stopped. What it counts has been committed."""

    def __init__(self, url: str, user: str) -> None:
        self.attempted = 0
        self.committed: list[int] = []
        self._url, self._user = url, user

    async def run(self) -> None:
        while True:
            with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                connection = await asyncpg.connect(self._url, timeout=5, command_timeout=5)
                try:
                    await self._publish(connection)
                finally:
                    connection.terminate()
            await asyncio.sleep(0.1)

    async def _publish(self, connection: asyncpg.Connection) -> None:
        while True:
            self.attempted += 1
            await connection.execute(
                "select userrealtime.publish($1, 'tick', jsonb_build_object('number', $2::int))",
                self._user,
                self.attempted,
            )
            self.committed.append(self.attempted)
            await asyncio.sleep(PUBLISH_INTERVAL_S)


@contextlib.asynccontextmanager
async def publishing(url: str, user: str) -> AsyncIterator[Publisher]:
    publisher = Publisher(url, user)
    task = asyncio.create_task(publisher.run())
    try:
        yield publisher
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def published(database_url: str, user: str) -> list[asyncpg.Record]:
    """Return the id of each event in the log of a user, and its number, in order."""
    database = await asyncpg.connect(database_url, timeout=PATIENCE_S)
    try:
        return await database.fetch(
            "select id, (data->>'number')::int as number from userrealtime.event where user_id = $1 order by id", user
        )
    finally:
        await database.close()


async def assert_all_arrived(client: ResumingClient, publisher: Publisher, database_url: str, user: str) -> None:
    """Assert that the log has all committed events, and that the client has all of them once and in order."""
    rows = await published(database_url, user)
    await client.wait_for(lambda: bool(client.ids) and client.ids[-1] == rows[-1]["id"])
    assert client.ids == [row["id"] for row in rows] == list(range(1, len(rows) + 1))
    assert [event["data"]["number"] for event in client.events] == [row["number"] for row in rows]
    assert set(publisher.committed) <= {row["number"] for row in rows}
    assert client.resets == []


async def test_the_relays_pod_is_killed_twice(system: System, users: MakeUser, database_url: str) -> None:
    alice = await asyncio.to_thread(users, "alice")
    selector = f"app.kubernetes.io/instance={system.get('urt', alice)['status']['name']}"
    async with ResumingClient(system.websocket_url(alice), system.token(alice)) as client:
        async with publishing(database_url, alice) as publisher:
            for life in (1, 2):
                await client.wait_for_more(50)
                await asyncio.to_thread(system.kubectl, "delete", "pod", "-l", selector, "--now", "--wait=false")
                await client.wait_for_connections(life + 1, timeout=PATIENCE_S)
            await client.wait_for_more(50)
        await assert_all_arrived(client, publisher, database_url, alice)


async def test_a_changed_spec_rolls_out_under_a_connected_client(
    system: System, users: MakeUser, database_url: str
) -> None:
    alice = await asyncio.to_thread(users, "alice")
    async with ResumingClient(system.websocket_url(alice), system.token(alice)) as client:
        async with publishing(database_url, alice) as publisher:
            await client.wait_for_more(50)
            await asyncio.to_thread(system.apply_user, alice, limits={"connections": 7})
            await asyncio.to_thread(system.wait_ready, alice)
            await client.wait_for_connections(2, timeout=PATIENCE_S)
            await client.wait_for_more(50)
        await assert_all_arrived(client, publisher, database_url, alice)


async def test_postgres_is_restarted(system: System, users: MakeUser, database_url: str) -> None:
    alice = await asyncio.to_thread(users, "alice")
    async with ResumingClient(system.websocket_url(alice), system.token(alice)) as client:
        async with publishing(database_url, alice) as publisher:
            await client.wait_for_more(50)
            await asyncio.to_thread(system.restart_postgres)
            await client.wait_for_more(50, timeout=PATIENCE_S)
        await assert_all_arrived(client, publisher, database_url, alice)


async def test_the_operator_is_away_while_children_vanish(system: System, users: MakeUser, database_url: str) -> None:
    """It repairs deleted and changed children on its return, and clients of other users are not affected."""
    alice, bob = await asyncio.gather(*(asyncio.to_thread(users, name) for name in ("alice", "bob")))
    name = system.get("urt", alice)["status"]["name"]
    secret = system.get("secret", name)["data"]
    async with ResumingClient(system.websocket_url(bob), system.token(bob)) as client:
        async with publishing(database_url, bob) as publisher:
            operator = ("-n", OPERATOR_NAMESPACE, "scale", f"deployment/{RELEASE}")
            await asyncio.to_thread(system.cluster.kubectl, *operator, "--replicas=0")
            pods = ("-n", OPERATOR_NAMESPACE, "wait", "--for=delete", "pod", WITHIN)
            await asyncio.to_thread(system.cluster.kubectl, *pods, "-l", "app.kubernetes.io/name=userrealtime-operator")
            try:
                for kind in ("deployment", "ingress"):
                    await asyncio.to_thread(system.kubectl, "delete", kind, name, WITHIN)
                patch = '{"spec": {"selector": {"app": "nobody"}}}'
                await asyncio.to_thread(system.kubectl, "patch", "service", name, "--type=merge", "-p", patch)
            finally:
                await asyncio.to_thread(system.cluster.kubectl, *operator, "--replicas=2")

            def mended() -> bool:
                try:
                    service = system.get("service", name)
                    system.get("ingress", name)
                    system.get("deployment", name)
                except ClusterError:
                    return False
                return bool(
                    service["spec"]["selector"]
                    == {"app.kubernetes.io/name": "userrealtime-relay", "app.kubernetes.io/instance": name}
                )

            await wait_until(mended)
            await asyncio.to_thread(system.wait_ready, alice)
        await assert_all_arrived(client, publisher, database_url, bob)
        assert client.connections == 1
    assert system.get("secret", name)["data"] == secret
    async with ResumingClient(system.websocket_url(alice), system.token(alice)) as client:
        database = await asyncpg.connect(database_url, timeout=PATIENCE_S)
        await database.execute("select userrealtime.publish($1, 'again')", alice)
        await database.close()
        await client.wait_for_events(1)
        assert client.ids == [1]


async def wait_until(condition: Callable[[], bool], timeout: float = 90) -> None:
    """Wait until a blocking function returns True."""
    async with asyncio.timeout(timeout):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.2)


def pods_of(system: System, user: str) -> tuple[str, ...]:
    """Return the arguments that select the pods of a user."""
    return "pods", "-l", f"app.kubernetes.io/instance={system.get('urt', user)['status']['name']}"


async def test_clients_that_connect_while_a_pod_is_replaced_get_no_error(
    system: System, users: MakeUser, database_url: str, standard_clients: Path
) -> None:
    """Clients connect every 50 ms, without retries, while the pod is deleted and then replaced by a rollout.

    An EventSource, which stops at the first error, receives each event.
    """
    alice = await asyncio.to_thread(users, "alice", limits={"connections": 1000})
    url, token = system.get("urt", alice)["status"]["url"], system.token(alice)
    async with standard.connected(url, token, standard_clients) as clients:
        async with (
            publishing(database_url, alice) as publisher,
            Attempts(url, token, "sse") as streams,
            Attempts(url, token, "ws") as websockets,
        ):
            await asyncio.to_thread(system.kubectl, "delete", *pods_of(system, alice), WITHIN)
            await asyncio.to_thread(system.wait_ready, alice)
            await asyncio.to_thread(system.apply_user, alice, limits={"connections": 1001})
            await asyncio.to_thread(system.wait_ready, alice)
            await asyncio.sleep(5)  # until the old pod has drained
        rows = await published(database_url, alice)
        ids = await clients.ids(len(rows))
    for attempts in (streams, websockets):
        assert attempts.results
        assert attempts.failed == [], str(attempts)
    assert set(clients.statuses) == {"200"}
    assert set(publisher.committed) <= {row["number"] for row in rows}
    every = list(range(1, len(rows) + 1))
    assert ids == {"node": every, "Chromium": every}


async def test_clients_wait_for_the_first_pod(system: System) -> None:
    """Also those of a user that never sleeps."""
    alice = f"waited-for-{secrets.token_hex(3)}"
    spec: dict[str, Any] = {"idle": {"warm": True}, "limits": {"connections": 1000}}
    try:
        await asyncio.to_thread(system.apply_user, alice, **spec, relay=NO_NODE_HAS)
        await asyncio.to_thread(eventually, lambda: "url" in system.get("urt", alice).get("status", {}), "a URL")
        await asyncio.to_thread(system.wait_reachable, alice)
        url, token = system.get("urt", alice)["status"]["url"], system.token(alice)
        async with Attempts(url, token) as attempts:
            await asyncio.sleep(2)
            assert attempts.results == [], "the clients wait"
            await asyncio.to_thread(system.apply_user, alice, **spec)
            await asyncio.to_thread(system.wait_ready, alice)
        assert attempts.failed == [], str(attempts)
        assert attempts.results
    finally:
        await asyncio.to_thread(system.delete_user, alice)
