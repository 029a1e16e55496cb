"""A headless Chromium, driven over its own protocol (the Chrome DevTools Protocol): one page, and what it is told."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from websockets.asyncio.client import ClientConnection, connect

NAMES: Final = ("chromium", "chromium-browser", "google-chrome")
START_S: Final = 60
CALL_S: Final = 120


def program() -> str:
    """The path of Chromium; where there is none, the test is skipped, or fails if CI=true."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        message = "Chromium is not installed, so nothing is tested in a browser: apt-get install chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return found


class Page:
    """A page of the browser."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)

    async def call(self, method: str, **parameters: Any) -> Any:
        """What a command of the protocol gives."""
        number = next(self._numbers)
        await self._connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        async with asyncio.timeout(CALL_S):
            while True:
                answer = json.loads(await self._connection.recv())
                if answer.get("id") == number:
                    break
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    async def evaluate(self, expression: str) -> Any:
        """What an expression is, once it is settled.

        Raises:
            AssertionError: it threw; with what it says.
        """
        answer = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"].get("exception", {}).get("description")
        return answer["result"].get("value")

    async def until(self, expression: str) -> None:
        """Until an expression is true."""
        async with asyncio.timeout(CALL_S):
            while not await self.evaluate(expression):
                await asyncio.sleep(0.05)


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Page]:
    """A page that shows this URL, in a browser of its own."""
    home = Path(tempfile.mkdtemp(prefix="userrealtime-chromium-"))
    process = await asyncio.create_subprocess_exec(
        program(),
        "--headless=new",
        "--no-sandbox",  # which takes namespaces that a container may not have; it sees no page but ours
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--remote-debugging-port=0",
        f"--user-data-dir={home}",
        url,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    drain = None
    try:
        async with asyncio.timeout(START_S):
            async for line in process.stderr:
                if line.startswith(b"DevTools listening on "):
                    break
            browser = line.decode().split()[-1]
            drain = asyncio.create_task(process.stderr.read())
            async with connect(browser, proxy=None, max_size=None) as connection:
                target = await _page_of(Page(connection), url)
        page = browser.partition("/devtools/")[0] + f"/devtools/page/{target}"
        async with connect(page, proxy=None, max_size=None) as connection:
            yield Page(connection)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(START_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        if drain is not None:
            await drain
        shutil.rmtree(home, ignore_errors=True)


async def _page_of(browser: Page, url: str) -> str:
    """The id of the page that shows this URL."""
    while True:
        targets = (await browser.call("Target.getTargets"))["targetInfos"]
        for target in targets:
            if target["type"] == "page" and target["url"] == url:
                return str(target["targetId"])
        await asyncio.sleep(0.05)
