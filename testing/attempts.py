"""Connection attempts at a fixed interval, as by clients that connect while something happens to a user's pod.

Each attempt is a new TCP connection with one request, and is not repeated.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Literal, Self
from urllib.parse import urlsplit

from .client import LOOPBACK, is_this_machine

INTERVAL_S: Final = 0.05
LIMIT_S: Final = 45.0
"""Seconds for a response. An activator waits for a pod for 30 s."""
Transport = Literal["sse", "poll", "ws"]
_UPGRADE: Final = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One connection attempt."""

    at_s: float
    """The time since the first attempt."""
    outcome: str
    """The status of the response, or the name of the error."""
    took_s: float
    """The time until the response."""


@dataclass
class Attempts:
    """Connects to a user's URL every INTERVAL_S while the block runs, and waits for the responses after it.

    `port` is that of a proxy on this machine, if the requests are not sent to the host of the URL.
    """

    url: str
    token: str
    transport: Transport = "sse"
    port: int | None = None
    results: list[Attempt] = field(default_factory=list)

    @property
    def elapsed_s(self) -> float:
        """The time since the first attempt, as in `Attempt.at_s`."""
        return time.monotonic() - self._began

    @property
    def outcomes(self) -> Counter[str]:
        """The number of attempts by outcome."""
        return Counter(each.outcome for each in self.results)

    @property
    def failed(self) -> list[Attempt]:
        """The attempts without a successful response."""
        return [each for each in self.results if each.outcome not in ("101", "200")]

    @property
    def failed_for_s(self) -> float:
        """The time from the first to the last failed attempt; 0 if none has failed."""
        times = [each.at_s for each in self.failed]
        return max(times) - min(times) + INTERVAL_S if times else 0.0

    def __str__(self) -> str:
        slowest = max((each.took_s for each in self.results), default=0)
        counts = ", ".join(f"{count} x {outcome}" for outcome, count in sorted(self.outcomes.items()))
        return f"{counts}; failures over {self.failed_for_s:.2f} s; the slowest response took {slowest:.2f} s"

    async def status(self) -> str:
        """Return the status code of the response to a request."""
        address = urlsplit(self.url)
        host = LOOPBACK if self.port is not None or is_this_machine(self.url) else address.hostname
        reader, writer = await asyncio.open_connection(host, self.port or address.port or 80)
        try:
            lines = [
                f"GET {address.path}/{self.transport} HTTP/1.1",
                f"Host: {address.netloc}",
                f"Authorization: Bearer {self.token}",
                *(_UPGRADE if self.transport == "ws" else ("Connection: close",)),
            ]
            writer.write("\r\n".join((*lines, "", "")).encode())
            head = await reader.readuntil(b"\r\n\r\n")
            return head.split(b" ", 2)[1].decode()
        finally:
            writer.close()

    async def __aenter__(self) -> Self:
        self._began = time.monotonic()
        self._waiting: set[asyncio.Task[None]] = set()
        self._running = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.cancel()
        await asyncio.wait([self._running])
        if kind is not None:
            for task in self._waiting:
                task.cancel()
        if self._waiting:
            await asyncio.wait(list(self._waiting))

    async def _run(self) -> None:
        number = 0
        while True:
            task = asyncio.create_task(self._attempt())
            self._waiting.add(task)
            task.add_done_callback(self._waiting.discard)
            number += 1
            await asyncio.sleep(max(0.0, self._began + number * INTERVAL_S - time.monotonic()))

    async def _attempt(self) -> None:
        began = time.monotonic()
        try:
            async with asyncio.timeout(LIMIT_S):
                outcome = await self.status()
        except (OSError, EOFError, TimeoutError) as error:
            outcome = type(error).__name__
        self.results.append(Attempt(began - self._began, outcome, time.monotonic() - began))
