"""React, Vue and Svelte on the JavaScript client: real React and Vue, in Chromium, with a real relay."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from testing.browser import Page, browser
from testing.clients.fixture import ClientFixture, serving
from testing.clients.javascript import run
from testing.local.postgres import LocalPostgres

PAGE = '<!doctype html><html lang="en"><title>frameworks</title><script type="module" src="page.js"></script></html>'


pytestmark = pytest.mark.usefixtures("chromium_is_there")


@pytest.fixture(scope="module")
def bundle(application: Path) -> Path:
    """A folder with the page: the installed package, the development build of React, and Vue."""
    modules = application.parent / "source" / "node_modules"
    folder = application / "frameworks"
    folder.mkdir()
    (folder / "page.html").write_text(PAGE)
    command = (
        str(modules / ".bin" / "esbuild"),
        str(application / "test" / "frameworks" / "page.mjs"),
        "--bundle",
        "--format=esm",
        '--define:process.env.NODE_ENV="development"',
        f"--outfile={folder / 'page.js'}",
        "--log-level=warning",
    )
    run("env", f"NODE_PATH={modules}", *command, folder=application)
    return folder


@pytest.fixture
async def stage(postgres_server: LocalPostgres) -> AsyncIterator[ClientFixture]:
    async with ClientFixture(postgres_server) as stage:
        yield stage


@pytest.fixture
async def page(stage: ClientFixture, bundle: Path) -> AsyncIterator[Page]:
    async with serving(stage, bundle) as url, browser() as chromium, chromium.page() as page:
        await page.goto(f"{url}/frameworks/page.html")
        await page.wait_for("window.ready === true")
        yield page
        assert await page.evaluate("seen.errors") == []


async def shows(page: Page, identifier: str, text: str) -> None:
    await page.wait_for(f"text({identifier!r}) === {text!r}")


async def seen(page: Page, *names: str) -> list[Any]:
    return [await page.evaluate(f"seen.{name}") for name in names]


async def test_any_number_of_react_components_share_one_connection(page: Page, stage: ClientFixture) -> None:
    """This also holds in StrictMode, which runs every effect twice."""
    await stage.publish(3)
    await page.evaluate("draw('one', ['a', 'b', 'c'])")
    await page.evaluate("draw('two', ['d'])")
    for identifier in "abcd":
        await shows(page, identifier, "3 connected")
    await stage.publish(2)
    for identifier in "abcd":
        await shows(page, identifier, "5 connected")
    assert await seen(page, "opened", "open", "loads") == [1, 1, 1]
    await page.evaluate("document.getElementById('c').click()")
    await page.wait_for("seen.published.length === 1")
    assert [message["data"] for message in await stage.inbox()] == [{"by": "c"}]

    # Components that stay or replace others keep the connection. The last one closes it.
    await page.evaluate("draw('one', ['c'])")
    await page.evaluate("draw('one', ['e', 'f'])")
    await page.evaluate("remove('two')")
    await stage.publish()
    await shows(page, "e", "6 connected")
    assert await seen(page, "opened", "open", "loads") == [1, 1, 1]
    await page.evaluate("remove('one')")
    await page.wait_for("seen.open === 0")

    await stage.publish()
    await page.evaluate("draw('again', ['g'])")
    await shows(page, "g", "7 connected")
    assert await seen(page, "opened", "open", "loads") == [2, 1, 2]


async def test_a_react_page_is_right_after_a_reset_and_a_restart(page: Page, stage: ClientFixture) -> None:
    await page.evaluate("draw('one', ['a'])")
    await shows(page, "a", "0 connected")
    await stage.publish()
    await shows(page, "a", "1 connected")
    await stage.replace()
    await stage.restart()
    await stage.publish()
    await shows(page, "a", "2 connected")
    await stage.refuse(True)
    await stage.publish(3)
    await stage.forget()
    await stage.restart()  # it has the events in memory
    await stage.refuse(False)
    await shows(page, "a", "5 connected")
    assert await page.evaluate("seen.loads") == 3


async def test_a_page_that_a_server_rendered_goes_on_from_its_state(page: Page, stage: ClientFixture) -> None:
    await stage.publish(4)
    assert await page.evaluate("hydrate('one', 'a')") == "4 loading"
    await shows(page, "a", "6 connected")
    await stage.publish()
    await shows(page, "a", "7 connected")
    assert await seen(page, "opened", "loads") == [1, 0]


async def test_without_a_user_nothing_is_connected(page: Page, stage: ClientFixture) -> None:
    await page.evaluate("draw('one', ['a'], {url: null})")
    await shows(page, "a", "none closed")
    assert await seen(page, "opened", "loads") == [0, 0]
    await page.evaluate("draw('one', ['a'])")
    await shows(page, "a", "0 connected")
    await page.evaluate("draw('one', ['a'], {url: null})")
    await shows(page, "a", "none closed")
    await page.wait_for("seen.open === 0")


@pytest.mark.parametrize("framework", ["vue", "svelte"])
async def test_others_on_the_same_core(page: Page, stage: ClientFixture, framework: str) -> None:
    await stage.publish()
    await page.evaluate(f"{framework}('one', 'a')")
    await page.evaluate("draw('two', ['b'])")
    await shows(page, "a", "1 connected")
    await stage.publish()
    await shows(page, "a", "2 connected")
    await shows(page, "b", "2 connected")
    await page.evaluate("document.getElementById('a').click()")
    await page.wait_for("seen.published.length === 1")
    await page.evaluate("remove('one')")
    await page.evaluate("remove('two')")
    await page.wait_for("seen.open === 0")
    assert await seen(page, "opened", "loads") == [1, 1]


@pytest.mark.parametrize("framework", ["react", "vue", "svelte"])
async def test_broadcasts_in_both_directions(page: Page, stage: ClientFixture, framework: str) -> None:
    draw = "draw('one', ['a'])" if framework == "react" else f"{framework}('one', 'a')"
    assert await page.evaluate(f"{draw}, senders.a('typing', 0)") is False  # there is no connection yet
    await shows(page, "a", "0 connected")
    await page.evaluate("listen()")
    assert await page.evaluate("senders.a('typing', 1)") is True
    await page.wait_for("seen.broadcasts.length === 1")
    assert await seen(page, "heard", "broadcasts") == [["typing 1"], ["reply 1"]]
    await page.evaluate("remove('one')")
    await page.wait_for("seen.open === 0")
    assert await page.evaluate("senders.a('typing', 2)") is False
