"""What the loops for signals and for broadcasts share: one connection to Postgres, made again after each failure."""

from __future__ import annotations

import asyncio
import logging
import random
from abc import ABC, abstractmethod
from typing import Final, Protocol

import asyncpg
from prometheus_client import Counter, Gauge

from userrealtime_core.postgres import CONNECTION_ERRORS, is_direct, open_session, receives_notifications
from userrealtime_core.reconnect import Reconnect
from userrealtime_core.secret import Secret

from .queue import SETTINGS

CONNECT_TIMEOUT: Final = 10
QUERY_TIMEOUT: Final = 20
RENEW_INTERVAL: Final = 0.25
"""Seconds; a lease lasts four times as long."""
OBSERVE_INTERVAL: Final = 10.0
POOLED_PAUSE: Final = 0.1
"""Seconds between two polls of an idle queue where publishers cannot ring."""


class LoopMetrics(Protocol):
    """The metrics that each loop sets."""

    leased: Gauge
    failures: Counter


class Loop(ABC):
    """A loop over a connection, identified by a random number from 0 to 1023. `run` it in one task.

    Args:
        url: of the database.
        name: the application name of its connection.
        logger, purpose: for the warning that there is no connection.
    """

    connected: bool
    """Whether the loop has reached its queue since it connected last."""

    def __init__(self, url: Secret, name: str, metrics: LoopMetrics, logger: logging.Logger, purpose: str) -> None:
        self._url = url
        self._name = name
        self._state = metrics
        self._reconnect = Reconnect(CONNECTION_ERRORS, logger, f"no connection to Postgres for {purpose}, retrying")
        self._identity = random.randrange(1024)  # noqa: S311 (no secret)
        self._ring = asyncio.Event()
        self.connected = False

    async def run(self) -> None:
        """Work until cancelled."""
        await self._reconnect.run(self._session, self._failed)

    @abstractmethod
    async def _serve(self, connection: asyncpg.Connection, *, hears: bool) -> None:
        """Work over this connection, until it fails with one of CONNECTION_ERRORS.

        Args:
            hears: notifications arrive over it, which they do not behind a pooler of transactions.
        """

    async def _session(self) -> None:
        try:
            connection = await self._open()
            try:
                connection.add_termination_listener(lambda _: self._ring.set())
                direct = await is_direct(connection, SETTINGS.format(local="local"))
                await self._serve(connection, hears=direct or await receives_notifications(self._open))
            finally:
                connection.terminate()
        finally:
            self._state.leased.set(0)

    def _failed(self) -> None:
        self._state.failures.inc()
        if self.connected:
            self._reconnect.succeeded()
        self.connected = False

    async def _open(self) -> asyncpg.Connection:
        return await open_session(
            self._url, name=self._name, connect_timeout=CONNECT_TIMEOUT, query_timeout=QUERY_TIMEOUT
        )

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
