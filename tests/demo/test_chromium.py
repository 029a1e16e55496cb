"""The page in Chromium, with a real server, relay and Postgres, and a cluster that is replaced by a fixture."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import asyncpg
import pytest

from examples.demo.database import Database
from testing.browser import Page, browser
from testing.clients.fixture import ClientFixture
from testing.demo_server import demo_database, serving_demo
from testing.local.postgres import LocalPostgres

CONNECTED = "document.querySelector('#state').dataset.state === 'connected'"
MESSAGES = "[...document.querySelectorAll('#messages .what')].map((item) => item.textContent)"
TICKS = "document.querySelector('#ticks').textContent"
LOADED_AGAIN = "document.querySelectorAll('#timeline .reloaded').length"


pytestmark = pytest.mark.usefixtures("chromium_is_there")


@pytest.fixture
async def stage(postgres_server: LocalPostgres) -> AsyncIterator[ClientFixture]:
    async with ClientFixture(postgres_server) as stage:
        yield stage


@pytest.fixture
async def owner(stage: ClientFixture) -> AsyncIterator[asyncpg.Connection]:
    """A connection as the owner of the database."""
    connection = await asyncpg.connect(stage.server.url(stage.database))
    yield connection
    connection.terminate()


@pytest.fixture
async def database(stage: ClientFixture) -> AsyncIterator[Database]:
    async with demo_database(stage) as found:
        yield found


@pytest.fixture
async def page(stage: ClientFixture, database: Database) -> AsyncIterator[Page]:
    """Alice's page, connected. It knows whether it was loaded again since."""
    async with serving_demo(stage, database) as origin, browser() as chromium, chromium.page() as page:
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
