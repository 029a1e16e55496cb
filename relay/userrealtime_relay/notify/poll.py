"""The signal for where NOTIFY does not come through: time that has passed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from userrealtime_relay.log.log import Log

from . import Notifier, Notify

INTERVAL: Final = 1.0
"""Seconds, unless POLL_INTERVAL says otherwise."""


def poll(interval: float) -> Notifier:
    """A signal that wakes every `interval` seconds, whether there is more or not."""

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
