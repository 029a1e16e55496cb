"""What kopf sees: watches that feed the caches and the work queue, and every framework setting with its reason.

Handlers write nothing and never fail; all work is done by the queue's workers, with retries of our own. `on.event` is
used since it leaves no annotation and no finalizer on anybody's objects.

Several replicas may run: each fills its caches and its queue, and the one that holds the Lease works (`election`).
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import secrets
import time
from collections.abc import Coroutine, Iterator, Mapping
from typing import Any, NamedTuple

import kopf

from .activators import Activators
from .api import Api, ApiError
from .asleep import wake_pending
from .config import Config, RouteType
from .database import Database, DatabaseError
from .desired import owned_labels
from .election import Election
from .endpoints import serve
from .lease import Settings
from .metrics import Metrics
from .naming import child_name, child_of, instance_name
from .reconcile import ChildKey, Reconciler
from .resource import GROUP, PLURAL, VERSION
from .retention import prune
from .roles import Roles
from .rollouts import User
from .status import condition_of
from .workqueue import WorkQueue

logger = logging.getLogger(__name__)

WORKERS = 8
WARM_INTERVAL_S = 1.0
IDLE_INTERVAL_S = 15.0
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
    IDLE = "idle"
    """Find the users of a namespace who may sleep."""
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
    """The running operator: caches, queue, and the tasks that work on it.

    `lease` is the namespace and name of the Lease to hold while working; without one, this is the only operator.
    `stopped` is set when it cannot go on.
    """

    def __init__(self, config: Config, child_kinds: ChildKinds, lease: Place | None, port: int) -> None:
        self._config = config
        self._child_kinds = child_kinds
        self._lease = lease
        self._port = port
        self.stopped = asyncio.Event()
        self._resources: kopf.Index[Place, Mapping[str, Any]]
        self._owners: kopf.Index[Place, str]
        self._children: kopf.Index[ChildKey, Mapping[str, Any]]
        self._stack = contextlib.AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []
        self._metrics = Metrics()
        self._queue: WorkQueue[Task] = WorkQueue(self._work, self._metrics.wait.observe, self._metrics.retries.inc)
        self._api: Api
        self._database: Database
        self._activators: Activators | None = None
        self._reconciler: Reconciler
        self._scopes: list[str]
        self._caches_are_full = False
        self._is_warm = False

    def register(self, registry: kopf.OperatorRegistry) -> None:
        """Tell kopf what to watch."""
        resource = (GROUP, VERSION, PLURAL)
        kopf.on.startup(registry=registry)(self._startup)
        kopf.on.cleanup(registry=registry)(self._cleanup)
        kopf.index(*resource, id="resources", registry=registry)(self._index_resource)
        kopf.index(*resource, id="owners", registry=registry)(self._index_owner)
        kopf.on.event(*resource, registry=registry)(self._resource_changed)
        for kind, (api_version, plural) in self._child_kinds.items():
            group, _, version = api_version.rpartition("/")
            labels = owned_labels(kind)
            kopf.index(group, version, plural, id="children", labels=labels, registry=registry)(self._index_child)
            kopf.on.event(group, version, plural, labels=labels, registry=registry)(self._child_changed)

    async def _startup(self, **kwargs: Any) -> None:
        self._resources, self._owners, self._children = kwargs["resources"], kwargs["owners"], kwargs["children"]
        self._api = await self._stack.enter_async_context(await Api.connect(self._metrics.request))
        self._database = await self._stack.enter_async_context(Database(self._config.database_url))
        self._scopes = [self._api.scope(namespace) for namespace in self._config.namespaces]
        if self._config.activator is not None:
            self._activators = Activators(self._api, self._config.activator, self._activators_changed)
            self._start(self._activators.run(), "activators")
        self._reconciler = self._new_reconciler()
        probes = {"/readyz": lambda: None if self._is_warm else "the caches are not full yet"}
        await self._stack.enter_async_context(serve("0.0.0.0", self._port, self._expose, probes))  # noqa: S104
        self._start(self._warm(), "warm")
        if self._lease is None:
            self._start(self._lead(), "workers")
        else:
            # Connections of its own: a renewal waits for no other request.
            api = await self._stack.enter_async_context(await Api.connect(self._metrics.request))
            me = f"{instance_name()}_{secrets.token_hex(4)}"
            election = Election(api, *self._lease, me, self._lead, Settings())
            self._api.seconds_to_write = election.seconds_to_write
            self._start(election.run(), "election")
        logger.info("serving %s in %s", f"{PLURAL}.{GROUP}", ", ".join(self._config.namespaces))

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._ended)
        self._tasks.append(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.critical("%s failed, which ends this process", task.get_name(), exc_info=error)
            self.stopped.set()

    async def _cleanup(self, **_: Any) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stack.aclose()

    async def _warm(self) -> None:
        """Notice when the caches are full: at the first event, or when there is nothing to make one."""
        while not self._caches_are_full:
            try:
                if not any([await self._api.has_resources(namespace) for namespace in self._config.namespaces]):
                    break
            except ApiError as error:
                logger.warning("not ready yet: %s", error)
            await asyncio.sleep(WARM_INTERVAL_S)
        self._is_warm = True

    async def _lead(self) -> None:
        """Work until cancelled. What an earlier term knew of the database and of rollouts is forgotten."""
        self._reconciler = self._new_reconciler()
        for namespace in self._config.namespaces:
            self._queue.add(Task(Kind.SWEEP, namespace))
            if self._activators is not None:
                self._queue.add(Task(Kind.IDLE, namespace))
        self._queue.add(Task(Kind.PRUNE))
        if self._caches_are_full:
            self._resume_rollouts()
            for namespace, name in self._resources:
                self._add(namespace, name)
        self._metrics.leader.set(1)
        try:
            await self._queue.run(WORKERS)
        finally:
            self._metrics.leader.set(0)

    def _new_reconciler(self) -> Reconciler:
        return Reconciler(
            self._config,
            self._api,
            self._database,
            self._resource,
            self._child,
            self._wake,
            self._metrics,
            roles=Roles(self._database),
            activators=self._activators,
        )

    def _resume_rollouts(self) -> None:
        self._reconciler.resume_rollouts(body for bodies in self._resources.values() for body in bodies)

    def _expose(self) -> bytes:
        self._metrics.depth.set(len(self._queue))
        self._metrics.count_resources(self._conditions())
        return self._metrics.expose()

    def _conditions(self) -> Iterator[tuple[str, str]]:
        for place in self._resources:
            for body in self._resources.get(place, ()):
                for condition in body.get("status", {}).get("conditions", ()):
                    yield condition["type"], condition["status"]

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
        self._add(*user)

    def _add(self, namespace: str, name: str) -> None:
        """Have a user reconciled; one whom somebody waits for, before the others."""
        body = self._resource(namespace, name)
        urgent = False
        if body is not None:
            deployment = self._child(ChildKey("Deployment", namespace, child_name(body["spec"]["userId"])))
            urgent = wake_pending(body, deployment)
        self._queue.add(Task(Kind.RESOURCE, namespace, name), urgent=urgent)

    def _is_registered(self, namespace: str, name: str) -> bool:
        resource = self._resource(namespace, name)
        return resource is None or self._reconciler.is_registered(resource["metadata"]["uid"])

    # The triggers.

    def _note_full_caches(self) -> None:
        if not self._caches_are_full:
            self._caches_are_full = True
            self._resume_rollouts()

    async def _resource_changed(self, *, namespace: str | None, name: str, event: kopf.RawEvent, **_: Any) -> None:
        assert namespace is not None  # noqa: S101  (the CRD is namespaced)
        self._note_full_caches()
        if event["type"] == "DELETED":
            self._queue.add(Task(Kind.SWEEP, namespace))
        else:
            self._add(namespace, name)

    async def _child_changed(self, *, namespace: str | None, name: str, body: kopf.Body, **_: Any) -> None:
        assert namespace is not None  # noqa: S101  (all kinds of children are namespaced)
        self._note_full_caches()
        name = child_of(body["kind"], name)
        # By name, not by owner reference: that one may be what somebody has just removed.
        owners = self._owners.get((namespace, name), ())
        for resource in owners:
            self._add(namespace, resource)
        if not owners:
            self._queue.add(Task(Kind.ORPHAN, namespace, name))

    def _activators_changed(self) -> None:
        """Those whose connections go to the activators, and those who cannot sleep for want of one."""
        for key in self._children:
            if key.kind == "EndpointSlice":
                for name in self._owners.get((key.namespace, child_of(key.kind, key.name)), ()):
                    self._add(key.namespace, name)
        for (namespace, name), bodies in self._resources.items():
            for body in bodies:
                condition = condition_of(body.get("status", {}), "Asleep")
                if condition is not None and condition["reason"] == "ActivatorUnavailable":
                    self._add(namespace, name)

    # The work.

    async def _work(self, task: Task) -> float | None:
        started, result = time.perf_counter(), "error"
        try:
            look_again = await self._do(task)
            result = "success"
        except DatabaseError:
            self._metrics.database_failures.inc()
            raise
        finally:
            self._metrics.reconciles.labels(task.kind, result).inc()
            self._metrics.duration.labels(task.kind).observe(time.perf_counter() - started)
        return look_again

    async def _do(self, task: Task) -> float | None:
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
            case Kind.IDLE:
                bodies = (self._resource(*place) for place in list(self._resources) if place[0] == task.namespace)
                await self._reconciler.find_idle(task.namespace, [body for body in bodies if body is not None])
                return IDLE_INTERVAL_S
            case Kind.ORPHAN:
                if not self._owners.get((task.namespace, task.name)):
                    await self._reconciler.remove_orphans(task.namespace, task.name)
                return None


def framework_settings(child_kinds: ChildKinds) -> kopf.OperatorSettings:
    """Every setting of kopf that is not its default, each with its reason."""
    settings = kopf.OperatorSettings()
    for kind, (api_version, plural) in child_kinds.items():
        group, _separator, version = api_version.rpartition("/")
        selector = ",".join(f"{key}={value}" for key, value in owned_labels(kind).items())
        # Other people's Secrets are none of our business: they do not leave the API server.
        settings.watching.label_selectors[group, version, plural] = selector
    # Replicas agree by a Lease of our own: peering with equal priorities would freeze both.
    settings.peering.standalone = True
    # Namespaces and CRDs are known beforehand, so that no right to list those of the cluster is needed.
    settings.scanning.disabled = True
    # Our own Events, where there are any, are written on purpose, not made from log lines.
    settings.posting.enabled = False
    # No limit on kopf's workers, one an object: at a start each waits until all objects are indexed, so that with a
    # limit and more objects than that, no start would ever end.
    settings.queueing.worker_limit = None
    # They end soon, as they only add a key to our queue.
    settings.queueing.idle_timeout = 0.02
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


def run(config: Config, liveness_url: str, lease: Place | None, port: int) -> int:
    """Run the operator until it is told to stop; the exit status.

    `liveness_url` is where kopf answers the kubelet's probe, `port` where `/metrics` and `/readyz` are. `lease`: see
    `Operator`.

    Raises:
        ApiError: the API server does not answer, or lacks what the configuration asks for.
    """
    registry = kopf.OperatorRegistry()
    child_kinds = asyncio.run(_child_kinds(config))
    operator = Operator(config, child_kinds, lease, port)
    operator.register(registry)

    @kopf.on.login(registry=registry)
    def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    kopf.run(
        registry=registry,
        settings=framework_settings(child_kinds),
        namespaces=config.namespaces,
        liveness_endpoint=liveness_url,
        stop_flag=operator.stopped,
    )
    return 1 if operator.stopped.is_set() else 0
