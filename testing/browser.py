"""Headless Chromium, driven by the DevTools protocol over one WebSocket: the commands that the tests of pages need.

Chromium is the distribution's own. Where it is missing and that is possible, `ensure` installs it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from .cluster import ClusterError
from .cluster.progress import step
from .patience import PATIENCE_S

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
START_TIMEOUT_S = PATIENCE_S
COMMAND_TIMEOUT_S = 120.0
END_TIMEOUT_S = 10.0
POLL_S = 0.05
MAX_MESSAGE_BYTES = 32 << 20

OPTIONS = (
    "--headless=new",
    "--remote-debugging-port=0",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--hide-scrollbars",
    "--no-proxy-server",
    # A sandbox needs a user other than root, or namespaces that containers rarely have. All pages are trusted.
    "--no-sandbox",
)

Object = dict[str, Any]


@dataclass(frozen=True)
class Viewport:
    """The screen of a page. Sizes are in CSS pixels."""

    name: str
    width: int
    height: int
    scale: float = 1
    touch: bool = False


PHONE = Viewport("phone", 390, 844, scale=2, touch=True)
DESK = Viewport("desk", 1280, 900)


class BrowserError(Exception):
    """The browser rejected a command; the message is the browser's."""


def installed() -> str | None:
    """Return the path of Chromium, None if it is not installed."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


def ensure() -> str:
    """Return the path of Chromium, which is installed with apt-get if it is missing.

    Raises:
        ClusterError: it is missing and cannot be installed.
    """
    if found := installed():
        return found
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise ClusterError("the tests of pages need Chromium: install it, with `chromium` on PATH")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with step("installing chromium with apt-get", usual="a minute") as current:
        current.run(["apt-get", "update"], env=environment, timeout=300)
        install = ["apt-get", "install", "--yes", "--no-install-recommends", "chromium"]
        current.run(install, env=environment, timeout=900)
    return ensure()


class Browser:
    """One Chromium, created by `browser()`."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._number = 0
        self._answers: dict[int, asyncio.Future[Object]] = {}
        self._pages: dict[str, Page] = {}

    async def read(self) -> None:
        """Pass responses to the callers and events to their pages, until the connection ends."""
        async for text in self._connection:
            message = json.loads(text)
            if "id" in message:
                answer = self._answers.pop(message["id"], None)
                if answer is not None and not answer.done():
                    answer.set_result(message)
            elif page := self._pages.get(message.get("sessionId", "")):
                page.note(message["method"], message["params"])

    async def send(self, method: str, parameters: Object | None = None, session: str | None = None) -> Object:
        """Execute a command and return its result.

        Raises:
            BrowserError: it was rejected.
        """
        self._number += 1
        answer: asyncio.Future[Object] = asyncio.get_running_loop().create_future()
        self._answers[self._number] = answer
        message = {"id": self._number, "method": method, "params": parameters or {}}
        await self._connection.send(json.dumps(message if session is None else {**message, "sessionId": session}))
        async with asyncio.timeout(COMMAND_TIMEOUT_S):
            found = await answer
        if "error" in found:
            raise BrowserError(f"{method}: {found['error']['message']}")
        result: Object = found["result"]
        return result

    @asynccontextmanager
    async def page(self, viewport: Viewport = DESK, *, dark: bool = False) -> AsyncIterator[Page]:
        """Yield a page with separate cookies, which is closed when the block ends."""
        context = (await self.send("Target.createBrowserContext"))["browserContextId"]
        blank = {"url": "about:blank", "browserContextId": context}
        target = (await self.send("Target.createTarget", blank))["targetId"]
        attached = await self.send("Target.attachToTarget", {"targetId": target, "flatten": True})
        page = Page(self, attached["sessionId"])
        self._pages[attached["sessionId"]] = page
        try:
            for domain in ("Page", "Runtime", "Log", "Network"):
                await page.call(f"{domain}.enable")
            await page.show_on(viewport, dark=dark)
            yield page
        finally:
            del self._pages[attached["sessionId"]]
            await self.send("Target.disposeBrowserContext", {"browserContextId": context})


class Page:
    """One page.

    `problems` has every error that it wrote to the console or did not catch; `failures` every request of it that
    failed, of which the browser complains on its own, whatever the page makes of it.
    """

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session
        self.problems: list[str] = []
        self.failures: list[str] = []

    def note(self, event: str, parameters: Object) -> None:
        """Record an event of the browser if it is a problem."""
        match event:
            case "Runtime.exceptionThrown":
                details = parameters["exceptionDetails"]
                self.problems.append(details.get("exception", {}).get("description") or details["text"])
            case "Runtime.consoleAPICalled" if parameters["type"] in ("error", "assert"):
                values = (str(value.get("value", value.get("description"))) for value in parameters["args"])
                self.problems.append(" ".join(values))
            case "Log.entryAdded" if parameters["entry"]["level"] == "error":
                entry = parameters["entry"]
                told = self.failures if entry["source"] == "network" else self.problems
                told.append(f"{entry['text']} {entry.get('url', '')}".rstrip())

    async def call(self, method: str, **parameters: Any) -> Object:
        """Return the result of a command of the protocol. Raises the errors of `Browser.send`."""
        return await self._browser.send(method, parameters, self._session)

    async def show_on(self, viewport: Viewport, *, dark: bool) -> None:
        """Set the size and the color scheme."""
        size = {"width": viewport.width, "height": viewport.height, "deviceScaleFactor": viewport.scale}
        await self.call("Emulation.setDeviceMetricsOverride", **size, mobile=viewport.touch)
        await self.call("Emulation.setTouchEmulationEnabled", enabled=viewport.touch)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        still = {"name": "prefers-reduced-motion", "value": "reduce"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme, still])

    async def goto(self, url: str) -> None:
        """Load a page, and wait until it has loaded.

        Raises:
            BrowserError: there is none.
        """
        found = await self.call("Page.navigate", url=url)
        if "errorText" in found:
            raise BrowserError(f"{url}: {found['errorText']}")
        await self.wait_for("document.readyState === 'complete'")

    async def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression. A promise is awaited.

        Raises:
            BrowserError: it throws.
        """
        found = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            details = found["exceptionDetails"]
            raise BrowserError(details.get("exception", {}).get("description") or details["text"])
        return found["result"].get("value")

    async def wait_for(self, expression: str, timeout: float = PATIENCE_S) -> Any:
        """Wait until a JavaScript expression is truthy, and return its value.

        Raises:
            TimeoutError: after `timeout` seconds, with the expression.
        """
        found = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while not (found := await self.evaluate(expression)):
                    await asyncio.sleep(POLL_S)
        if not found:
            raise TimeoutError(f"not within {timeout:.0f} s: {expression} ({self.problems} {self.failures})")
        return found

    async def text(self, selector: str) -> str:
        """Return the visible text of an element."""
        found: str = await self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText")
        return found

    async def click(self, selector: str) -> None:
        """Click on the middle of an element when it exists, is enabled, and is not covered."""
        quoted = json.dumps(selector)
        place = f"""(() => {{
            const element = document.querySelector({quoted});
            if (!element || element.disabled) return null;
            element.scrollIntoView({{ block: "center", behavior: "instant" }});
            const box = element.getBoundingClientRect();
            const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
            return element.contains(document.elementFromPoint(x, y)) ? {{ x, y }} : null;
        }})()"""
        where = await self.wait_for(place)
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, **where, button="left", clickCount=1)

    async def write(self, selector: str, text: str) -> None:
        """Put text into a field, replacing its content, as from a keyboard."""
        await self.click(selector)
        await self.evaluate(f"document.querySelector({json.dumps(selector)}).select()")
        await self.call("Input.insertText", text=text)

    async def press(self, key: str) -> None:
        """Press a key by its name, such as `Tab` or `Enter`."""
        codes = {"Tab": 9, "Enter": 13}
        pressed = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key]}
        said = {"text": "\r"} if key == "Enter" else {}
        await self.call("Input.dispatchKeyEvent", type="keyDown", **pressed, **said)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **pressed)

    async def screenshot(self, *, whole: bool = False) -> bytes:
        """Return a picture (WebP) of the visible part, or of the whole page."""
        found = await self.call("Page.captureScreenshot", format="webp", quality=85, captureBeyondViewport=whole)
        return base64.b64decode(found["data"])


@asynccontextmanager
async def browser() -> AsyncIterator[Browser]:
    """Yield a new Chromium with an empty profile, which ends with the block.

    Raises:
        ClusterError: there is none.
        BrowserError: it does not start.
    """
    program = await asyncio.to_thread(ensure)
    with tempfile.TemporaryDirectory(prefix="userrealtime-chromium-", ignore_cleanup_errors=True) as home:
        process = await asyncio.to_thread(_start, program, Path(home))
        try:
            address = await asyncio.to_thread(_address, process, Path(home))
            async with connect(address, max_size=MAX_MESSAGE_BYTES, proxy=None, compression=None) as connection:
                found = Browser(connection)
                reading = asyncio.create_task(found.read())
                try:
                    yield found
                finally:
                    reading.cancel()
                    await asyncio.wait([reading])
        finally:
            await asyncio.to_thread(_end, process)


def _start(program: str, home: Path) -> subprocess.Popen[bytes]:
    with (home / "log").open("wb") as output:
        return subprocess.Popen(
            [program, *OPTIONS, f"--user-data-dir={home}/profile", "about:blank"],
            env={**os.environ, "HOME": str(home)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def _address(process: subprocess.Popen[bytes], home: Path) -> str:
    """Return the URL for commands to Chromium, which writes a port and a path into a file."""
    file = home / "profile" / "DevToolsActivePort"
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        lines = file.read_text().splitlines() if file.exists() else []
        if len(lines) == 2:
            return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        time.sleep(POLL_S)
    log = (home / "log").read_text(errors="replace")
    raise BrowserError(f"Chromium does not start: {log[-2000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End Chromium and its child processes, which are in one process group."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_TIMEOUT_S)
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
