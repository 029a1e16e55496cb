"""What kopf sees: a watch that feeds the cache and the work queue, and every framework setting with its reason.

Handlers write nothing and never fail; all work is done by the queue's workers, with retries of our own. `on.event` is
used since it leaves no annotation and no finalizer on anybody's objects. kopf watches the resources; their children,
of which there are many more and of which only the news count, have a lighter watch (`watching`).

Several replicas may run: each fills its caches, and the one that holds the Lease works (`election`).
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import secrets
import time
from collections.abc import Coroutine, Mapping
from typing import Any, NamedTuple

import kopf

from userrealtime_core.announcer import Announcer
from userrealtime_core.secret import Secret

from .config import Config, RouteType
from .kube.client import PAGE, Api, ApiError
from .kube.election import Election
from .kube.lease import Settings
from .kube.login import login
from .kube.reflector import Reflector
from .kube.store import KindStore, ObjectStore
from .kube.types import NamespacedName, Object, ObjectKey, ResourceType
from .model.conditions import condition_of
from .model.labels import owned_labels
from .model.naming import child_name, child_of, instance_name
from .model.resource import GROUP, KIND, PLURAL, VERSION
from .postgres.database import Database, DatabaseError
from .postgres.retention import prune
from .postgres.roles import Roles
from .postgres.watchdog import Watchdog
from .process.metrics import Metrics
from .process.probes import serve
from .reconcile.reconciler import Reconciler
from .reconcile.resources import Place, Resources
from .reconcile.userrealtimes import resource_uids
from .reconcile.workqueue import WorkQueue
from .sleep.activator_endpoints import Activators
from .sleep.state import wake_pending

logger = logging.getLogger(__name__)

WORKERS = 8
SPARE_CONNECTIONS = 8
# How often what is in the cache is looked at, and the API server asked again, until all resources are there.
WARM_INTERVAL_S = 0.1
WARM_PATIENCE_S = 5.0
IDLE_INTERVAL_S = 15.0
SWEEP_INTERVAL_S = 300.0
PRUNE_INTERVAL_S = 60.0
EXPIRE_INTERVAL_S = 5.0
ChildKinds = Mapping[str, ResourceType]
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
        self._resources = Resources()
        self._children = ObjectStore()
        self._full = asyncio.Event()
        """Set once the caches hold all there is. Before, resources would seem to have no children."""
        self._stack = contextlib.AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []
        self._metrics = Metrics()
        self._queue: WorkQueue[Task] = WorkQueue(self._work, self._metrics.wait.observe, self._metrics.retries.inc)
        self._api: Api
        self._database: Database
        self._activators: Activators | None = None
        self._reconciler: Reconciler
        self._scopes: list[str]

    def register(self, registry: kopf.OperatorRegistry) -> None:
        """Tell kopf what to watch."""
        kopf.on.startup(registry=registry)(self._startup)
        kopf.on.cleanup(registry=registry)(self._cleanup)
        kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)(self._resource_changed)

    async def _startup(self, **_: Any) -> None:
        watches = len(self._child_kinds) * len(self._config.namespaces)
        api = await Api.connect(self._metrics.request, connections=WORKERS + SPARE_CONNECTIONS + watches)
        self._api = await self._stack.enter_async_context(api)
        self._api.stored = self._note_stored
        self._database = await self._stack.enter_async_context(Database(self._config.database_url))
        self._scopes = [self._api.scope(namespace) for namespace in self._config.namespaces]
        if self._config.activator is not None:
            self._activators = Activators(self._api, self._config.activator, self._activators_changed)
            self._start(self._activators.run(), "activators")
        self._reconciler = self._new_reconciler()
        probes = {"/readyz": lambda: None if self._full.is_set() else "the caches are not synchronized yet"}
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
            logger.critical("the task %s failed; exiting", task.get_name(), exc_info=error)
            self.stopped.set()

    async def _cleanup(self, **_: Any) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stack.aclose()

    async def _warm(self) -> None:
        """Watch the children, and notice when the caches are full."""
        reflectors = [
            Reflector(
                self._api,
                resource_type,
                namespace,
                owned_labels(kind),
                KindStore(self._children, kind, resource_type, namespace, self._child_changed),
            )
            for kind, resource_type in self._child_kinds.items()
            for namespace in self._config.namespaces
        ]
        for reflector in reflectors:
            self._start(reflector.run(), "a watch")
        for reflector in reflectors:
            await reflector.wait_for_sync()
        for namespace in self._config.namespaces:
            while not await self._has_all_resources(namespace):
                pass
        self._full.set()

    async def _has_all_resources(self, namespace: str) -> bool:
        """Whether kopf has told of all there are, or does so soon."""
        try:
            existing = await resource_uids(self._api, namespace)
        except ApiError as error:
            logger.warning("not ready, retrying: %s", error)
            existing = None
        for _ in range(round(WARM_PATIENCE_S / WARM_INTERVAL_S)):
            if existing is not None and existing <= self._resources.uids(namespace).keys():
                return True
            await asyncio.sleep(WARM_INTERVAL_S)
        return False

    async def _lead(self) -> None:
        """Work until cancelled. What an earlier term knew of the database and of rollouts is forgotten."""
        self._reconciler = self._new_reconciler()
        self._metrics.leader.set(1)
        try:
            await self._full.wait()
            self._reconciler.resume_rollouts(body for place in self._resources if (body := self._resources.get(place)))
            for namespace in self._config.namespaces:
                self._queue.add(Task(Kind.SWEEP, namespace))
                if self._activators is not None:
                    self._queue.add(Task(Kind.IDLE, namespace))
            self._queue.add(Task(Kind.PRUNE))
            for namespace, name in self._resources:
                self._add(namespace, name)
            for kind, namespace, name in self._children:
                if not self._resources.owners(namespace, child_of(kind, name)):
                    self._queue.add(Task(Kind.ORPHAN, namespace, child_of(kind, name)))
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._queue.run(WORKERS))
                tasks.create_task(self._expire_roles())
                tasks.create_task(Watchdog(Secret(self._config.database_url), self._metrics).run())
                # With a broker, the bridge announces.
                if not self._config.signals.type.broker:
                    url = Secret(self._config.database_url)
                    tasks.create_task(Announcer(url, "userrealtime-announcer", self._metrics.announcer).run())
        finally:
            self._metrics.leader.set(0)

    async def _expire_roles(self) -> None:
        """Revoke retired roles of pods soon after their time is over."""
        roles = Roles(self._database)
        while True:
            try:
                await roles.expire(self._scopes)
            except DatabaseError as error:
                self._metrics.database_failures.inc()
                logger.warning("cannot revoke retired database roles, retrying: %s", error)
            await asyncio.sleep(EXPIRE_INTERVAL_S)

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

    def _expose(self) -> bytes:
        self._metrics.depth.set(len(self._queue))
        self._metrics.count_resources(self._resources.conditions())
        return self._metrics.expose()

    # The caches.

    def _resource(self, namespace: str, name: str) -> Mapping[str, Any] | None:
        return self._resources.get((namespace, name))

    def _child(self, key: ObjectKey) -> Mapping[str, Any] | None:
        return self._children.get(key)

    def _note_stored(self, item: Object) -> None:
        """What we have written is known at once, and so is no news when the watch tells of it."""
        kind, namespace, name = item["kind"], item["metadata"]["namespace"], item["metadata"]["name"]
        if kind == KIND:
            if self._resources.put(item, ours=True):
                self._add(namespace, name)  # somebody else has changed it meanwhile
        elif self._children.put(ObjectKey(kind, namespace, name), item, ours=True) and kind == "EndpointSlice":
            # Who falls asleep or wakes has steps to take from when the slice is there.
            self._child_changed(ObjectKey(kind, namespace, name))

    def _wake(self, user: NamespacedName) -> None:
        self._add(*user)

    def _add(self, namespace: str, name: str) -> None:
        """Have a user reconciled; one whom somebody waits for, before the others."""
        body = self._resource(namespace, name)
        urgent = False
        if body is not None:
            deployment = self._child(ObjectKey("Deployment", namespace, child_name(body["spec"]["userId"])))
            urgent = wake_pending(body, deployment)
        self._queue.add(Task(Kind.RESOURCE, namespace, name), urgent=urgent)

    # The triggers.

    async def _resource_changed(self, *, namespace: str | None, name: str, event: kopf.RawEvent, **_: Any) -> None:
        assert namespace is not None  # noqa: S101  (the CRD is namespaced)
        item = event["object"]
        if event["type"] == "DELETED":
            self._resources.remove(namespace, name, item["metadata"]["uid"])
            self._queue.add(Task(Kind.SWEEP, namespace))
        elif self._resources.put(item, listed=event["type"] is None) and self._full.is_set():
            self._add(namespace, name)

    def _child_changed(self, key: ObjectKey) -> None:
        if not self._full.is_set():
            return  # whoever leads begins with all of them
        namespace, name = key.namespace, child_of(key.kind, key.name)
        # By name, not by owner reference: that one may be what somebody has just removed.
        owners = self._resources.owners(namespace, name)
        for resource in owners:
            self._add(namespace, resource)
        if not owners:
            self._queue.add(Task(Kind.ORPHAN, namespace, name))

    def _activators_changed(self) -> None:
        """Those whose connections go to the activators, and those who cannot sleep for want of one."""
        for kind, namespace, child in self._children:
            if kind == "EndpointSlice":
                for name in self._resources.owners(namespace, child_of(kind, child)):
                    self._add(namespace, name)
        for namespace, name in self._resources:
            body = self._resource(namespace, name) or {}
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
                known = self._resources.uids(task.namespace)
                existing = await self._reconciler.sweep(task.namespace)
                for uid, name in known.items():
                    if uid not in existing:  # a watch that began anew does not tell of what went meanwhile
                        self._resources.remove(task.namespace, name, uid)
                    elif not self._reconciler.is_registered(uid):
                        self._queue.add(Task(Kind.RESOURCE, task.namespace, name))
                return SWEEP_INTERVAL_S
            case Kind.PRUNE:
                events, messages = await prune(self._database, self._config.log.retention, self._scopes)
                if events or messages:
                    logger.info("removed %d events and %d messages (log.retention)", events, messages)
                return PRUNE_INTERVAL_S
            case Kind.IDLE:
                bodies = (self._resource(*place) for place in list(self._resources) if place[0] == task.namespace)
                # One after the other: all of them at once would be most of the memory.
                await self._reconciler.find_idle(task.namespace, (body for body in bodies if body is not None))
                return IDLE_INTERVAL_S
            case Kind.ORPHAN:
                if not self._resources.owners(task.namespace, task.name):
                    await self._reconciler.remove_orphans(task.namespace, task.name)
                return None


def framework_settings() -> kopf.OperatorSettings:
    """Every setting of kopf that is not its default, each with its reason."""
    settings = kopf.OperatorSettings()
    # Replicas agree by a Lease of our own: peering with equal priorities would freeze both.
    settings.peering.standalone = True
    # Namespaces and CRDs are known beforehand, so that no right to list those of the cluster is needed.
    settings.scanning.disabled = True
    # Our own Events, where there are any, are written on purpose, not made from log lines.
    settings.posting.enabled = False
    # kopf has a worker for each object; they end soon, as they only add a key to our queue.
    settings.queueing.idle_timeout = 0.02
    # Thousands of resources are not all in one answer, nor all at once in memory.
    settings.watching.chunk_size = PAGE
    # A watch whose server died silently ends by itself.
    settings.watching.server_timeout = 240
    settings.watching.connect_timeout = 10
    return settings


async def _child_kinds(config: Config) -> ChildKinds:
    async with await Api.connect() as api:
        kinds = await api.child_kinds()
    if config.route.type is RouteType.HTTP_ROUTE and "HTTPRoute" not in kinds:
        raise ApiError(404, "route.type is HTTPRoute, but this cluster has no Gateway API: install it (v1)")
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

    kopf.on.login(registry=registry)(login)

    kopf.run(
        registry=registry,
        settings=framework_settings(),
        namespaces=config.namespaces,
        liveness_endpoint=liveness_url,
        stop_flag=operator.stopped,
    )
    return 1 if operator.stopped.is_set() else 0
