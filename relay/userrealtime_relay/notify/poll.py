"""Polling, where NOTIFY does not work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from userrealtime_relay.log.log import Log

from . import Notifier, Notify

INTERVAL: Final = 1.0
"""Seconds, unless POLL_INTERVAL is set."""


def poll(interval: float) -> Notifier:
    """Return a notifier that notifies every `interval` seconds."""

    @asynccontextmanager
    async def signal(_log: Log, _channel: str, notify: Notify) -> AsyncIterator[None]:
        async def go_on() -> None:
            while True:
                await asyncio.sleep(interval)
                notify()

        task = asyncio.create_task(go_on())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    return signal
