"""The operator's process: composes the parts, and connects them to kopf.

kopf watches the UserRealtime resources and runs the process. Its handlers write nothing and never fail; all work is
done by the workers of the queue, with retries of the queue. `on.event` is used because it writes no annotation and no
finalizer. The children of all users are watched by Reflectors, which are lighter and have no task per object.

Several replicas may run. Each of them fills its caches, and the holder of the Lease does the work.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
from collections.abc import Coroutine, Iterator, Mapping
from typing import Any, Final

import kopf

from userrealtime_core.announcer import Announcer, Broadcaster
from userrealtime_core.secret import Secret
from userrealtime_core.trust import reloading

from .config import Config, RouteType
from .kube.client import PAGE, Api, ApiError
from .kube.election import Election
from .kube.lease import Settings
from .kube.login import login
from .kube.reflector import Reflector
from .kube.store import KindStore, ObjectStore
from .kube.types import ResourceType
from .model.labels import owned_labels
from .model.naming import Naming, instance_name
from .model.resource import GROUP, PLURAL, VERSION
from .postgres.database import Database, DatabaseError
from .postgres.roles import Roles
from .postgres.watchdog import Watchdog
from .process.metrics import Metrics
from .process.probes import serve
from .reconcile.feed import Feed
from .reconcile.reconciler import Reconciler
from .reconcile.resources import Place, Resources
from .reconcile.tasks import Tasks
from .reconcile.triggers import Task
from .reconcile.userrealtimes import resource_uids
from .reconcile.workqueue import WorkQueue
from .sleep.activator_endpoints import Activators

logger = logging.getLogger(__name__)

WORKERS: Final = 8
SPARE_CONNECTIONS: Final = 8
SYNC_INTERVAL_S: Final = 0.1
SYNC_TIMEOUT_S: Final = 5.0
"""The interval of the checks whether kopf has reported all resources, and when the API server is asked again."""
EXPIRE_INTERVAL_S: Final = 5.0
CRD_INTERVAL_S: Final = 1.0
REFUSED: Final = (403, 404)
"""The statuses of a namespace without permissions, and of a kind that the cluster does not have."""

ChildKinds = Mapping[str, ResourceType]
"""The kinds of children that this cluster supports."""


class Operator:
    """Composes and runs the parts of the operator between kopf's startup and cleanup.

    `stopped` is set when a part has failed; the process then ends.

    Args:
        lease: the namespace and name of the Lease to hold while working. Without one, this is the only replica.
        port: the port of `/health`, `/ready` and `/metrics`.
    """

    def __init__(self, config: Config, child_kinds: ChildKinds, lease: Place | None, port: int) -> None:
        self._config = config
        self._child_kinds = child_kinds
        self._lease = lease
        self._port = port
        self.stopped = asyncio.Event()
        self._metrics = Metrics()
        self._naming = config.names.naming()
        self._resources = Resources(self._naming)
        self._children = ObjectStore()
        self._queue: WorkQueue[Task] = WorkQueue(self._metrics.wait.observe, self._metrics.retries.inc)
        self._feed = Feed(self._resources, self._children, self._queue)
        self._reflectors: dict[str, list[Reflector]] = {}
        """The watches of the children, by namespace."""
        self._stack = contextlib.AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []

    def register(self, registry: kopf.OperatorRegistry) -> None:
        """Register the handlers of kopf."""
        kopf.on.startup(registry=registry)(self.startup)
        kopf.on.cleanup(registry=registry)(self.cleanup)
        kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)(self.resource_event)
        kopf.on.login(registry=registry)(login)

    async def resource_event(self, *, event: kopf.RawEvent, **_: Any) -> None:
        """Handle an event of the watch of resources."""
        self._feed.resource_event(event["type"], event["object"])

    async def startup(self, **_: Any) -> None:
        """Connect the parts and start them.

        Raises:
            ApiError: there is neither a service account nor a usable kubeconfig.
            OSError: the port is not available.
        """
        enter = self._stack.enter_async_context
        await enter(serve("", self._port, self._expose, self._not_ready_reason))
        election: Election | None = None
        if self._lease is not None:
            # A separate connection pool: a renewal waits for no other request.
            lease_api = await enter(await Api.connect(self._metrics.request))
            identity = f"{instance_name()}_{secrets.token_hex(4)}"
            election = Election(lease_api, *self._lease, identity, Settings())
        watches = len(self._child_kinds) * len(self._config.namespaces)
        api = await enter(
            await Api.connect(
                self._metrics.request,
                connections=WORKERS + SPARE_CONNECTIONS + watches,
                on_stored=self._feed.stored,
                may_write=election.seconds_to_write if election is not None else None,
            )
        )
        database = await enter(Database(self._config.database_url))
        activators: Activators | None = None
        if self._config.activator is not None:
            activators = Activators(api, self._config.activator, self._feed.activators_changed)
            self._start(activators.run(), "activators")
        await enter(reloading())
        self._start(self._sync(api), "sync")
        leader = Leader(
            self._config,
            self._naming,
            api,
            database,
            activators,
            self._resources,
            self._children,
            self._queue,
            self._feed,
            self._metrics,
        )

        async def lead() -> None:
            await self._identify(api)
            await leader.run()

        self._start(leader.run() if election is None else election.run(lead), "leader")
        logger.info("serving %s in %s", f"{PLURAL}.{GROUP}", ", ".join(self._config.namespaces))

    async def _identify(self, api: Api) -> None:
        """Read the identity of the cluster from the Lease, which this leader has just written or renewed."""
        while self._lease is not None:
            try:
                api.cluster = await api.known_cluster(*self._lease)
                return
            except ApiError as error:
                logger.warning("cannot read the lease, retrying: %s", error)
                await asyncio.sleep(SYNC_INTERVAL_S)

    async def cleanup(self, **_: Any) -> None:
        """Stop all parts, and close the connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stack.aclose()

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._ended)
        self._tasks.append(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.critical("the task %s failed; exiting", task.get_name(), exc_info=error)
            self.stopped.set()

    async def _sync(self, api: Api) -> None:
        """Start the watches of the children, and report when all caches are complete."""
        for namespace in self._config.namespaces:
            self._reflectors[namespace] = [
                Reflector(
                    api,
                    resource_type,
                    namespace,
                    owned_labels(kind),
                    KindStore(self._children, kind, resource_type, namespace, self._feed.child_changed),
                )
                for kind, resource_type in self._child_kinds.items()
            ]
        reflectors = [each for group in self._reflectors.values() for each in group]
        for reflector in reflectors:
            self._start(reflector.run(), "a watch")
        for reflector in reflectors:
            await reflector.wait_until_known()
        for namespace in self._config.namespaces:
            while not await self._has_all_resources(api, namespace):
                pass
        self._feed.mark_synced()

    async def _has_all_resources(self, api: Api, namespace: str) -> bool:
        """Return whether kopf reports all existing resources of a namespace within `SYNC_TIMEOUT_S`."""
        try:
            existing = await resource_uids(api, namespace)
        except ApiError as error:
            logger.warning("cannot list the resources in %s, retrying: %s", namespace, error)
            if error.status in REFUSED:  # the other namespaces are served
                return True
            await asyncio.sleep(SYNC_TIMEOUT_S)
            return False
        for _ in range(round(SYNC_TIMEOUT_S / SYNC_INTERVAL_S)):
            if existing <= self._resources.uids(namespace).keys():
                return True
            await asyncio.sleep(SYNC_INTERVAL_S)
        return False

    def _not_ready_reason(self) -> str | None:
        return None if self._feed.has_synced else "the caches are not synchronized yet"

    def _expose(self) -> bytes:
        self._metrics.depth.set(len(self._queue))
        self._metrics.count_resources(self._resources.conditions())
        for namespace in self._config.namespaces:
            reflectors = self._reflectors.get(namespace)
            available = reflectors is not None and all(each.has_synced and not each.refused for each in reflectors)
            self._metrics.namespaces.labels(namespace).set(available)
        return self._metrics.expose()


class Leader:
    """The work of the replica that leads."""

    def __init__(
        self,
        config: Config,
        naming: Naming,
        api: Api,
        database: Database,
        activators: Activators | None,
        resources: Resources,
        children: ObjectStore,
        queue: WorkQueue[Task],
        feed: Feed,
        metrics: Metrics,
    ) -> None:
        self._config = config
        self._naming = naming
        self._api = api
        self._database = database
        self._activators = activators
        self._resources = resources
        self._children = children
        self._queue = queue
        self._feed = feed
        self._metrics = metrics

    async def run(self) -> None:
        """Work until cancelled.

        Each term has a new Reconciler: what an earlier term knew of the database and of rollouts may be outdated.
        """
        reconciler = Reconciler(
            self._config,
            self._naming,
            self._api,
            self._database,
            self._resources,
            self._children,
            self._feed.requeue,
            self._metrics,
            roles=Roles(self._database),
            activators=self._activators,
        )
        scopes = [self._api.scope(namespace) for namespace in self._config.namespaces]
        tasks = Tasks(
            *(reconciler, self._resources, self._database, self._config.log, scopes),
            *(self._feed.requeue, self._metrics),
        )
        url = Secret(self._config.database_url)
        self._metrics.leader.set(1)
        try:
            await self._feed.wait_for_sync()
            reconciler.resume_rollouts(body for place in self._resources if (body := self._resources.get(place)))
            self._feed.lead(self._config.namespaces, sleep=self._activators is not None)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._queue.run(tasks.run, WORKERS))
                group.create_task(self._expire_roles(scopes))
                group.create_task(Watchdog(url, self._metrics).run())
                # With a broker, the bridge announces.
                if not self._config.signals.type.broker:
                    group.create_task(Announcer(url, "userrealtime-announcer", self._metrics.announcer).run())
                    group.create_task(Broadcaster(url, "userrealtime-broadcaster", self._metrics.broadcasts).run())
        finally:
            self._metrics.leader.set(0)

    async def _expire_roles(self, scopes: list[str]) -> None:
        """Revoke retired roles of pods soon after their time has ended."""
        roles = Roles(self._database)
        while True:
            try:
                await roles.expire(scopes)
            except DatabaseError as error:
                self._metrics.database_failures.inc()
                logger.warning("cannot revoke retired database roles, retrying: %s", error)
            await asyncio.sleep(EXPIRE_INTERVAL_S)


def framework_settings() -> kopf.OperatorSettings:
    """Return the settings of kopf. A comment gives the reason for each."""
    settings = kopf.OperatorSettings()
    # Replicas elect a leader with a Lease: kopf's peering with equal priorities would stop both.
    settings.peering.standalone = True
    # Namespaces and CRDs are known in advance, so no permission to list them in the whole cluster is needed.
    settings.scanning.disabled = True
    # The operator writes its Events explicitly, and none from log lines.
    settings.posting.enabled = False
    # kopf has a worker for each object. It ends soon, because it only adds a key to the queue.
    settings.queueing.idle_timeout = 0.02
    # A list of thousands of resources is read in pages, because it does not fit into one response or into memory.
    settings.watching.chunk_size = PAGE
    # This ends a watch whose server has died without closing the connection.
    settings.watching.server_timeout = 240
    settings.watching.connect_timeout = 10
    # A namespace that is deleted, or where permissions are missing, must not end the process, which serves others.
    settings.networking.error_backoffs = _Backoffs()
    return settings


async def _child_kinds(config: Config) -> ChildKinds:
    async with await Api.connect() as api:
        kinds = await api.child_kinds()
    if config.route.type is RouteType.HTTP_ROUTE and "HTTPRoute" not in kinds:
        raise ApiError(404, "route.type is HTTPRoute, but this cluster has no Gateway API: install it (v1)")
    return kinds


class _Backoffs:
    """The seconds between the attempts of a request. The number of attempts is not limited."""

    def __iter__(self) -> Iterator[float]:
        return itertools.chain((1.0, 1.0, 2.0, 3.0), itertools.repeat(5.0))


async def _wait_for_crd(port: int) -> None:
    """Return when the cluster has the CRD. kopf checks for it only once, at its start.

    Meanwhile, the process reports that it is alive and not ready.
    """
    metrics = Metrics()
    problem = f"the CRD {PLURAL}.{GROUP} is not installed"
    is_logged = False
    async with contextlib.AsyncExitStack() as stack:
        api = await stack.enter_async_context(await Api.connect())
        while not await api.has_kind(f"{GROUP}/{VERSION}", PLURAL):
            if not is_logged:
                is_logged = True
                logger.warning("%s: waiting for it", problem)
                await stack.enter_async_context(serve("", port, metrics.expose, lambda: problem))
            await asyncio.sleep(CRD_INTERVAL_S)


def run(config: Config, lease: Place | None, port: int) -> int:
    """Run the operator until a signal stops it; return the exit status.

    Args:
        lease: see `Operator`.
        port: see `Operator`.

    Raises:
        ApiError: the API server does not answer, or lacks what the configuration needs.
    """
    registry = kopf.OperatorRegistry()
    asyncio.run(_wait_for_crd(port))
    operator = Operator(config, asyncio.run(_child_kinds(config)), lease, port)
    operator.register(registry)
    kopf.run(
        registry=registry,
        settings=framework_settings(),
        namespaces=config.namespaces,
        stop_flag=operator.stopped,
    )
    return 1 if operator.stopped.is_set() else 0
