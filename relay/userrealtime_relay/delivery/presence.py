"""Reports to the database how many clients this pod has, for applications that show presence (docs/presence.md).

The number is reported when it changes, at most once a second, and repeated every minute: a pod without reports counts
as ended. No client ever waits for a report.

A report also has the time since the last traffic: the operator parks the clients of a user without traffic. Traffic
after a longer silence is reported immediately.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from userrealtime_core.wire.submission import Unavailable

from .tail import Tail

MIN_REPORT_INTERVAL_S: Final = 1.0
"""The shortest time between two reports of a change."""
REPEAT_INTERVAL_S: Final = 60.0
"""Seconds after which a report is repeated. The view `online` ignores a pod without reports for three times as many."""
SHUTDOWN_TIMEOUT_S: Final = 2.0
"""Seconds that the last report may take."""

_logger = logging.getLogger(__name__)


class Presence:
    """Call `run` in one task, and `changed` whenever the number of clients may have changed."""

    def __init__(
        self, tail: Tail, instance: str, clients: Callable[[], int], quiet_s: Callable[[], float] = lambda: 0.0
    ) -> None:
        self._tail = tail
        self._instance = instance
        self._clients = clients
        self._quiet_s = quiet_s
        self._reported_quiet_s = 0.0
        self._changed = asyncio.Event()
        self._reported: int | None = None

    def changed(self) -> None:
        """Report the number of clients if it has changed, or that a silence has ended."""
        if self._clients() != self._reported or self._quiet_s() + REPEAT_INTERVAL_S < self._reported_quiet_s:
            self._changed.set()

    async def run(self) -> None:
        """Report until cancelled."""
        while True:
            await self._tail.reachable()
            self._changed.clear()
            clients = self._clients()
            self._reported = clients if await self._report(clients) else None
            await asyncio.sleep(MIN_REPORT_INTERVAL_S)
            try:
                async with asyncio.timeout(REPEAT_INTERVAL_S):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def leave(self) -> None:
        """Report that this pod ends, if the database is reachable."""
        try:
            async with asyncio.timeout(SHUTDOWN_TIMEOUT_S):
                await self._report(None)
        except TimeoutError:
            pass  # the pod then counts as ended after a while

    async def _report(self, clients: int | None) -> bool:
        quiet_s = self._quiet_s()
        try:
            await self._tail.present(self._instance, clients, quiet_s)
        except Unavailable as error:
            _logger.warning("could not report the number of clients", extra={"fields": {"error": str(error)}})
            return False
        self._reported_quiet_s = quiet_s
        return True
