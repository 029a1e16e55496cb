"""The choice of the notifier by SIGNAL."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from userrealtime_relay.config import Config
from userrealtime_relay.log.log import Log

from . import Notifier, Notify
from .listen import listen
from .poll import INTERVAL, poll

_logger = logging.getLogger(__name__)


def choose(config: Config) -> Notifier:
    """Return the notifier. `auto` chooses by the connection; with a broker, the notifier does nothing."""
    interval = config.poll_interval or INTERVAL
    polling = poll(interval)

    @asynccontextmanager
    async def auto(log: Log, channel: str, notify: Notify) -> AsyncIterator[None]:
        if log.pooled:
            _logger.warning(
                "LISTEN does not work here: DATABASE_URL leads to a transaction pooler. The log is polled instead. "
                "Use a direct connection, or set SIGNAL=poll if this is intended",
                extra={"fields": {"poll_interval_s": interval}},
            )
        async with (polling if log.pooled else listen)(log, channel, notify):
            yield

    @asynccontextmanager
    async def silent(_log: Log, _channel: str, _wake: Notify) -> AsyncIterator[None]:
        yield  # the broker notifies

    return {"auto": auto, "listen": listen, "poll": polling}.get(config.signal, silent)
