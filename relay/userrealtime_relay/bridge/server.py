"""The process of the bridge: the announcer and the poller, the broker, and the port for probes and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Final, Self

from userrealtime_core.announcer import Announcer, Broadcaster
from userrealtime_core.reconnect import Reconnect
from userrealtime_core.wire.broadcast import Broadcast
from userrealtime_core.wire.position import LogMoved
from userrealtime_relay.notify import Publish, Unreachable
from userrealtime_relay.notify.broker import load
from userrealtime_relay.process import probes
from userrealtime_relay.process.stopping import Stopping

from .config import Config
from .metrics import Metrics
from .pending import Pending, PendingBroadcasts
from .poller import NAME, Poller

BATCH: Final = 1000
BROADCAST_BATCH: Final = 100
"""Broadcasts that are published at a time: a signal waits for no more than these."""
LONGEST_PAUSE: Final = 0.005
PAUSE_PER_SIGNAL: Final = 0.0005
"""Seconds between two batches. The pause grows with the batch: under load, the signals of many users share one
acknowledgement, and a signal that comes alone does not wait."""
KEEPALIVE_INTERVAL_S: Final = 2.0
"""Seconds without a signal after which an empty batch is published, to check that the broker answers."""

_logger = logging.getLogger(__name__)


class Bridge:
    """The parts of the bridge. A context manager: it runs inside the block.

    Raises:
        ConfigError: from the constructor, if the library of the broker is missing.
        OSError: on entering, if the port is in use.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._broker = load(config.broker)
        self.metrics = Metrics()
        self._pending = Pending()
        self._poller = Poller(config.database_url, config.poll_interval, self._pending, self.metrics)
        self._announcer = Announcer(
            config.database_url, NAME, self.metrics.announcer, self._pending.add, self._poller.poll_now
        )
        self._broadcasts = PendingBroadcasts()
        self._broadcaster = Broadcaster(
            config.database_url, f"{NAME}-broadcasts", self.metrics.broadcasts, self._add_broadcasts
        )
        self._publishing = False
        self.metrics.pending.set_function(lambda: len(self._pending))
        self.metrics.dropped.set_function(lambda: self._pending.dropped)
        self.metrics.ready.set_function(lambda: self.not_ready_reason is None)

    @property
    def not_ready_reason(self) -> str | None:
        """The reason why no signals are published; None if they are."""
        if not (self._poller.connected and self._announcer.connected):
            return "not connected to Postgres"
        return None if self._publishing else "not connected to the broker"

    @property
    def health_port(self) -> int:
        return self._listener.port

    async def __aenter__(self) -> Self:
        self._listener = await probes.listen(
            self._config.host, self._config.health_port, lambda: self.not_ready_reason, self.metrics.expose
        )
        self.working = asyncio.create_task(self._work())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        self.working.cancel()
        await asyncio.wait([self.working])

    async def _work(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._announcer.run())
            tasks.create_task(self._poller.run())
            tasks.create_task(self._publish_pending())
            tasks.create_task(self._broadcaster.run())
            tasks.create_task(self._publish_broadcasts())

    async def _publish_pending(self) -> None:
        """Publish what is pending to the broker, until cancelled."""
        reconnect = Reconnect((Unreachable,), _logger, "no connection to the broker", describe=str)

        async def session() -> None:
            async with self._broker.publishing(self._config.broker_url) as publish:
                reconnect.succeeded()
                self._publishing = True
                self._poller.poll_now()
                _logger.info("connected to the broker")
                await self._publish(publish)

        def failed() -> None:
            self._publishing = False
            self.metrics.broker_failures.inc()

        await reconnect.run(session, failed)

    def _add_broadcasts(self, broadcasts: Sequence[Broadcast]) -> None:
        self.metrics.broadcasts_lost.inc(self._broadcasts.add(broadcasts))

    async def _publish_broadcasts(self) -> None:
        """Publish broadcasts to the broker, until cancelled.

        They have a separate connection, which is opened for the first one: signals do not wait for them.
        """
        reconnect = Reconnect((Unreachable,), _logger, "no connection to the broker for broadcasts", describe=str)

        async def session() -> None:
            await self._broadcasts.wait()
            async with self._broker.publishing(self._config.broker_url) as publish:
                reconnect.succeeded()
                while True:
                    batch = self._broadcasts.take(BROADCAST_BATCH)
                    try:
                        await publish(batch)
                    except BaseException:
                        # Some may have been published, and none is published twice.
                        self.metrics.broadcasts_lost.inc(len(batch))
                        raise
                    self.metrics.broadcasts.sent.inc(len(batch))
                    await self._broadcasts.wait()

        def failed() -> None:
            self.metrics.broadcasts_lost.inc(self._broadcasts.clear())
            self.metrics.broker_failures.inc()

        await reconnect.run(session, failed)

    async def _publish(self, publish: Publish) -> None:
        while True:
            batch: list[LogMoved] = []
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(KEEPALIVE_INTERVAL_S):
                    batch = await self._pending.take(BATCH)
            try:
                await publish(batch)
            except BaseException:
                self._pending.put_back(batch)
                raise
            self.metrics.signals.inc(len(batch))
            await asyncio.sleep(min(len(batch) * PAUSE_PER_SIGNAL, LONGEST_PAUSE))


async def serve(config: Config) -> None:
    """Work until SIGTERM or SIGINT.

    Raises:
        ConfigError: the library of the broker is missing.
        OSError: the port is in use.
    """
    stopping = Stopping()
    async with Bridge(config) as bridge:
        _logger.info("listening", extra={"fields": {"health_port": bridge.health_port, "signal": config.broker}})
        await stopping.wait(bridge.working)
    _logger.info("stopped")
