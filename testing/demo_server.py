"""The server of the demo, with a real relay and Postgres, and a cluster that is replaced by a fixture."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import asyncpg
import uvicorn

from examples.demo.app import Demo
from examples.demo.cluster import Cluster
from examples.demo.config import Config
from examples.demo.database import Database
from examples.demo.view import Object
from testing.clients.fixture import ClientFixture
from testing.demo import ROLE, prepare_database
from testing.local.ports import free_port
from testing.patience import PATIENCE_S
from testing.relay.harness import token


class OnePod:
    """The cluster as the demo's server uses it: one user, whose pod is the relay of the fixture."""

    def __init__(self, stage: ClientFixture, path: str) -> None:
        self._stage = stage
        self._path = path

    async def provision(self, user: str) -> None:
        """Do nothing: the user exists."""

    async def token(self, user: str) -> Object:
        return {"url": f"{self._stage.url}{self._path}", "token": token(sub=user), "expiresIn": 3600}

    async def kill(self, user: str) -> int:
        await self._stage.restart(grace_s=0)
        return 1

    async def follow_resource(self, user: str, changed: Callable[[Object | None], Awaitable[None]]) -> None:
        ready = {"type": "Ready", "status": "True", "reason": "Ready", "message": ""}
        await changed({"status": {"name": f"urt-{user}", "conditions": [ready]}})
        await asyncio.Event().wait()

    async def follow_pods(self, name: str, changed: Callable[[list[Object]], Awaitable[None]]) -> None:
        status = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
        metadata = {"name": name, "creationTimestamp": "2026-01-01T00:00:00Z"}
        await changed([{"metadata": metadata, "status": status}])
        await asyncio.Event().wait()


@asynccontextmanager
async def serving_demo(stage: ClientFixture, database: Database, path: str = "") -> AsyncIterator[str]:
    """Serve the demo, and yield its URL. `path` is that of the user's URL."""
    port = free_port()
    url = stage.server.url(stage.database)
    config = Config(f"http://127.0.0.1:{port}", "", "users", port, url, "k" * 64)
    demo = Demo(config, cast(Cluster, OnePod(stage, path)), database)
    options: dict[str, Any] = {"ws": "none", "lifespan": "off", "log_level": "warning", "timeout_graceful_shutdown": 1}
    server = uvicorn.Server(uvicorn.Config(demo.app(), host="127.0.0.1", port=port, **options))
    tasks = [asyncio.create_task(task) for task in (server.serve(), demo.feed.run(), demo.traffic.run())]
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not server.started:
                await asyncio.sleep(0.01)
        yield config.origin
    finally:
        server.should_exit = True
        for task in tasks[1:]:
            task.cancel()
        await asyncio.wait(tasks)


@asynccontextmanager
async def demo_database(stage: ClientFixture) -> AsyncIterator[Database]:
    """Create the demo's tables and role in the database of the fixture, and connect with this role."""
    url = stage.server.url(stage.database)
    owner = await asyncpg.connect(url)
    try:
        await prepare_database(owner)
    finally:
        await owner.close(timeout=PATIENCE_S)
    async with Database.connect(url.replace("//postgres@", f"//{ROLE}@")) as database:
        yield database
