"""The page in Chromium, with a real server, relay and Postgres, and a cluster that is replaced by a fixture."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import asyncpg
import pytest
import uvicorn

from examples.demo.app import Demo
from examples.demo.cluster import Cluster
from examples.demo.config import Config
from examples.demo.database import Database
from examples.demo.view import Object
from testing.browser import Page, browser
from testing.clients.fixture import ClientFixture
from testing.demo import ROLE, prepare_database
from testing.local.postgres import LocalPostgres, free_port
from testing.patience import PATIENCE_S
from testing.relay.harness import token

CONNECTED = "document.querySelector('#state').dataset.state === 'connected'"
MESSAGES = "[...document.querySelectorAll('#messages .what')].map((item) => item.textContent)"
TICKS = "document.querySelector('#ticks').textContent"
LOADED_AGAIN = "document.querySelectorAll('#timeline .reloaded').length"


pytestmark = pytest.mark.usefixtures("chromium_is_there")


class OnePod:
    """The cluster as the demo's server uses it: one user, whose pod is the relay of the fixture."""

    def __init__(self, stage: ClientFixture) -> None:
        self._stage = stage

    async def provision(self, user: str) -> None:
        """Do nothing: the user exists."""

    async def token(self, user: str) -> Object:
        return {"url": self._stage.url, "token": token(sub=user), "expiresIn": 3600}

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
async def serving(stage: ClientFixture, url: str, database: Database) -> AsyncIterator[str]:
    """Serve the demo, and return its URL."""
    port = free_port()
    config = Config(f"http://127.0.0.1:{port}", "", "users", port, url, "k" * 64)
    demo = Demo(config, cast(Cluster, OnePod(stage)), database)
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


@pytest.fixture
async def stage(postgres_server: LocalPostgres) -> AsyncIterator[ClientFixture]:
    async with ClientFixture(postgres_server) as stage:
        yield stage


@pytest.fixture
async def owner(stage: ClientFixture) -> AsyncIterator[asyncpg.Connection]:
    """A connection as the owner of the database."""
    connection = await asyncpg.connect(stage.server.url(stage.database))
    await prepare_database(connection)
    yield connection
    connection.terminate()


@pytest.fixture
async def database(stage: ClientFixture, owner: asyncpg.Connection) -> AsyncIterator[Database]:
    async with Database.connect(stage.server.url(stage.database).replace("//postgres@", f"//{ROLE}@")) as found:
        yield found


@pytest.fixture
async def page(stage: ClientFixture, database: Database) -> AsyncIterator[Page]:
    """Alice's page, connected. It knows whether it was loaded again since."""
    url = stage.server.url(stage.database)
    async with serving(stage, url, database) as origin, browser() as chromium, chromium.page() as page:
        # The relay of the fixture has another origin than the page; on a cluster both have the same.
        await page.call("Page.setBypassCSP", enabled=True)
        await page.goto(origin)
        await page.click("[data-login=alice]")
        await page.wait_for(CONNECTED)
        await page.evaluate("window.loadedOnce = true")
        yield page
        assert await page.evaluate("window.loadedOnce === true")
        assert page.problems == []


def shows(*messages: str, ticks: int = 0) -> str:
    """An expression that is true if the page shows these messages, the newest first, and this number of ticks."""
    expected = json.dumps(json.dumps(messages, separators=(",", ":")))
    return f"JSON.stringify({MESSAGES}) === {expected} && {TICKS} === '{ticks}'"


async def test_a_new_page_has_the_state_before_its_first_event(page: Page, database: Database) -> None:
    await page.wait_for(shows())
    await database.send("alice", "bob", "one")
    await database.send("bob", "alice", "to bob")
    await database.tick("alice")
    await page.wait_for(shows("one", ticks=1))
    await page.goto(await page.evaluate("location.href"))
    await page.wait_for(f"window.loadedOnce === undefined && {CONNECTED}")
    await page.wait_for(shows("one", ticks=1))
    assert await page.evaluate("document.querySelectorAll('#events li').length") == 0
    assert "State loaded, after event 2" in await page.text("#timeline")
    await page.evaluate("window.loadedOnce = true")


async def test_it_is_correct_after_a_killed_pod(page: Page, database: Database, stage: ClientFixture) -> None:
    await database.send("alice", "bob", "before")
    await page.wait_for(shows("before"))
    await stage.relay.stop(grace_s=0)
    await page.wait_for(f"!({CONNECTED})")
    await database.send("alice", "bob", "meanwhile")
    await database.tick("alice")
    await stage.relay.start()
    await page.wait_for(shows("meanwhile", "before", ticks=1))
    await page.wait_for(CONNECTED)
    assert "2 events replayed, 0 missed" in await page.text("#timeline .resumed")
    assert await page.evaluate(LOADED_AGAIN) == 0
    assert await page.text("#missed") == "0"


async def test_it_is_correct_after_retention_has_passed_its_position(
    page: Page, database: Database, stage: ClientFixture, owner: asyncpg.Connection
) -> None:
    await database.send("alice", "bob", "before")
    await page.wait_for(shows("before"))
    await stage.refuse(True)
    await page.wait_for(f"!({CONNECTED})")
    await database.send("alice", "bob", "never received")
    await database.tick("alice")
    await owner.execute("delete from userrealtime.event")
    await stage.restart()
    await stage.refuse(False)
    await page.wait_for(shows("never received", "before", ticks=1))
    assert await page.evaluate(LOADED_AGAIN) == 1
    await page.wait_for(CONNECTED)
    assert await page.evaluate("document.querySelectorAll('#events li').length") == 1
    assert await page.evaluate("document.querySelectorAll('#timeline .resumed').length") == 0
    assert await page.text("#last") == "3"
    # The events after the state arrive as before.
    await database.send("alice", "bob", "afterwards")
    await page.wait_for(shows("afterwards", "never received", "before", ticks=1))
    assert await page.text("#missed") == "0"
    assert await page.text("#twice") == ""
