"""A reconciler with a fake API server, which stores applied objects, and a fake database. The real ones are
met end to end."""

from __future__ import annotations

import asyncio
import base64
import copy
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from testing.operator.names import NAMES, child_name
from testing.operator.samples import CONFIG, body
from userrealtime_operator.config import Config
from userrealtime_operator.kube.client import Api, ApiError
from userrealtime_operator.kube.types import NamespacedName, Object, ObjectKey
from userrealtime_operator.model.labels import TOKEN_KEY_ROTATION_ANNOTATION
from userrealtime_operator.model.naming import CREDENTIALS_SUFFIX, Naming
from userrealtime_operator.model.presence import Presence
from userrealtime_operator.postgres.database import Database, DatabaseError
from userrealtime_operator.process.metrics import Metrics
from userrealtime_operator.reconcile.reconciler import Reconciler
from userrealtime_operator.reconcile.resources import Resources
from userrealtime_operator.sleep.activator_endpoints import Activators

Key = TypeVar("Key", contravariant=True)

SECRET = ObjectKey("Secret", "users", child_name("alice"))
"""Alice's token keys."""
CREDENTIALS = ObjectKey("Secret", "users", child_name("alice") + CREDENTIALS_SUFFIX)
"""The URLs for alice's pods."""


class StandInApi(Api):
    def __init__(self) -> None:
        self.cluster = "here"
        self.children: dict[ObjectKey, Object] = {}
        self.resources: dict[tuple[str, str], Object] = {}
        self.calls: list[str] = []
        self.refusal: ApiError | None = None
        self.events: list[str] = []
        self.living_pods: list[Object] = []
        self.versions = 0
        self.slices: dict[str, list[Object]] = {}
        """The EndpointSlices of Services, by name, without those of the operator."""

    async def apply(self, item: Object) -> Object:
        if self.refusal:
            raise self.refusal
        self.calls.append(f"apply {item['kind']}")
        return self._store(item)

    async def create(self, item: Object) -> Object:
        self.calls.append(f"create {item['kind']}")
        if self._key(item) in self.children:
            raise ApiError(409, "already exists")
        return self._store(item)

    async def replace(self, item: Object) -> Object:
        self.calls.append(f"replace {item['kind']}")
        if self.children[self._key(item)]["metadata"]["resourceVersion"] != item["metadata"]["resourceVersion"]:
            raise ApiError(409, "the object has been modified")
        return self._store(item)

    def _key(self, item: Object) -> ObjectKey:
        return ObjectKey(item["kind"], item["metadata"]["namespace"], item["metadata"]["name"])

    def _store(self, item: Object) -> Object:
        stored = copy.deepcopy(item)
        self.versions += 1
        stored["metadata"]["resourceVersion"] = str(self.versions)
        if item["kind"] == "Deployment":
            before = self.children.get(self._key(item), {"metadata": {"generation": 0}, "spec": None})
            changed = before["spec"] != item["spec"]
            stored["metadata"]["generation"] = before["metadata"]["generation"] + changed
            stored["status"] = before.get("status", {})
        self.children[self._key(item)] = stored
        return stored

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        self.calls.append(f"get {kind}")
        return self.children.get(ObjectKey(kind, namespace, name))

    async def delete(self, kind: str, namespace: str, name: str) -> None:
        self.calls.append(f"delete {kind}")
        self.children.pop(ObjectKey(kind, namespace, name), None)

    async def merge_status(self, api_version: str, plural: str, namespace: str, name: str, patch: Object) -> Object:
        self.calls.append("status")
        status = patch["status"]
        current = self.resources[namespace, name].setdefault("status", {})
        for key, value in status.items():
            current.pop(key, None) if value is None else current.update({key: value})
        return self.resources[namespace, name]

    async def pods(self, namespace: str, name: str) -> list[Object]:
        self.calls.append("pods")
        return self.living_pods

    async def endpoint_slices(self, namespace: str, service: str) -> list[Object]:
        ours = self.children.get(ObjectKey("EndpointSlice", namespace, f"{service}-activator"))
        return [*self.slices.get(service, ()), *([ours] if ours else ())]

    async def create_event(self, namespace: str, event: Object) -> None:
        self.events.append(event["reason"])

    async def uids(self, api_version: str, plural: str, namespace: str) -> set[str]:
        return {item["metadata"]["uid"] for (place, _), item in self.resources.items() if place == namespace}


class StandInDatabase(Database):
    def __init__(self) -> None:
        self.known: dict[str, str] = {}
        self.scopes: set[str] = set()
        self.away = False
        self.elsewhere = False
        """Whether another namespace serves all users."""
        self.pings = 0
        self.said: dict[str, list[Presence]] = {}
        self.time = 0.0

    async def register(self, resource: str, scope: str, user_id: str, *, shared: bool = False) -> bool:
        if self.away:
            raise DatabaseError("connection refused")
        if self.elsewhere and not shared:
            return False
        self.scopes.add(scope)
        self.known[resource] = user_id
        return True

    async def ping(self) -> None:
        self.pings += 1
        await asyncio.sleep(0)
        if self.away:
            raise DatabaseError("connection refused")

    async def registered(self, scope: str) -> set[str]:
        return set(self.known) if scope in self.scopes else set()

    async def presence(self, scope: str, user_id: str | None = None) -> tuple[float, Mapping[str, Sequence[Presence]]]:
        if self.away:
            raise DatabaseError("connection refused")
        return self.time, {name: rows for name, rows in self.said.items() if user_id in (None, name)}

    async def forget(self, resource: str) -> None:
        del self.known[resource]


class Cache(Generic[Key]):
    """A cache with the given `get`."""

    def __init__(self, get: Callable[[Key], Mapping[str, Any] | None]) -> None:
        self._get = get

    def get(self, key: Key) -> Mapping[str, Any] | None:
        return self._get(key)


class ReconcilerFixture:
    def __init__(self) -> None:
        self.api, self.database = StandInApi(), StandInDatabase()
        self.stale: Mapping[ObjectKey, Object] | None = None
        """The contents of an outdated cache."""
        self.time = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
        self.add(body())
        self.woken: list[str] = []
        self.activators: Activators | None = None
        self.clock = 0.0
        self.restart()

    def restart(self, config: Config = CONFIG, naming: Naming = NAMES) -> None:
        """Restart the operator with complete caches."""
        self.metrics = Metrics()
        self.reconciler = Reconciler(
            config,
            naming,
            self.api,
            self.database,
            self.resource_cache,
            self.child_cache,
            lambda user: self.woken.append(user.name),
            self.metrics,
            now=lambda: self.time,
            activators=self.activators,
            clock=lambda: self.clock,
        )

    def add(self, item: Object) -> None:
        self.api.resources["users", item["metadata"]["name"]] = item

    @property
    def resource_cache(self) -> Cache[NamespacedName]:
        return Cache(lambda user: self.resource(*user))

    @property
    def child_cache(self) -> Cache[ObjectKey]:
        return Cache(self.child)

    def resource(self, namespace: str, name: str) -> Mapping[str, Any] | None:
        """Return a resource as the operator's cache has it, which keeps only some annotations."""
        item = self.api.resources.get((namespace, name))
        if item is None:
            return None
        resources = Resources(NAMES)
        resources.put({**item, "metadata": {"resourceVersion": "1", **item["metadata"]}})
        return resources.get((namespace, name))

    def child(self, key: ObjectKey) -> Mapping[str, Any] | None:
        return (self.api.children if self.stale is None else self.stale).get(key)

    def keys(self) -> dict[str, str]:
        """Return alice's token keys."""
        data = self.api.children[SECRET]["data"]
        return {name: base64.b64decode(data[name]).decode() for name in data}

    def request(self, value: str) -> None:
        """Request a new token key for alice."""
        self.api.resources["users", "alice"]["metadata"]["annotations"] = {TOKEN_KEY_ROTATION_ANNOTATION: value}

    async def reconcile(self, name: str = "alice") -> list[str]:
        """Run one reconciliation and return its calls."""
        self.api.calls.clear()
        await self.reconciler.reconcile("users", name)
        return list(self.api.calls)

    async def serve(self, *names: str) -> None:
        """Create users with ready pods."""
        for name in names:
            self.add(body(name))
            await self.reconcile(name)
            self.become_available(name)
            await self.reconcile(name)

    def condition(self, kind: str, name: str = "alice") -> tuple[str, str, str]:
        for condition in self.api.resources["users", name]["status"]["conditions"]:
            if condition["type"] == kind:
                return condition["status"], condition["reason"], condition["message"]
        raise AssertionError(f"no condition {kind}")

    def become_available(self, name: str = "alice", pods: int = 1) -> None:
        """Set the number of ready pods in the Deployment's status."""
        deployment = self.api.children[ObjectKey("Deployment", "users", child_name(name))]
        deployment["status"] = {
            "observedGeneration": deployment["metadata"]["generation"],
            "replicas": 1,
            "updatedReplicas": 1,
            "availableReplicas": pods,
            "conditions": [{"type": "Available", "status": "True", "reason": "x", "message": ""}],
        }
