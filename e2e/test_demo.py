"""The demo, as people see it: in Chromium, on the cluster, with a pod that is killed while they look."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from testing import demo
from testing.browser import DESK, PHONE, Browser, Page, Viewport, browser
from testing.client import LOOPBACK
from testing.cluster import ClusterError
from testing.patience import PATIENCE_S
from testing.system import ROOT, USERS_NAMESPACE, System

IMAGES = ROOT / "docs" / "images"
ACCOUNT = f"system:serviceaccount:{demo.NAMESPACE}:demo"
CONNECTED = "document.querySelector('#state').dataset.state === 'connected'"
POD_READY = "document.querySelector('#pod-state').dataset.state === 'ready'"
MADE_UP_FOR = "Number(document.querySelector('#timeline .resumed')?.dataset.made) > 0"
SHOWN_IDS = "[...document.querySelectorAll('#events li')].map((item) => Number(item.dataset.id))"
# What reaches beyond a width. Not that of the window: a phone's grows with what it has to show.
TOO_WIDE = """[...document.querySelectorAll("body *")]
    .filter((element) => element.getBoundingClientRect().right > {width} + 0.5)
    .map((element) => element.outerHTML.slice(0, 80))"""
# Texts whose contrast with what is behind them is below 4.5 (WCAG 2.1, AA), as contrast and text.
TOO_FAINT = """(() => {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const rgb = (color) => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = color;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const linear = (part) => (part <= 0.04045 * 255 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4);
    const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
    const behind = (element) => {
        for (let at = element; at; at = at.parentElement) {
            const color = rgb(getComputedStyle(at).backgroundColor);
            if (color[3] === 255) return color;
        }
        return [255, 255, 255, 255];
    };
    const found = [];
    for (const element of document.querySelectorAll("body *")) {
        const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
        if (!own || !element.checkVisibility() || element.disabled) continue;
        const pair = [rgb(getComputedStyle(element).color), behind(element)].map(luminance).sort((a, b) => b - a);
        const contrast = (pair[0] + 0.05) / (pair[1] + 0.05);
        if (contrast < 4.5) found.push(`${contrast.toFixed(2)} ${element.textContent.trim().slice(0, 40)}`);
    }
    return found;
})()"""


@pytest.fixture(scope="module")
def url(system: System) -> Iterator[str]:
    def there() -> set[str]:
        return set(system.kubectl("get", "urt", "-o", "name").split())

    before = there()
    yield demo.install(system)
    for name in there() - before:
        system.delete_user(name.rpartition("/")[2])


@pytest.fixture
async def chromium() -> AsyncIterator[Browser]:
    async with browser() as found:
        yield found


@asynccontextmanager
async def logged_in(
    chromium: Browser, url: str, user: str, viewport: Viewport = DESK, *, dark: bool = False
) -> AsyncIterator[Page]:
    """The page of a connected user."""
    async with chromium.page(viewport, dark=dark) as page:
        await page.goto(url)
        await page.click(f"[data-login={user}]")
        await page.wait_for(f"{CONNECTED} && {POD_READY}", timeout=PATIENCE_S)
        yield page


async def publish(page: Page, text: str, way: str) -> None:
    """Publish by the page's form, and wait until the page shows it."""
    await page.write("#text", text)
    await page.click(f"#publish button[value={way}]")
    await page.wait_for(f"document.querySelector('#events').innerText.includes({json.dumps(text)})")


async def test_what_is_published_is_seen(chromium: Browser, url: str) -> None:
    async with logged_in(chromium, url, "alice") as page:
        await publish(page, "by the server", "server")
        assert await page.text("#notice") == "Published to alice."
        await publish(page, "over the socket", "socket")
        assert "Stored in the inbox" in await page.text("#notice")
        assert "echo over the socket (inbox " in await page.text("#events")
        # Any message is shown as text.
        await publish(page, "<img src=x onerror=alert(1)>", "server")
        assert await page.evaluate("document.querySelectorAll('#events img').length") == 0
        assert await page.text("#missed") == "0"
        assert page.problems == []


async def test_two_users_see_each_other(chromium: Browser, url: str) -> None:
    online = "document.querySelector('[data-person={}] .online').dataset.online === '{}'"
    async with logged_in(chromium, url, "alice") as alice:
        async with logged_in(chromium, url, "bob", PHONE) as bob:
            await alice.wait_for(online.format("bob", "true"))
            await bob.wait_for(online.format("alice", "true"))
            await bob.evaluate("document.querySelector('#to').value = 'alice'")
            await bob.write("#text", "from one to the other")
            await bob.click("#publish button[value=server]")
            await alice.wait_for("document.querySelector('#events').innerText.includes('bob: from one to the other')")
            assert await bob.evaluate(SHOWN_IDS) == []
        await alice.wait_for(online.format("bob", "false"))


async def test_the_pod_is_killed_and_nothing_is_missed(chromium: Browser, url: str, system: System) -> None:
    async with logged_in(chromium, url, "alice") as page:
        await publish(page, "before", "server")
        before = await page.text("#pods code")
        await page.click("#kill")
        await page.wait_for(MADE_UP_FOR, timeout=PATIENCE_S)
        told = await page.text("#timeline .resumed")
        assert "replayed, 0 missed" in told
        assert "Disconnected" in await page.text("#timeline")
        await page.wait_for(f"{POD_READY} && document.querySelectorAll('#pods li').length === 1", timeout=PATIENCE_S)
        assert await page.text("#pods code") != before
        await publish(page, "afterwards", "server")
        shown = sorted(await page.evaluate(SHOWN_IDS))
        assert shown == list(range(shown[0], shown[0] + len(shown)))
        assert await page.text("#missed") == "0"
        assert await page.text("#twice") == ""
        assert page.problems == []


async def test_the_pod_is_put_to_sleep_and_woken(chromium: Browser, url: str, system: System) -> None:
    async with logged_in(chromium, url, "alice") as page, logged_in(chromium, url, "bob") as bob:
        knows = "idle" in system.kubectl("explain", "urt.spec")
        if not knows:
            assert await page.evaluate("document.querySelector('#sleep').hidden")
            return
        await publish(page, "before", "server")
        await page.click("#sleep")
        await page.wait_for("document.querySelector('#pod-state').dataset.state === 'asleep'", timeout=PATIENCE_S)
        await page.wait_for("document.querySelector('#pods').innerText === 'No pod.'", timeout=PATIENCE_S)
        await bob.evaluate("document.querySelector('#to').value = 'alice'")
        await bob.write("#text", "while you slept")
        await bob.click("#publish button[value=server]")
        await bob.wait_for("document.querySelector('#notice').innerText === 'Published to alice.'")
        await page.click("#wake")
        await page.wait_for(f"{CONNECTED} && {POD_READY}", timeout=PATIENCE_S)
        await page.wait_for("document.querySelector('#events').innerText.includes('bob: while you slept')")
        assert await page.text("#missed") == "0"
        assert await page.text("#twice") == ""


async def test_the_page_is_correct_after_retention_has_passed_its_position(
    chromium: Browser, url: str, system: System
) -> None:
    text = "never received as an event"
    async with logged_in(chromium, url, "alice") as page, logged_in(chromium, url, "bob") as bob:
        await publish(page, "before", "server")
        await page.evaluate("window.loadedOnce = true")
        await page.click("#sleep")
        await page.wait_for("document.querySelector('#pod-state').dataset.state === 'asleep'", timeout=PATIENCE_S)
        await page.wait_for("document.querySelector('#pods').innerText === 'No pod.'", timeout=PATIENCE_S)
        await bob.evaluate("document.querySelector('#to').value = 'alice'")
        await bob.write("#text", text)
        await bob.click("#publish button[value=server]")
        await bob.wait_for("document.querySelector('#notice').innerText === 'Published to alice.'")
        with system.database.from_host() as address:
            connection = await asyncpg.connect(address, timeout=PATIENCE_S)
            try:
                await connection.execute("delete from userrealtime.event where user_id = 'alice'")
            finally:
                await connection.close(timeout=PATIENCE_S)
        await page.click("#wake")
        newest = "document.querySelector('#messages .what').textContent"
        await page.wait_for(f"{newest} === {json.dumps(text)}", timeout=PATIENCE_S)
        await page.wait_for(f"{CONNECTED} && {POD_READY}", timeout=PATIENCE_S)
        assert text not in await page.text("#events")
        assert "State loaded again" in await page.text("#timeline .reloaded")
        await publish(page, "afterwards", "server")
        await page.wait_for(f"{newest} === 'afterwards'")
        assert await page.text("#missed") == "0"
        assert await page.text("#twice") == ""
        assert await page.evaluate("window.loadedOnce === true")
        assert page.problems == []


async def test_a_page_that_comes_back_is_still_logged_in(chromium: Browser, url: str) -> None:
    async with logged_in(chromium, url, "bob") as page:
        await page.goto(url)
        await page.wait_for(CONNECTED)
        assert await page.text("#me") == "bob"
        assert "userrealtime_demo" not in await page.evaluate("document.cookie")
        await page.click("#logout")
        await page.wait_for("!document.querySelector('#login').hidden")
        await page.goto(url)
        await page.wait_for("!document.querySelector('#login').hidden")
        assert page.problems == page.failures == []


async def test_it_can_be_used_by_keyboard(chromium: Browser, url: str) -> None:
    async with chromium.page() as page:
        await page.goto(url)
        await page.wait_for("document.activeElement.dataset.login === 'alice'")
        await page.press("Enter")
        await page.wait_for(CONNECTED, timeout=PATIENCE_S)
        await page.evaluate("document.querySelector('#logout').focus()")
        order: list[str] = []
        while "timeline" not in order and len(order) < 20:
            await page.press("Tab")
            order.append(await page.evaluate("document.activeElement.id || document.activeElement.value"))
            assert await page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
        assert set(order) >= {"kill", "sleep", "text", "to", "server", "socket", "traffic", "events", "timeline"}
        assert page.problems == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("viewport", [PHONE, DESK], ids=lambda viewport: viewport.name)
async def test_it_fits(
    chromium: Browser, url: str, viewport: Viewport, dark: bool, pytestconfig: pytest.Config
) -> None:
    async with logged_in(chromium, url, "alice", viewport, dark=dark) as page, logged_in(chromium, url, "bob"):
        await page.evaluate("document.querySelector('#to').value = 'alice'")
        await publish(page, "Your order has been sent", "server")
        await publish(page, "Thank you", "socket")
        await publish(page, "W" * 300, "server")
        assert await page.evaluate(TOO_WIDE.format(width=viewport.width)) == []
        assert await page.evaluate("document.documentElement.scrollWidth") <= viewport.width
        assert await page.evaluate(TOO_FAINT) == []
        seen = await page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, seen.removeprefix("rgb(").rstrip(")").split(","))) < 3 * 64) == dark
        if pytestconfig.getoption("screenshots"):
            await _pose(page)
            name = f"demo-{viewport.name}-{'dark' if dark else 'light'}.webp"
            await asyncio.to_thread(_keep, IMAGES / name, await page.screenshot())
        assert page.problems == []


async def _pose(page: Page) -> None:
    """A state for the picture: a pod was killed, and the missed events were replayed."""
    texts = (
        "Your order has been paid",
        "It is being packed",
        "It has been sent",
        "It is on its way",
        "It arrives today",
    )
    for text in (*texts, "Your order has arrived"):
        await publish(page, text, "server")  # above the message that has no spaces
    await page.click("#kill")
    await page.wait_for(MADE_UP_FOR, timeout=PATIENCE_S)
    await page.wait_for(f"{POD_READY} && document.querySelectorAll('#pods li').length === 1", timeout=PATIENCE_S)
    for person in ("alice", "bob"):
        await page.wait_for(f"document.querySelector('[data-person={person}] .online').dataset.online === 'true'")
    await page.evaluate("scrollTo(0, 0)")


def _keep(path: Path, picture: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(picture)


def post(url: str, **headers: str) -> int:
    """Return the status of a POST without a session."""
    host = url.partition("://")[2].partition("/")[0]
    address = url.replace("//localhost", f"//{LOOPBACK}")
    request = urllib.request.Request(address, data=b"{}", headers={"Host": host, **headers}, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            status: int = answer.status
            return status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_only_the_page_itself_may_change_anything(url: str) -> None:
    origin = url.removesuffix(demo.PATH)
    assert post(f"{url}/kill") == 403
    assert post(f"{url}/kill", Origin="http://localhost:9999") == 403
    assert post(f"{url}/kill", Origin=origin) == 401
    assert post(f"{url}/kill", Origin=origin, Cookie="userrealtime_demo=e30.e30.e30") == 401


def test_it_may_do_what_its_buttons_do_and_nothing_else(url: str, system: System) -> None:
    def may(verb: str, resource: str, namespace: str = USERS_NAMESPACE) -> bool:
        return system.may(ACCOUNT, verb, resource, namespace)

    assert may("create", "userrealtimes.userrealtime.dev")
    assert may("delete", "pods")
    for verb, resource in (
        ("delete", "userrealtimes.userrealtime.dev"),
        ("patch", "userrealtimes.userrealtime.dev"),  # of any name
        ("patch", "userrealtimes.userrealtime.dev/status"),
        ("get", "secrets"),  # of any name
        ("list", "secrets"),
        ("create", "pods"),
        ("create", "pods/exec"),
        ("get", "pods/log"),
        ("patch", "deployments.apps"),
    ):
        assert not may(verb, resource), (verb, resource)
    for resource in ("pods", "secrets"):
        assert not may("list", resource, ""), resource
        assert not may("list", resource, demo.NAMESPACE), resource


async def test_its_role_in_the_database_may_do_little(url: str, system: System) -> None:
    secret = json.loads(system.cluster.kubectl("-n", demo.NAMESPACE, "get", "secret", "database", "-o", "json"))
    assert set(secret["data"]) == {"DATABASE_URL"}
    password = demo.password(system.cluster)
    assert password
    with system.database.from_host() as address:
        connection = await asyncpg.connect(demo.as_role(address, password), timeout=PATIENCE_S)
        try:
            for forbidden in (
                "select * from userrealtime.event",
                "delete from userrealtime.inbox",
                "update userrealtime.inbox set data = '{}'",
                "select userrealtime.submit('alice', 'ref', 'event', '{}')",
                "select * from pg_authid",
            ):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await connection.execute(forbidden)
        finally:
            await connection.close(timeout=PATIENCE_S)


def test_its_pod_is_confined(url: str, system: System) -> None:
    with pytest.raises(ClusterError):
        system.cluster.kubectl(
            "-n",
            demo.NAMESPACE,
            "exec",
            "deployment/demo",
            "--",
            "/app/venv/bin/python",
            "-c",
            "open('/app/probe', 'w')",
        )
    log = system.cluster.kubectl("-n", demo.NAMESPACE, "logs", "deployment/demo")
    assert "Traceback" not in log


def test_nothing_of_it_stays_on_a_cluster_that_stays(url: str, system: System) -> None:
    demo.uninstall(system.cluster)
    everywhere = ("get", "all,ingress,secrets,roles,rolebindings,serviceaccounts", "--all-namespaces", "-o", "json")
    found = json.loads(system.cluster.kubectl(*everywhere))["items"]
    left = [
        f"{item['kind']} {item['metadata']['namespace']}/{item['metadata']['name']}"
        for item in found
        if item["metadata"]["namespace"] == demo.NAMESPACE or item["metadata"]["name"] == "demo"
    ]
    assert left == []
    names = system.cluster.kubectl("get", "namespaces", "-o", "name").split()
    assert f"namespace/{demo.NAMESPACE}" not in names
