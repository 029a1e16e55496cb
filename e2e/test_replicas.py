"""Several pods for one user: each serves the same log, and a disconnected client resumes at another one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Callable

import asyncpg
import pytest

from testing.client import ResumingClient
from testing.cluster import ClusterError
from testing.patience import PATIENCE_S
from testing.system import USERS_NAMESPACE, System
from testing.waiting import eventually

from .test_faults import assert_all_arrived, publishing

MakeUser = Callable[..., str]
CLIENTS = 4
KILLS = 6


def pods(system: System, user: str) -> list[str]:
    """Return the names of the user's ready pods."""
    selector = f"app.kubernetes.io/instance={system.get('urt', user)['status']['name']}"
    found = json.loads(system.kubectl("get", "pods", "-l", selector, "-o", "json"))["items"]
    return [
        pod["metadata"]["name"]
        for pod in found
        if "deletionTimestamp" not in pod["metadata"]
        and all(container["ready"] for container in pod["status"].get("containerStatuses", [{"ready": False}]))
    ]


async def evict(system: System, pod: str) -> bool:
    """Evict a pod, as `kubectl drain` does. Return False if a PodDisruptionBudget prevents it at the moment."""
    eviction = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": pod, "namespace": USERS_NAMESPACE},
    }
    path = f"/api/v1/namespaces/{USERS_NAMESPACE}/pods/{pod}/eviction"
    try:
        await asyncio.to_thread(system.kubectl, "create", "--raw", path, "-f", "-", input=json.dumps(eviction))
    except ClusterError as error:
        if "disruption budget" not in str(error):  # kubectl's message for the status 429
            raise
        return False
    return True


@pytest.mark.parametrize("replicas", [1, 2])
async def test_clients_resume_when_pods_are_evicted(
    system: System, users: MakeUser, database_url: str, replicas: int
) -> None:
    """All pods of a user are evicted as soon as that is allowed: with several, never the last that is ready."""
    alice = await asyncio.to_thread(lambda: users("alice", replicas=replicas))
    before = await asyncio.to_thread(pods, system, alice)
    if replicas > 1:
        budget = (
            "get",
            "pdb",
            system.get("urt", alice)["status"]["name"],
            "-o",
            "jsonpath={.status.disruptionsAllowed}",
        )
        await asyncio.to_thread(eventually, lambda: system.kubectl(*budget) == "1", "the budget allows one eviction")
    url, token = system.websocket_url(alice), system.token(alice)
    async with ResumingClient(url, token) as client:
        async with publishing(database_url, alice) as publisher:
            await client.wait_for_more(20, timeout=PATIENCE_S)
            left, refused = list(before), 0
            async with asyncio.timeout(PATIENCE_S):
                while left:
                    if await evict(system, left[0]):
                        del left[0]
                    else:
                        refused += 1
                        assert await asyncio.to_thread(pods, system, alice) != []
                        await asyncio.sleep(0.2)
            assert (refused > 0) is (replicas > 1)
            await client.wait_for_more(20, timeout=PATIENCE_S)
        await assert_all_arrived(client, publisher, database_url, alice)
    await asyncio.to_thread(system.wait_ready, alice)
    assert not set(before) & set(await asyncio.to_thread(pods, system, alice))


async def test_pods_are_killed_at_random(
    system: System, users: MakeUser, database: asyncpg.Connection, database_url: str
) -> None:
    alice = await asyncio.to_thread(lambda: users("alice", replicas=3))
    assert len(pods(system, alice)) == 3
    url, token = system.websocket_url(alice), system.token(alice)
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(ResumingClient(url, token)) for _ in range(CLIENTS)]
        async with publishing(database_url, alice) as publisher:
            for _ in range(KILLS):
                await clients[0].wait_for_more(20, timeout=PATIENCE_S)
                # The kills may come faster than pods start.
                await asyncio.to_thread(eventually, lambda: bool(pods(system, alice)), "a pod is ready")
                ready = await asyncio.to_thread(pods, system, alice)
                victim = random.choice(ready)  # noqa: S311 (no secret)
                await asyncio.to_thread(system.kubectl, "delete", "pod", victim, "--now", "--wait=false")
            for client in clients:
                await client.wait_for_more(20, timeout=PATIENCE_S)
        for client in clients:
            await assert_all_arrived(client, publisher, database_url, alice)
        # Each pod reports its clients; the sum is correct.
        async with asyncio.timeout(PATIENCE_S):
            while (
                await database.fetchval("select clients from userrealtime.online where user_id = $1", alice) != CLIENTS
            ):
                await asyncio.sleep(0.5)
