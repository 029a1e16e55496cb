"""Wakes users, once for all clients that wait for the same user.

The wake is requested for the first client, when it is the turn of the user's pod to start. All clients wait for the
result: a pod that accepts connections, or a failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple, Protocol

from .metrics import Metrics
from .pods import Pod
from .routes import ChildKey, Route
from .starts import Starts

CONNECT_INTERVAL_S: Final = 0.02
CONNECT_TIMEOUT_S: Final = 0.5
Address = tuple[str, int]

_logger = logging.getLogger(__name__)


class WakeFailed(Exception):
    """No pod of the user accepts connections.

    Args:
        reason: the label of the metric.
        message: the cause, for the log.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Cluster(Protocol):
    """The parts of the cluster that a wake needs."""

    async def request_wake(self, route: Route) -> bool:
        """Request the operator to wake a user; return False if another activator has done so.

        Raises:
            OSError: the request cannot be written.
        """

    def pod(self, route: Route) -> Pod | None:
        """Return the user's pod to connect to, ready or not, None if there is none."""

    def has_pod(self, route: Route) -> bool:
        """Return whether the user has a pod, even one without an address."""

    async def wait_for_change(self, route: Route) -> None:
        """Wait until the user's pods change."""

    def register_address(self, route: Route, ip: str) -> None:
        """Use the address that a pod has registered, until the API server reports a pod."""


@dataclass(slots=True)
class _Wake:
    """A wake in progress."""

    route: Route
    task: asyncio.Task[Address]
    clients: int = 0
    """The number of clients that wait for it."""


class _Requested(Enum):
    """Who has requested a wake."""

    NOT = "not"
    HERE = "here"
    ELSEWHERE = "elsewhere"


class _Found(NamedTuple):
    """A pod that accepts connections."""

    address: Address
    requested: _Requested


class Wakes:
    """The wakes in progress, by the name of the user's objects.

    Args:
        timeout_s: how long a wake may take.
        max_waiting: how many clients may wait for one user.
        max_users: how many users may be woken at the same time.
    """

    def __init__(
        self,
        cluster: Cluster,
        metrics: Metrics,
        timeout_s: float = 30,
        max_waiting: int = 1000,
        max_users: int = 1000,
    ) -> None:
        self._cluster = cluster
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._max_waiting = max_waiting
        self._max_users = max_users
        self._wakes: dict[ChildKey, _Wake] = {}
        self._reached: dict[ChildKey, Address] = {}
        """The pods that have accepted connections, before the API server reports it."""
        self._starts = Starts(metrics)
        self._closed = False
        metrics.waiting.set_function(lambda: len(self._wakes))

    async def wake_and_wait(self, route: Route) -> Address:
        """Wake a user, or join the wake in progress. Returns the address at which the pod accepts connections.

        Raises:
            WakeFailed: no pod accepts connections in time, or too many clients wait already.
        """
        if self._closed:
            raise WakeFailed("shutting_down", "the activator is shutting down")
        wake = self._wakes.get(route.key)
        if wake is None:
            if len(self._wakes) >= self._max_users:
                raise self._failed("overloaded", "too many users are being woken")
            wake = _Wake(route, asyncio.create_task(self._wake(route)))
            self._wakes[route.key] = wake
            wake.task.add_done_callback(lambda task: self._end(route, task))
        if wake.clients >= self._max_waiting:
            raise self._failed("overloaded", "too many clients wait for this user")
        wake.clients += 1
        try:
            # A client that disconnects does not cancel the wake for the others.
            return await asyncio.shield(wake.task)
        finally:
            wake.clients -= 1

    async def wait_for_pod(self, route: Route) -> Address:
        """Return the address of a user's pod as soon as there is one, without a request to wake the user.

        Raises:
            WakeFailed: a wake that was in progress has failed.
        """
        while True:
            wake = self._wakes.get(route.key)
            if wake is not None:
                return await asyncio.shield(wake.task)
            pod = self._cluster.pod(route)
            if pod is not None and (pod.ready or self._reached.get(route.key) == pod.address):
                return pod.address
            await self._cluster.wait_for_change(route)

    def find_pending(self, namespace: str, child_name: str) -> Route | None:
        """Return the user whose objects have this name, None unless a wake of the user is in progress."""
        wake = self._wakes.get((namespace, child_name))
        return None if wake is None else wake.route

    def on_registered(self, route: Route, ip: str) -> None:
        """Use the address that a pod has registered. Ignored unless a wake of the user is in progress."""
        if route.key in self._wakes:
            self._cluster.register_address(route, ip)

    async def close(self) -> None:
        """Cancel all wakes, and start no more. Waiting clients get WakeFailed."""
        self._closed = True
        tasks = [wake.task for wake in self._wakes.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _failed(self, reason: str, message: str) -> WakeFailed:
        self._metrics.failures.labels(reason).inc()
        return WakeFailed(reason, message)

    def _end(self, route: Route, task: asyncio.Task[Address]) -> None:
        del self._wakes[route.key]
        if not task.cancelled():
            task.exception()  # retrieved even if all clients have disconnected

    async def _wake(self, route: Route) -> Address:
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout_s):
                find = self._find_pod if self._cluster.has_pod(route) else self._start_pod
                found = await find(route)
        except TimeoutError:
            raise self._failed("no_pod", f"no pod accepted connections within {self._timeout_s:g} s") from None
        except asyncio.CancelledError:
            raise self._failed("shutting_down", "the activator is shutting down") from None
        except OSError as error:
            _logger.warning("could not request a wake", extra={"fields": {"error": str(error)}})
            raise self._failed("request_failed", "could not request the wake") from None
        if found.requested is not _Requested.NOT:
            self._metrics.wake.observe(time.monotonic() - began)
        self._reached[route.key] = found.address
        return found.address

    async def _start_pod(self, route: Route) -> _Found:
        """Start the pod of a user without one when its turn has come."""
        with self._starts.enter() as start:
            present = asyncio.create_task(self._wait_until_present(route))
            try:
                await asyncio.wait((start.turn, present), return_when=asyncio.FIRST_COMPLETED)
            finally:
                present.cancel()
                await asyncio.gather(present, return_exceptions=True)
            found = await self._find_pod(route)
            # A start that another activator has requested began earlier.
            start.measured = found.requested is _Requested.HERE
            return found

    async def _wait_until_present(self, route: Route) -> None:
        while not self._cluster.has_pod(route):
            await self._cluster.wait_for_change(route)

    async def _find_pod(self, route: Route) -> _Found:
        """Return a user's pod as soon as it accepts connections. Without a ready one, request a wake."""
        requested = _Requested.NOT
        while True:
            pod = self._cluster.pod(route)
            # A client of a user that is awake may come through an old path. That needs no request.
            if requested is _Requested.NOT and (pod is None or not pod.ready):
                self._reached.pop(route.key, None)
                written = await self._cluster.request_wake(route)
                requested = _Requested.HERE if written else _Requested.ELSEWHERE
                continue
            if pod is None:
                await self._cluster.wait_for_change(route)
                continue
            # Connecting is the check: a readiness probe would report up to a second later.
            if await _accepts_connections(pod.address):
                return _Found(pod.address, requested)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CONNECT_INTERVAL_S):
                    await self._cluster.wait_for_change(route)


async def _accepts_connections(address: Address) -> bool:
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, writer = await asyncio.open_connection(*address)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True
