"""What kopf sees: watches that feed the caches and the work queue, and every framework setting with its reason.

Handlers write nothing and never fail; all work is done by the queue's workers, with retries of our own. `on.event` is
used since it leaves no annotation and no finalizer on anybody's objects.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import kopf

from .api import Api, ApiError
from .config import Config, RouteType
from .database import Database
from .desired import MANAGED_BY
from .naming import child_name
from .reconcile import ChildKey, Reconciler
from .resource import GROUP, PLURAL, VERSION
from .retention import prune
from .roles import Roles
from .rollouts import User
from .workqueue import WorkQueue

logger = logging.getLogger(__name__)

WORKERS = 8
SWEEP_INTERVAL_S = 300.0
PRUNE_INTERVAL_S = 60.0
Place = tuple[str, str]
ChildKinds = Mapping[str, tuple[str, str]]
"""The kinds of children that this cluster has, each with its API version and plural."""


class Kind(enum.StrEnum):
    """What there is to do."""

    RESOURCE = "resource"
    """Bring a user to what the resource asks for."""
    SWEEP = "sweep"
    """Remove what the deleted resources of a namespace left in the database."""
    PRUNE = "prune"
    """Remove what the log and the inbox need not keep any more."""
    ORPHAN = "orphan"
    """Remove children by this name that belong to no resource, and that nobody else will remove."""


class Task(NamedTuple):
    """A key of the work queue."""

    kind: Kind
    namespace: str = ""
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}".rstrip("/")


def _trimmed(body: Mapping[str, Any]) -> dict[str, Any]:
    """An object without the bookkeeping that nothing here reads: it is the larger half of it."""
    metadata = {key: value for key, value in body["metadata"].items() if key != "managedFields"}
    return {**body, "metadata": metadata}


class Operator:
    """The running operator: caches, queue, and the tasks that work on it."""

    def __init__(self, config: Config, child_kinds: ChildKinds) -> None:
        self._config = config
        self._child_kinds = child_kinds
        self._resources: kopf.Index[Place, Mapping[str, Any]]
        self._owners: kopf.Index[Place, str]
        self._children: kopf.Index[ChildKey, Mapping[str, Any]]
        self._stack = contextlib.AsyncExitStack()
        self._workers: asyncio.Task[None] | None = None
        self._queue: WorkQueue[Task] = WorkQueue(self._work)
        self._reconciler: Reconciler
        self._database: Database
        self._scopes: list[str]
        self._caches_are_full = False

    def register(self, registry: kopf.OperatorRegistry) -> None:
        """Tell kopf what to watch."""
        resource = (GROUP, VERSION, PLURAL)
        kopf.on.startup(registry=registry)(self._startup)
        kopf.on.cleanup(registry=registry)(self._cleanup)
        kopf.index(*resource, id="resources", registry=registry)(self._index_resource)
        kopf.index(*resource, id="owners", registry=registry)(self._index_owner)
        kopf.on.event(*resource, registry=registry)(self._resource_changed)
        for api_version, plural in self._child_kinds.values():
            group, _, version = api_version.rpartition("/")
            kopf.index(group, version, plural, id="children", labels=MANAGED_BY, registry=registry)(self._index_child)
            kopf.on.event(group, version, plural, labels=MANAGED_BY, registry=registry)(self._child_changed)

    async def _startup(self, **kwargs: Any) -> None:
        self._resources, self._owners, self._children = kwargs["resources"], kwargs["owners"], kwargs["children"]
        api = await self._stack.enter_async_context(await Api.connect())
        database = await self._stack.enter_async_context(Database(self._config.database_url))
        self._database, self._scopes = database, [f"{api.cluster}/{each}" for each in self._config.namespaces]
        self._reconciler = Reconciler(
            self._config, api, database, self._resource, self._child, self._wake, roles=Roles(database)
        )
        self._workers = asyncio.create_task(self._queue.run(WORKERS), name="workers")
        for namespace in self._config.namespaces:
            self._queue.add(Task(Kind.SWEEP, namespace))
        self._queue.add(Task(Kind.PRUNE))
        logger.info("serving %s in %s", f"{PLURAL}.{GROUP}", ", ".join(self._config.namespaces))

    async def _cleanup(self, **_: Any) -> None:
        if self._workers is not None:
            self._workers.cancel()
            await asyncio.gather(self._workers, return_exceptions=True)
        await self._stack.aclose()

    # The caches. kopf fills them wholly before it calls the first event handler.

    async def _index_resource(self, *, namespace: str | None, name: str, body: kopf.Body, **_: Any) -> Any:
        return {(namespace, name): _trimmed(dict(body))}

    async def _index_owner(self, *, namespace: str | None, name: str, body: kopf.Body, **_: Any) -> Any:
        return {(namespace, child_name(body["spec"]["userId"])): name}

    async def _index_child(self, *, namespace: str | None, name: str, body: kopf.Body, **_: Any) -> Any:
        assert namespace is not None  # noqa: S101  (all kinds of children are namespaced)
        return {ChildKey(body["kind"], namespace, name): _trimmed(dict(body))}

    def _resource(self, namespace: str, name: str) -> Mapping[str, Any] | None:
        return next(iter(self._resources.get((namespace, name), ())), None)

    def _child(self, key: ChildKey) -> Mapping[str, Any] | None:
        return next(iter(self._children.get(key, ())), None)

    def _wake(self, user: User) -> None:
        self._queue.add(Task(Kind.RESOURCE, user.namespace, user.name))

    def _is_registered(self, namespace: str, name: str) -> bool:
        resource = self._resource(namespace, name)
        return resource is None or self._reconciler.is_registered(resource["metadata"]["uid"])

    # The triggers.

    def _note_full_caches(self) -> None:
        if not self._caches_are_full:
            self._caches_are_full = True
            self._reconciler.resume_rollouts(body for bodies in self._resources.values() for body in bodies)

    async def _resource_changed(self, *, namespace: str | None, name: str, event: kopf.RawEvent, **_: Any) -> None:
        assert namespace is not None  # noqa: S101  (the CRD is namespaced)
        self._note_full_caches()
        if event["type"] == "DELETED":
            self._queue.add(Task(Kind.SWEEP, namespace))
        else:
            self._queue.add(Task(Kind.RESOURCE, namespace, name))

    async def _child_changed(self, *, namespace: str | None, name: str, **_: Any) -> None:
        assert namespace is not None  # noqa: S101  (all kinds of children are namespaced)
        self._note_full_caches()
        # By name, not by owner reference: that one may be what somebody has just removed.
        owners = self._owners.get((namespace, name), ())
        for resource in owners:
            self._queue.add(Task(Kind.RESOURCE, namespace, resource))
        if not owners:
            self._queue.add(Task(Kind.ORPHAN, namespace, name))

    # The work.

    async def _work(self, task: Task) -> float | None:
        match task.kind:
            case Kind.RESOURCE:
                return await self._reconciler.reconcile(task.namespace, task.name)
            case Kind.SWEEP:
                await self._reconciler.sweep(task.namespace)
                # While the caches fill, resources would seem to have no children; their own events come anyway.
                if self._caches_are_full:
                    for namespace, name in self._resources:
                        if namespace == task.namespace and not self._is_registered(namespace, name):
                            self._queue.add(Task(Kind.RESOURCE, namespace, name))
                return SWEEP_INTERVAL_S
            case Kind.PRUNE:
                events, messages = await prune(self._database, self._config.retention, self._scopes)
                if events or messages:
                    logger.info("removed %d events and %d messages by age or number", events, messages)
                return PRUNE_INTERVAL_S
            case Kind.ORPHAN:
                if not self._owners.get((task.namespace, task.name)):
                    await self._reconciler.remove_orphans(task.namespace, task.name)
                return None


def framework_settings(child_kinds: ChildKinds) -> kopf.OperatorSettings:
    """Every setting of kopf that is not its default, each with its reason."""
    settings = kopf.OperatorSettings()
    selector = ",".join(f"{key}={value}" for key, value in MANAGED_BY.items())
    for api_version, plural in child_kinds.values():
        group, _separator, version = api_version.rpartition("/")
        # Other people's Secrets are none of our business: they do not leave the API server.
        settings.watching.label_selectors[group, version, plural] = selector
    # One instance, by the chart: peering with equal priorities would freeze both.
    settings.peering.standalone = True
    # Namespaces and CRDs are known beforehand, so that no right to list those of the cluster is needed.
    settings.scanning.disabled = True
    # Our own Events, where there are any, are written on purpose, not made from log lines.
    settings.posting.enabled = False
    # Without a limit, a start with thousands of resources opens as many workers at once.
    settings.queueing.worker_limit = 50
    # A watch whose server died silently ends by itself.
    settings.watching.server_timeout = 240
    settings.watching.connect_timeout = 10
    return settings


async def _child_kinds(config: Config) -> ChildKinds:
    async with await Api.connect() as api:
        kinds = await api.child_kinds()
    if config.route.type is RouteType.HTTP_ROUTE and "HTTPRoute" not in kinds:
        raise ApiError(404, "route.type is HTTPRoute, which this cluster does not have: install the Gateway API (v1)")
    return kinds


def run(config: Config, liveness_url: str) -> None:
    """Run the operator until it is told to stop. `liveness_url` is where kopf answers the kubelet's probe.

    Raises:
        ApiError: the API server does not answer, or lacks what the configuration asks for.
    """
    registry = kopf.OperatorRegistry()
    child_kinds = asyncio.run(_child_kinds(config))
    Operator(config, child_kinds).register(registry)

    @kopf.on.login(registry=registry)
    def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    kopf.run(
        registry=registry,
        settings=framework_settings(child_kinds),
        namespaces=config.namespaces,
        liveness_endpoint=liveness_url,
    )
