"""The activator's access to the cluster: watches of users and their pods, wake requests, and users' token keys.

A wake is requested once, even if several replicas of the activator have clients that wait for it: the request is
conditional on the last observed resourceVersion, and it is skipped if another request for the same wake was observed.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence, Set
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from userrealtime_core.auth.sealed_keys import BadSeal, Seal
from userrealtime_operator.kube.client import PODS, Api, ApiError
from userrealtime_operator.kube.reflector import Reflector
from userrealtime_operator.kube.store import Store
from userrealtime_operator.kube.timestamps import rfc3339
from userrealtime_operator.kube.types import NamespacedName, Object
from userrealtime_operator.model.labels import RELAY
from userrealtime_operator.model.resource import SEALED_KEYS, USERREALTIMES

from .metrics import Metrics
from .pods import Pod, Pods
from .routes import Route, RouteTable

logger = logging.getLogger(__name__)

PENDING_S: Final = 30.0
"""Seconds for which this replica relies on the request of another one."""
WATCH_TIMEOUT_S: Final = 60
"""Seconds after which a watch ends. A watch whose server has died is therefore replaced soon."""
PARKED: Final = "Parked"
"""The value of `status.state` of a parked user."""
_ATTEMPTS: Final = 4
_WATCH_DELAY_S: Final = 0.5
"""Seconds to wait until the watch reports a conflicting write."""
_CONFLICT: Final = 409


class _Request(NamedTuple):
    """The last wake request of a resource, and its token keys."""

    resource_version: str
    requested_at: str | None
    observed_at: float
    """When the request was observed to change, by the monotonic clock; 0 for the first observation."""
    sealed_keys: tuple[str, str] | None
    """The uid of the resource and its sealed token keys; None if they are not in the status or not needed."""


class WakeRequestTracker(Store):
    """Tracks the wake requests and sealed token keys of all resources, and updates the routes."""

    def __init__(self, routes: RouteTable, *, keeps_keys: bool = False) -> None:
        self.unparked: Callable[[NamespacedName], None] = lambda _: None
        """Called with a resource whose user is not parked any more."""
        self._routes = routes
        self._keeps_keys = keeps_keys
        self._parked: set[NamespacedName] = set()
        self._requests: dict[NamespacedName, _Request] = {}
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._requests)

    def resource_version(self, user: NamespacedName) -> str | None:
        """Return the last observed resourceVersion."""
        known = self._requests.get(user)
        return known and known.resource_version

    def last_observed_at(self, user: NamespacedName) -> float:
        """Return when the last request was observed, by the monotonic clock; 0 if there was none."""
        known = self._requests.get(user)
        return known.observed_at if known else 0.0

    def sealed_keys(self, user: NamespacedName) -> tuple[str, str] | None:
        """Return the uid of a resource and its sealed token keys, None if its status has none."""
        known = self._requests.get(user)
        return known and known.sealed_keys

    def is_parked(self, user: NamespacedName) -> bool:
        """Return whether the user has no pod, and activators keep the connections of its idle clients."""
        return user in self._parked

    async def wait_for_other_version(self, user: NamespacedName, version: str) -> None:
        """Wait until another resourceVersion than this one was observed, for a limited time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_WATCH_DELAY_S):
                while self.resource_version(user) == version:
                    await self._changed.wait()

    def put(self, body: Mapping[str, Any]) -> None:
        """Add or update a resource."""
        user = _user(body)
        metadata, status = body["metadata"], body.get("status", {})
        requested_at = status.get("wakeRequestedAt")
        before = self._requests.get(user)
        observed_at = before.observed_at if before else 0.0
        if before and requested_at != before.requested_at:
            observed_at = time.monotonic()
        sealed = (metadata["uid"], status[SEALED_KEYS]) if self._keeps_keys and SEALED_KEYS in status else None
        self._requests[user] = _Request(metadata["resourceVersion"], requested_at, observed_at, sealed)
        self._routes.put(body)
        self._set_parked(user, parked=body.get("status", {}).get("state") == PARKED)
        self._notify()

    def remove(self, body: Mapping[str, Any]) -> None:
        """Remove a resource."""
        self._forget(_user(body))

    def retain(self, namespace: str, names: Set[str], version: int) -> None:
        """Remove the resources of a namespace with other names."""
        for user in [each for each in self._requests if each.namespace == namespace and each.name not in names]:
            self._forget(user)

    def _forget(self, user: NamespacedName) -> None:
        self._requests.pop(user, None)
        self._routes.remove(user)
        self._set_parked(user, parked=False)
        self._notify()

    def _set_parked(self, user: NamespacedName, *, parked: bool) -> None:
        if parked:
            self._parked.add(user)
        elif user in self._parked:
            self._parked.remove(user)
            self.unparked(user)

    def _notify(self) -> None:
        self._changed.set()
        self._changed.clear()


class ApiCluster:
    """Implements `wakes.Cluster` with an API server. The watches fill the stores `pods` and `requests`.

    Args:
        seal: opens the token keys in the status of resources. None: they are read from the users' Secrets.
    """

    def __init__(self, api: Api, routes: RouteTable, metrics: Metrics, seal: Seal | None = None) -> None:
        self._api = api
        self._metrics = metrics
        self._seal = seal
        self.pods = Pods()
        self.requests = WakeRequestTracker(routes, keeps_keys=seal is not None)
        metrics.users.set_function(lambda: len(self))

    def __len__(self) -> int:
        """The number of users."""
        return len(self.requests)

    @contextlib.asynccontextmanager
    async def watching(self, watches: Api, namespaces: Sequence[str]) -> AsyncIterator[asyncio.Task[None]]:
        """Watch users and pods while the block runs. Yields a task that ends when all of them were listed."""
        reflectors = [
            Reflector(watches, resource_type, namespace, labels, store, timeout_s=WATCH_TIMEOUT_S)
            for namespace in namespaces
            for resource_type, labels, store in (
                (USERREALTIMES, {}, self.requests),
                (PODS, RELAY, self.pods),
            )
        ]

        async def all_synced() -> None:
            for reflector in reflectors:
                await reflector.wait_until_known()

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(reflector.run()) for reflector in reflectors]
                listed = group.create_task(all_synced())
                try:
                    yield listed
                finally:
                    for task in (*tasks, listed):
                        task.cancel()
        except BaseExceptionGroup as found:
            raise found.exceptions[0] from None

    async def secret(self, route: Route) -> Object | None:
        """Return a user's Secret, None if there is none. Raises OSError if it cannot be read.

        With a seal, the Secret has only the token keys, and comes from the status of the resource.
        """
        if self._seal is not None:
            return self._unsealed(self._seal, route)
        try:
            return await self._api.get("Secret", route.user.namespace, route.child_name)
        except ApiError as error:
            raise OSError(f"could not read a Secret: {error}") from None

    def _unsealed(self, seal: Seal, route: Route) -> Object:
        found = self.requests.sealed_keys(route.user)
        if found is None:
            raise OSError("the status has no token keys yet")
        try:
            keys = seal.open(*found)
        except BadSeal:
            # Until the operator has the same key, and has written the status again.
            logger.warning("cannot open the token keys in the status of %s/%s: another key sealed them", *route.user)
            raise OSError("the status has the token keys of another seal") from None
        return {"data": {name: base64.b64encode(key.encode()).decode() for name, key in keys.items()}}

    def pod(self, route: Route) -> Pod | None:
        """Return the user's pod to connect to."""
        return self.pods.best(route.key)

    def has_pod(self, route: Route) -> bool:
        """Return whether the user has a pod, even one without an address."""
        return self.pods.exists(route.key)

    def register_address(self, route: Route, ip: str) -> None:
        """Use the address that a pod has registered."""
        self.pods.add_registered(route.key, ip)

    async def wait_for_change(self, route: Route) -> None:
        """Wait until the user's pods change."""
        await self.pods.wait_for_change(route.key)

    async def request_wake(self, route: Route) -> bool:
        """Write a wake request, unless another replica has written one for this wake; return whether it was written."""
        user = route.user
        attempts = 0
        while not self._is_requested(route):
            attempts += 1
            # The last attempt is unconditional: frequent writes by others must not prevent a wake.
            version = self.requests.resource_version(user) if attempts < _ATTEMPTS else None
            try:
                await self._api.merge_status(*USERREALTIMES, *user, _wake_request(version))
            except ApiError as error:
                if error.status != _CONFLICT or version is None:
                    raise OSError(str(error)) from None
                await self.requests.wait_for_other_version(user, version)
            else:
                self._metrics.requested.inc()
                return True
        return False

    def _is_requested(self, route: Route) -> bool:
        """Return whether a request was observed since the user last had a ready pod."""
        observed_at = self.requests.last_observed_at(route.user)
        return observed_at > self.pods.last_ready(route.key) and time.monotonic() < observed_at + PENDING_S


def _wake_request(version: str | None) -> Object:
    """Return the patch that requests a wake now, if the resource still has this resourceVersion."""
    patch: Object = {"status": {"wakeRequestedAt": rfc3339(datetime.now(UTC), "microseconds")}}
    return patch if version is None else {**patch, "metadata": {"resourceVersion": version}}


def _user(body: Mapping[str, Any]) -> NamespacedName:
    return NamespacedName(body["metadata"]["namespace"], body["metadata"]["name"])
