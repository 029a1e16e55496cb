"""LISTEN, on the connection that also reads the log."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from userrealtime_relay.log.log import Log

from . import Notify


@asynccontextmanager
async def listen(log: Log, channel: str, notify: Notify) -> AsyncIterator[None]:
    """Notify at each NOTIFY. Listening ends with the connection."""
    await log.listen(channel, notify)
    yield
