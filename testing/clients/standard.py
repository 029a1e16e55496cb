"""Clients that are not ours, at the URL of one user: the EventSource of node and of Chromium, and curl.

They do not repeat a request that was answered with an error. An EventSource stops permanently then, as the HTML
standard demands.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from testing.browser import Page, browser
from testing.patience import PATIENCE_S

from .application import Application
from .javascript import install_locked, program

SOURCE: Final = Path(__file__).parent / "eventsource"
POLL_INTERVAL_S: Final = 0.25
POLL_LIMIT_S: Final = 45
"""Seconds for a response. An activator waits for a pod for 30 s."""
_STREAM: Final = """
window.received = [];
window.source = new EventSource(location.pathname.replace(/poll$/, "sse"));
window.source.onmessage = ({ data }) => window.received.push(JSON.parse(data));
"""


def install(folder: Path) -> Path:
    """Install the EventSource of node in a new folder, and return it."""
    return install_locked(SOURCE, folder)


class StandardClients:
    """The clients, created by `connected`."""

    def __init__(self, node: Application, page: Page) -> None:
        self.statuses: list[str] = []
        """The status codes that curl has printed; 000 if there was no response."""
        self._node = node
        self._page = page

    async def ids(self, last: int) -> dict[str, list[int]]:
        """Wait for the event with an id, and return the ids that each EventSource has received, in order.

        Raises:
            TimeoutError: the event has not arrived, for example because the EventSource has stopped.
        """
        await self._node.until(lambda line: line["type"] == "stopped" or line.get("id") == last)
        await self._page.wait_for(
            f"source.readyState === EventSource.CLOSED || received.some((message) => message.id === {last})"
        )
        of_page = await self._page.evaluate("received")
        return {
            name: [message["id"] for message in received if message["type"] == "event"]
            for name, received in (("node", self._node.lines), ("Chromium", of_page))
        }

    async def poll(self, url: str, token: str) -> None:
        """Run curl again and again, until cancelled."""
        # The token is passed as input: other users of this machine can read command lines.
        command = (program("curl", "curl"), "--silent", "--output", "/dev/null", "--write-out", "%{http_code}")
        options = ("--max-time", str(POLL_LIMIT_S), "--header", "@-", f"{url}/poll")
        while True:
            process = await asyncio.create_subprocess_exec(
                *command, *options, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            try:
                output, _ = await process.communicate(f"Authorization: Bearer {token}\n".encode())
            except asyncio.CancelledError:
                process.kill()
                await process.wait()
                raise
            self.statuses.append(output.decode())
            await asyncio.sleep(POLL_INTERVAL_S)


@asynccontextmanager
async def connected(url: str, token: str, folder: Path) -> AsyncIterator[StandardClients]:
    """Connect the clients to the URL of a user, each at the head of the log. `folder` was returned by `install`."""
    options = {"url": f"{url}/sse", "token": token}
    async with (
        Application.running(folder, "eventsource.mjs", options) as node,
        browser() as chromium,
        chromium.page() as page,
    ):
        # An EventSource cannot send a header. The browser adds it to all requests of the page.
        await page.call("Network.setExtraHTTPHeaders", headers={"Authorization": f"Bearer {token}"})
        await page.goto(f"{url}/poll")
        await page.evaluate(_STREAM)
        async with asyncio.timeout(PATIENCE_S):
            await node.has("cursor")
        await page.wait_for("received.length > 0")
        clients = StandardClients(node, page)
        polling = asyncio.create_task(clients.poll(url, token))
        try:
            yield clients
        finally:
            polling.cancel()
            await asyncio.wait([polling])
