"""The cluster, as waking needs it: users and their pods by watches, the request for a wake, and users' keys.

A wake is asked for once, however many replicas of the activator have clients who wait for it: the request is written
only to the resource as it was last seen, and not at all if another request for the same wake was seen already.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence, Set
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from userrealtime_operator.kube.client import PODS, Api, ApiError
from userrealtime_operator.kube.reflector import Reflector
from userrealtime_operator.kube.store import Store
from userrealtime_operator.kube.timestamps import rfc3339
from userrealtime_operator.kube.types import NamespacedName, Object
from userrealtime_operator.model.labels import RELAY
from userrealtime_operator.model.resource import USERREALTIMES

from .metrics import Metrics
from .pods import Pod, Pods
from .routes import Route, RouteTable

PENDING_S: Final = 30.0
"""Seconds for which the request of another replica is relied upon."""
WATCH_TIMEOUT_S: Final = 60
"""Seconds after which a watch ends, so that one whose server has died is replaced soon."""
_ATTEMPTS: Final = 4
_SETTLE_S: Final = 0.5
"""Seconds to wait for the news of what somebody else has just written."""
_CONFLICT: Final = 409


class _Request(NamedTuple):
    """The last request for a user's wake, as the resource has it."""

    version: str
    moment: str | None
    seen_at: float
    """When it was seen to be another; 0 for what was there from the beginning."""


class Requests(Store):
    """What the resources say of wakes. Passes them on to the routes."""

    def __init__(self, routes: RouteTable) -> None:
        self._routes = routes
        self._requests: dict[NamespacedName, _Request] = {}
        self._news = asyncio.Event()

    def __len__(self) -> int:
        return len(self._requests)

    def version(self, user: NamespacedName) -> str | None:
        """The resourceVersion that was seen last."""
        known = self._requests.get(user)
        return known and known.version

    def asked_at(self, user: NamespacedName) -> float:
        """When the last request was seen, by the monotonic clock."""
        known = self._requests.get(user)
        return known.seen_at if known else 0.0

    async def another(self, user: NamespacedName, version: str) -> None:
        """Until another version than this one is there, or for a moment."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SETTLE_S):
                while self.version(user) == version:
                    await self._news.wait()

    def put(self, body: Mapping[str, Any]) -> None:
        """A resource is there, new or changed."""
        user = _user(body)
        moment = body.get("status", {}).get("wakeRequestedAt")
        before = self._requests.get(user)
        seen_at = before.seen_at if before else 0.0
        if before and moment != before.moment:
            seen_at = time.monotonic()
        self._requests[user] = _Request(body["metadata"]["resourceVersion"], moment, seen_at)
        self._routes.put(body)
        self._tell()

    def remove(self, body: Mapping[str, Any]) -> None:
        """A resource is gone."""
        self._forget(_user(body))

    def retain(self, namespace: str, names: Set[str], version: int) -> None:
        """Remove the resources of a namespace with other names."""
        for user in [each for each in self._requests if each.namespace == namespace and each.name not in names]:
            self._forget(user)

    def _forget(self, user: NamespacedName) -> None:
        self._requests.pop(user, None)
        self._routes.remove(user)
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news.clear()


class ApiCluster:
    """The cluster of an API server."""

    def __init__(self, api: Api, routes: RouteTable, metrics: Metrics) -> None:
        self._api = api
        self._metrics = metrics
        self._pods = Pods()
        self._requests = Requests(routes)
        metrics.users.set_function(lambda: len(self))

    def __len__(self) -> int:
        """How many users there are."""
        return len(self._requests)

    @contextlib.asynccontextmanager
    async def following(self, watches: Api, namespaces: Sequence[str]) -> AsyncIterator[asyncio.Task[None]]:
        """Follow users and pods while the block runs; the task ends once all of them are known."""
        reflectors = [
            Reflector(watches, resource_type, namespace, labels, store, timeout_s=WATCH_TIMEOUT_S)
            for namespace in namespaces
            for resource_type, labels, store in (
                (USERREALTIMES, {}, self._requests),
                (PODS, RELAY, self._pods),
            )
        ]

        async def all_synced() -> None:
            for reflector in reflectors:
                await reflector.wait_for_sync()

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(reflector.run()) for reflector in reflectors]
                full = group.create_task(all_synced())
                try:
                    yield full
                finally:
                    for task in (*tasks, full):
                        task.cancel()
        except BaseExceptionGroup as found:
            raise found.exceptions[0] from None

    async def secret(self, route: Route) -> Object | None:
        """A user's Secret. Raises OSError if it cannot be had."""
        try:
            return await self._api.get("Secret", route.user.namespace, route.child_name)
        except ApiError as error:
            raise OSError(f"a Secret cannot be read: {error}") from None

    def pod(self, route: Route) -> Pod | None:
        """See `wakes.Cluster`, as for all that follows."""
        return self._pods.best((route.user.namespace, route.child_name))

    def announced(self, route: Route, ip: str) -> None:
        self._pods.announce((route.user.namespace, route.child_name), ip)

    async def changed(self, route: Route) -> None:
        await self._pods.changed((route.user.namespace, route.child_name))

    async def request_wake(self, route: Route) -> None:
        user = route.user
        version: str | None = None
        for attempt in range(_ATTEMPTS):
            if self._is_asked(route):
                return
            # In the end whatever the resource is: that others write to it all the time must keep nobody asleep.
            version = self._requests.version(user) if attempt < _ATTEMPTS - 1 else None
            try:
                await self._api.merge_status(*USERREALTIMES, *user, _wake_request(version))
            except ApiError as error:
                if error.status != _CONFLICT or version is None:
                    raise OSError(str(error)) from None
                await self._requests.another(user, version)
            else:
                self._metrics.requested.inc()
                return

    def _is_asked(self, route: Route) -> bool:
        """Whether somebody has asked already for the wake that is wanted now."""
        seen_at = self._requests.asked_at(route.user)
        last_ready = self._pods.last_ready((route.user.namespace, route.child_name))
        return seen_at > last_ready and time.monotonic() < seen_at + PENDING_S


def _wake_request(version: str | None) -> Object:
    """Return the patch that requests a wake now, if the resource still has this resourceVersion."""
    patch: Object = {"status": {"wakeRequestedAt": rfc3339(datetime.now(UTC), "microseconds")}}
    return patch if version is None else {**patch, "metadata": {"resourceVersion": version}}


def _user(body: Mapping[str, Any]) -> NamespacedName:
    return NamespacedName(body["metadata"]["namespace"], body["metadata"]["name"])
