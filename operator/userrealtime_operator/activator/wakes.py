"""Waking, once for all who wait for the same user.

The first to come asks for the wake; all wait for the same end of it: a pod that takes connections, or a failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Final, Protocol

from .metrics import Metrics
from .pods import Pod
from .routes import Route

CONNECT_INTERVAL_S: Final = 0.02
CONNECT_TIMEOUT_S: Final = 0.5
Address = tuple[str, int]

_logger = logging.getLogger(__name__)


class WakeFailed(Exception):
    """The user's pod does not come, in the time there is or at all. Says why, for a log; `reason` is for a metric."""

    def __init__(self, reason: str, why: str) -> None:
        super().__init__(why)
        self.reason = reason


class Cluster(Protocol):
    """What waking needs of the cluster."""

    async def request_wake(self, route: Route) -> None:
        """Ask the operator to wake a user. Raises OSError if that cannot be asked."""

    def pod(self, route: Route) -> Pod | None:
        """The pod of a user's to connect to, ready or not, if there is one."""

    async def changed(self, route: Route) -> None:
        """Until a user's pods are not what they are now."""

    def announced(self, route: Route, ip: str) -> None:
        """A user's pod has said itself where it is: that is its `pod`, until the cluster tells of it."""


class Wakes:
    """The wakes under way.

    Args:
        patience_s: how long one may take.
        max_waiting: how many may wait for one user, and `max_users` for how many users.
    """

    def __init__(
        self,
        cluster: Cluster,
        metrics: Metrics,
        patience_s: float = 30,
        max_waiting: int = 1000,
        max_users: int = 1000,
    ) -> None:
        self._cluster = cluster
        self._metrics = metrics
        self._patience_s = patience_s
        self._max_waiting = max_waiting
        self._max_users = max_users
        self._tasks: dict[Route, asyncio.Task[Address]] = {}
        self._waiting: dict[Route, int] = {}
        self._closed = False
        metrics.waiting.set_function(lambda: len(self._tasks))

    async def arrive(self, route: Route) -> Address:
        """Wake a user, or join those who do; gives where the pod takes connections.

        Raises:
            WakeFailed: it does not, or too many wait already.
        """
        if self._closed:
            raise WakeFailed("stopping", "the activator is stopping")
        task = self._tasks.get(route)
        if task is None:
            if len(self._tasks) >= self._max_users:
                raise self._failed("crowded", "too many users are being woken")
            task = asyncio.create_task(self._wake(route))
            self._tasks[route] = task
            task.add_done_callback(lambda done: self._end(route, done))
        if self._waiting.get(route, 0) >= self._max_waiting:
            raise self._failed("crowded", "too many wait for this user")
        self._waiting[route] = self._waiting.get(route, 0) + 1
        try:
            # One who leaves takes nobody else along.
            return await asyncio.shield(task)
        finally:
            self._waiting[route] -= 1
            if not self._waiting[route]:
                del self._waiting[route]

    def awaited(self, namespace: str, child_name: str) -> Route | None:
        """The user under way whose objects have this name."""
        for route in self._tasks:
            if (route.user.namespace, route.child_name) == (namespace, child_name):
                return route
        return None

    def announced(self, route: Route, ip: str) -> None:
        """A user's pod has said where it is. For nothing, unless somebody waits for it."""
        if route in self._tasks:
            self._cluster.announced(route, ip)

    async def close(self) -> None:
        """End all wakes, and begin none; those who wait get WakeFailed."""
        self._closed = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _failed(self, reason: str, why: str) -> WakeFailed:
        self._metrics.failures.labels(reason).inc()
        return WakeFailed(reason, why)

    def _end(self, route: Route, task: asyncio.Task[Address]) -> None:
        del self._tasks[route]
        if not task.cancelled():
            task.exception()  # looked at, also if all who waited have left

    async def _wake(self, route: Route) -> Address:
        try:
            async with asyncio.timeout(self._patience_s):
                return await self._find(route)
        except TimeoutError:
            raise self._failed("no_pod", f"no pod took connections within {self._patience_s:g} s") from None
        except asyncio.CancelledError:
            raise self._failed("stopping", "the activator is stopping") from None
        except OSError as error:
            _logger.warning("a wake cannot be asked for", extra={"fields": {"error": str(error)}})
            raise self._failed("not_asked", "the wake cannot be asked for") from None

    async def _find(self, route: Route) -> Address:
        began = time.monotonic()
        asked = False
        while True:
            pod = self._cluster.pod(route)
            # One who is awake has come through on an old path, and is not asked for.
            if not asked and (pod is None or not pod.ready):
                await self._cluster.request_wake(route)
                asked = True
                continue
            if pod is None:
                await self._cluster.changed(route)
                continue
            # The pod is asked itself: a readiness probe would come up to a second later.
            if await _takes_connections(pod.address):
                if asked:
                    self._metrics.wake.observe(time.monotonic() - began)
                return pod.address
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CONNECT_INTERVAL_S):
                    await self._cluster.changed(route)


async def _takes_connections(address: Address) -> bool:
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, writer = await asyncio.open_connection(*address)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True
