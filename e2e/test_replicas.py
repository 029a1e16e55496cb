"""Several pods for one user: each serves the same log, and a client that is cut off goes on at another."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Callable

import asyncpg

from testing.client import ResumingClient
from testing.patience import PATIENCE_S
from testing.system import System
from testing.waiting import eventually

from .test_faults import assert_all_arrived, publishing

MakeUser = Callable[..., str]
CLIENTS = 4
KILLS = 6


def pods(system: System, user: str) -> list[str]:
    """The names of the user's pods that are ready."""
    selector = f"app.kubernetes.io/instance={system.get('urt', user)['status']['name']}"
    found = json.loads(system.kubectl("get", "pods", "-l", selector, "-o", "json"))["items"]
    return [
        pod["metadata"]["name"]
        for pod in found
        if "deletionTimestamp" not in pod["metadata"]
        and all(container["ready"] for container in pod["status"].get("containerStatuses", [{"ready": False}]))
    ]


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
        # Each pod says what it has, and together they are right.
        async with asyncio.timeout(PATIENCE_S):
            while (
                await database.fetchval("select clients from userrealtime.online where user_id = $1", alice) != CLIENTS
            ):
                await asyncio.sleep(0.5)
