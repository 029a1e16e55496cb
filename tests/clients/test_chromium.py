"""The JavaScript client in a real browser: the scenarios, and what only a browser does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from testing.browser import Page, browser
from testing.clients.fixture import ClientFixture, serving
from testing.local.postgres import LocalPostgres

# The scenarios of each transport run in Node.js.
SCENARIOS = (
    "events come once and in order, by websocket",
    "events come once and in order, by sse",
    "events come once and in order, by poll",
    "whatever breaks, by websocket",
    "whatever breaks, by sse",
    "whatever breaks, by poll",
    "a state and its events join without a gap or a duplicate, by websocket",
    "a state and its events join without a gap or a duplicate, by sse",
    "a state and its events join without a gap or a duplicate, by poll",
    "any value of jsonb arrives or is reported, by websocket",
    "any value of jsonb arrives or is reported, by sse",
    "any value of jsonb arrives or is reported, by poll",
    "tokens that end are replaced, by websocket",
    "tokens that end are replaced, by sse",
    "what is published is stored once and in order, by websocket",
    "what is published is stored once and in order, by sse",
    "a token that is refused twice ends the client, by websocket",
    "a token that is refused twice ends the client, by sse",
    "broadcasts arrive in order and move no position, by websocket",
    "broadcasts arrive in order and move no position, by sse",
    "broadcasts arrive in order and move no position, by poll",
    "a broadcast of a client reaches the others and not itself, by websocket",
    "a broadcast of a client reaches the others and not itself, by sse",
    "a broadcast of a client reaches the others and not itself, by poll",
    "a gap is told, by websocket",
    "a connection that goes silent for good is replaced",
    "what does not come through is got round",
    "what cannot be published is told",
    "listeners get what came before them too, and each message once",
    "a client that does not take its events lets go and misses nothing",
)
CONNECT = """
    Math.random = () => 0.99; // the longest delays: without the expected event, the test runs into its limit
    window.ids = [];
    window.states = [];
    window.client = new UserRealtime({
      url: %r,
      token: async () => (await fetch("/token")).text(),
      limits: { backoff: 300_000, backoffMost: 300_000, transports: [%r], pingInterval: 500, pongTimeout: 500 },
    });
    client.on("event", ({ id }) => ids.push(id));
    client.on("state", ({ state }) => states.push(state));
"""
OFFLINE = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}


pytestmark = pytest.mark.usefixtures("chromium_is_there")


@pytest.fixture
async def stage(postgres_server: LocalPostgres) -> AsyncIterator[ClientFixture]:
    async with ClientFixture(postgres_server) as stage:
        yield stage


@pytest.fixture
async def page(stage: ClientFixture, application: Path) -> AsyncIterator[Page]:
    folders = (application / "dist", application / "test" / "relay")
    async with serving(stage, *folders) as url, browser() as chromium, chromium.page() as page:
        await page.goto(f"{url}/relay/page.html")
        await page.wait_for("typeof play === 'function'")
        yield page


async def test_scenarios(page: Page) -> None:
    assert set(SCENARIOS) <= set(await page.evaluate("names"))
    for name in SCENARIOS:
        await page.evaluate(f"play({name!r}).catch((error) => {{ throw new Error({name!r} + ': ' + error.stack) }})")


@pytest.mark.parametrize("transport", ["websocket", "sse"])
async def test_when_the_network_is_back_it_connects_at_once(page: Page, stage: ClientFixture, transport: str) -> None:
    await page.evaluate(CONNECT % (stage.url, transport))
    await page.wait_for("client.state === 'connected'")
    await stage.publish(2)
    await page.wait_for("ids.length === 2")
    await page.call("Network.emulateNetworkConditions", offline=True, **OFFLINE)
    await stage.refuse(True)
    await page.wait_for("client.state === 'waiting'")
    await stage.publish(2)
    await stage.refuse(False)
    await page.call("Network.emulateNetworkConditions", offline=False, **OFFLINE)
    await page.wait_for("ids.length === 4")
    assert await page.evaluate("ids") == [1, 2, 3, 4]


async def test_a_page_that_was_frozen_goes_on(page: Page, stage: ClientFixture) -> None:
    await page.evaluate(CONNECT.replace("300_000", "100") % (stage.url, "websocket"))
    await page.wait_for("client.state === 'connected'")
    await page.call("Page.setWebLifecycleState", state="frozen")
    stage.link.strand()
    await stage.publish(3)
    await asyncio.sleep(2)
    await page.call("Page.setWebLifecycleState", state="active")
    await page.wait_for("ids.length === 3")
    assert await page.evaluate("ids") == [1, 2, 3]


@pytest.mark.parametrize("transport", ["websocket", "sse", "poll"])
async def test_a_broadcast_of_one_tab_reaches_the_other(
    stage: ClientFixture, application: Path, transport: str
) -> None:
    listen = """
        window.heard = [];
        client.on("broadcast", ({ event, data }) => heard.push([event, data]));
    """
    folders = (application / "dist", application / "test" / "relay")
    async with (
        serving(stage, *folders) as url,
        browser() as chromium,
        chromium.page() as one,
        chromium.page() as two,
    ):
        for page in (one, two):
            await page.goto(f"{url}/relay/page.html")
            await page.wait_for("typeof play === 'function'")
            await page.evaluate(CONNECT.replace("300_000", "100") % (stage.url, transport) + listen)
            await page.wait_for("client.state === 'connected'")
        for sender, receiver in ((one, two), (two, one)):
            assert await sender.evaluate("[1, 2, 3].map((n) => client.broadcast('typing', { n }))") == [True] * 3
            await receiver.wait_for("heard.length === 3")
            assert await receiver.evaluate("heard") == [["typing", {"n": number}] for number in (1, 2, 3)]
        # Neither received its own. After a break of the connection, broadcasts arrive again.
        await stage.restart(grace_s=0)
        for page in (one, two):
            await page.wait_for("states.filter((state) => state === 'connected').length === 2")
        assert await one.evaluate("client.broadcast('typing', { n: 4 })") is True
        await two.wait_for("heard.length === 4")
        assert await one.evaluate("heard.length") == 3
