"""Tells the database how many clients this pod has, for applications to ask who is online (docs/presence.md).

Said when it changes, at most once a second, and again every minute, since silence means that the pod is gone. No client
ever waits for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from userrealtime_relay.wire.submission import Unavailable

from .tail import Tail

MIN_REPORT_INTERVAL_S: Final = 1.0
"""Seconds between two changes that are told, at least."""
HEARTBEAT: Final = 60.0
"""Seconds after which the same is said again; the view `online` gives a silent pod up after three times as many."""
SHUTDOWN_TIMEOUT_S: Final = 2.0
"""Seconds that the end may take."""

_logger = logging.getLogger(__name__)


class Presence:
    """`run` it in one task. `changed` is to be called whenever the number of clients may have changed."""

    def __init__(self, tail: Tail, instance: str, clients: Callable[[], int]) -> None:
        self._tail = tail
        self._instance = instance
        self._clients = clients
        self._changed = asyncio.Event()
        self._said: int | None = None

    def changed(self) -> None:
        """Look at the number of clients again."""
        if self._clients() != self._said:
            self._changed.set()

    async def run(self) -> None:
        """Keep the database told until cancelled."""
        while True:
            await self._tail.reachable()
            self._changed.clear()
            clients = self._clients()
            self._said = clients if await self._say(clients) else None
            await asyncio.sleep(MIN_REPORT_INTERVAL_S)
            try:
                async with asyncio.timeout(HEARTBEAT):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def leave(self) -> None:
        """Say that this pod is going, if the database is there."""
        try:
            async with asyncio.timeout(SHUTDOWN_TIMEOUT_S):
                await self._say(None)
        except TimeoutError:
            pass  # it is given up as any pod that falls silent

    async def _say(self, clients: int | None) -> bool:
        try:
            await self._tail.present(self._instance, clients)
        except Unavailable as error:
            _logger.warning("presence could not be told", extra={"fields": {"error": str(error)}})
            return False
        return True
