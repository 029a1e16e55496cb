"""The end of a process by a signal."""

from __future__ import annotations

import asyncio
import os
import signal


class Stopping:
    """Waits for SIGTERM or SIGINT, from its creation on. A second signal ends the process without a drain."""

    def __init__(self) -> None:
        self._stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._received, number)

    async def wait(self, working: asyncio.Task[None]) -> None:
        """Wait for the signal, or for the end of a task that never returns: raise its error."""
        signalled = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait([working, signalled], return_when=asyncio.FIRST_COMPLETED)
        finally:
            signalled.cancel()
        if working.done():
            working.result()

    def _received(self, number: int) -> None:
        if self._stopping.is_set():
            os._exit(128 + number)
        self._stopping.set()
