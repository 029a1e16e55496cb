"""The signal that needs nothing but Postgres: NOTIFY, on the connection that also reads."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from userrealtime_relay.log.log import Log

from . import Notify


@asynccontextmanager
async def listen(log: Log, channel: str, notify: Notify) -> AsyncIterator[None]:
    """Wakes at each NOTIFY. Listening ends with the connection, so there is nothing to undo."""
    await log.listen(channel, notify)
    yield
