"""Brings the objects of one user to the state that the resource describes.

Level-triggered: only the current state counts, not the event that led here. The state is compared with the caches of
the watches; requests are sent only for changes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Protocol, TypeVar

from userrealtime_operator.config import Config
from userrealtime_operator.kube.client import CHILD_KINDS, Api, ApiError
from userrealtime_operator.kube.types import NamespacedName, Object, ObjectKey
from userrealtime_operator.manifests.children import APPLIED_DIGEST, desired_objects
from userrealtime_operator.manifests.route import route_of
from userrealtime_operator.manifests.secrets import SERIES_DIGEST, Secrets
from userrealtime_operator.model.conditions import ConditionResult, deployment_progress, deployment_ready, true_since
from userrealtime_operator.model.errors import ResourceError, RouteConflict, ServedElsewhere
from userrealtime_operator.model.naming import CREDENTIALS, SECRET, Naming, kind_of, object_name, part_of
from userrealtime_operator.model.notifiers import Listeners, SignalError
from userrealtime_operator.model.resource import KIND, ResourceIdentity, UserRealtime, parse_identity, parse_resource
from userrealtime_operator.model.routes import Route
from userrealtime_operator.model.tenancy import HostNotAllowed, ImageNotAllowed, check_image
from userrealtime_operator.postgres.database import Database
from userrealtime_operator.postgres.roles import Roles
from userrealtime_operator.process.metrics import Metrics
from userrealtime_operator.secrets.database_passwords import Access
from userrealtime_operator.sleep.activator_endpoints import Activators
from userrealtime_operator.sleep.controller import Plan, SleepController
from userrealtime_operator.sleep.machine import State
from userrealtime_operator.sleep.state import asleep

from .children import ChildWriter, Live, check_owner, drift, is_applied, is_up_to_date, owner_uid
from .contests import Contests
from .observed import Observed
from .pods import pod_trouble
from .registrations import RegistrationSweeper
from .rollouts import Rollouts
from .route_claims import Rank, RouteClaims
from .secrets import Kept, SecretKeeper
from .status_writer import Outcome, StatusWriter

logger = logging.getLogger(__name__)

Key = TypeVar("Key", contravariant=True)

DATABASE_RETRY_S = 15.0
# The interval at which a user is checked again that another namespace serves.
ELSEWHERE_RETRY_S = 60.0
# The shortest and the longest interval at which a pod that is not ready is checked for the reason, and its database
# password is tested.
PODS_FIRST_S = 3.0
PODS_LAST_S = 120.0
# For how long a rollout counts if something else modifies the Deployment, or prevents that it is applied: the pods may
# never become available, although the relay has no fault.
FOREIGN_ROLLOUT_S = 600.0
# Idle users are put to sleep one after the other, with the longest pause and the longest time for all of them. On a
# node, the removal of a pod's network delays the start of another pod.
SLEEP_PAUSE_S = 1.0
SLEEP_SPREAD_S = 10.0
PARTS: Final = frozenset({*CHILD_KINDS, CREDENTIALS})
"""What the objects of a user are, see `model.naming`."""
REJECTED = (400, 403, 422)
"""The statuses of an object that is rejected for its contents, not for a temporary reason."""


@dataclass(frozen=True, slots=True)
class Applied:
    """The result of applying the objects of a user."""

    kept: Kept
    plan: Plan
    rollout_waits: bool
    """A change of the pod waits for the rollouts of other users."""
    contests: Collection[tuple[str, str]]
    """The fields that something else sets, each with the part that has it."""
    due_s: float | None
    """The seconds until a contested field is due to be repaired."""


def _now() -> datetime:
    return datetime.now(UTC)


class Lister(Protocol[Key]):
    """Reads a cache."""

    def get(self, key: Key) -> Mapping[str, Any] | None:
        """Return an object, None if there is none."""


class Reconciler:
    """Reconciles users, one at a time each.

    Args:
        naming: the names of users' objects.
        resources: the cached resources.
        children: the cached objects of users.
        requeue: adds a user to the queue.
        roles: None with shared credentials.
        activators: None without an activator; no user then sleeps.
    """

    def __init__(
        self,
        config: Config,
        naming: Naming,
        api: Api,
        database: Database,
        resources: Lister[NamespacedName],
        children: Lister[ObjectKey],
        requeue: Callable[[NamespacedName], None],
        metrics: Metrics,
        now: Callable[[], datetime] = _now,
        roles: Roles | None = None,
        activators: Activators | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._naming = naming
        self._api = api
        self._resources = resources
        self._children = children
        self._requeue = requeue
        self._metrics = metrics
        self._now = now
        self._rollouts = Rollouts(config.relay.max_concurrent_rollouts, clock)
        self._contests = Contests(clock)
        self._keeper = SecretKeeper(config, api, roles, now)
        self._registrations = RegistrationSweeper(
            api, database, roles, self._keeper, metrics, clock, shared_users=config.database.shared_users
        )
        self._writer = ChildWriter(api)
        self._claims = RouteClaims()
        seal = config.activator.seal() if config.activator is not None else None
        self._status = StatusWriter(api, metrics, now, seal)
        self._sleep = SleepController(config, naming, api, database, activators, metrics, now, clock)
        self._listeners = Listeners(config.signals.max_listeners)
        metrics.listening.set_function(lambda: len(self._listeners))

    def resume_rollouts(self, resources: Iterable[Mapping[str, Any]]) -> None:
        """Note the rollouts that have begun, the pods that listen, and the URLs of users. To be called once, with all
        resources.

        Otherwise each restart would start as many rollouts again, count few listeners at first, and give the URL of a
        user to the first resource that asks for it.
        """
        for body in resources:
            self._see_listener(body)
            self._resume_route(body)
            namespace, name = body["metadata"]["namespace"], body["metadata"]["name"]
            deployment = self._children.get(self._deployment_key(body))
            if deployment_ready(deployment).true and deployment_progress(deployment).true:
                self._rollouts.resume(NamespacedName(namespace, name))

    async def reconcile(self, namespace: str, name: str) -> float | None:
        """Reconcile one user; return the seconds after which the user is due again, None if no time is set.

        Raises:
            ApiError: the reconciliation is incomplete, and is retried.
        """
        user = NamespacedName(namespace, name)
        body = self._resources.get(user)
        if body is None or body["metadata"].get("deletionTimestamp"):
            self._end_rollout(user)
            self._sleep.forget(user)
            self._contests.forget(user)
            self._listeners.see(user, listens=False)
            self._release_route(user)
            return None  # the garbage collector deletes the children, which are owned
        identity = parse_identity(body, self._naming)
        self._see_listener(body)
        database = _NOT_REGISTERED
        waits: list[float | None] = []
        plan: Plan | None = None
        contests: Collection[tuple[str, str]] = ()
        token_keys: Mapping[str, str] | None = None
        try:
            # Before the registration, which keeps the log of the user.
            live = self._live(identity)
            database = await self._registrations.register(identity)
            resource = parse_resource(body, self._naming)
            check_image(resource.image, self._config.relay.allowed_images)
            route = self._claim_route(resource, body)
            observed = Observed(resource, body, live)
            applied = await self._apply_children(observed, bool(database.true))
            kept, plan, contests = applied.kept, applied.plan, applied.contests
            token_keys = kept.contents.secrets.token_keys.data()
            access = kept.contents.access
            waits += (kept.contents.due_s, plan.recheck_s, applied.due_s)
            database = kept.problem or database
            deployment = self._deployment(resource)
            pod, progress = deployment_ready(deployment), deployment_progress(deployment)
            if plan.asleep is not None:
                # Ready: the next connection is served as soon as the pod has started.
                pod, progress = (
                    ConditionResult(True, plan.state, _WITHOUT_POD[plan.state]),
                    ConditionResult(False, plan.state),
                )
            if applied.rollout_waits:
                progress = ConditionResult(
                    True, "RolloutWaiting", "the new pod waits for other users (relay.maxConcurrentRollouts)"
                )
            elif progress.true:
                pod, progress, pods_due = await self._explained(observed, pod, progress)
                waits.append(pods_due)
                self._continue_rollout(observed, deployment, contests)
            else:
                # Also after a change that replaces no pod, because no further event would end that rollout.
                self._end_rollout(user)
                await self._keeper.settle(resource, access)
            if database.true and pod.reason == "PodNotReady":
                database = await self._registrations.check(database)
            unserved = database.true and not pod.true
            if unserved and access is not None and await self._is_locked_out(observed, access):
                waits.append(0.0)
        except ResourceError as error:
            waits.append(self._abandon_rollout(user, body))
            route, pod = None, ConditionResult(False, error.reason, str(error))
            progress = ConditionResult(False, error.reason)
            await self._withdraw(identity, error)
            if isinstance(error, ServedElsewhere):
                waits.append(ELSEWHERE_RETRY_S)
        except ApiError as error:
            if error.status not in REJECTED:
                raise
            # Report it, and retry later.
            self._abandon_rollout(user, body)
            await self._write_status(identity, body, Outcome(None, _refusal(error), _REFUSED, database, plan))
            raise
        await self._write_status(identity, body, Outcome(route, pod, progress, database, plan, contests, token_keys))
        waits.append(None if database.true or database is _NOT_REGISTERED else DATABASE_RETRY_S)
        return min((wait for wait in waits if wait is not None), default=None)

    async def sweep(self, namespace: str) -> set[str]:
        """See `RegistrationSweeper.sweep`."""
        return await self._registrations.sweep(namespace)

    def is_registered(self, uid: str) -> bool:
        """See `RegistrationSweeper.is_registered`."""
        return self._registrations.is_registered(uid)

    async def remove_orphans(self, namespace: str, name: str) -> None:
        """Delete the objects with this name that have no owner, or whose owner's objects have another name.

        Owned objects are deleted with their owner. The names change with the key of opaque names.

        Raises:
            ApiError: not all of them were deleted.
        """
        for part in PARTS:
            key = ObjectKey(kind_of(part), namespace, object_name(part, name))
            live = self._children.get(key)
            if live is None:
                continue
            if owner_uid(live) is None:
                await self._writer.delete(key, ", which had no owner")
            elif self._is_renamed(live, namespace, name):
                await self._writer.delete(key, ": the objects of its user have another name now (names.opaque)")

    def _is_renamed(self, live: Mapping[str, Any], namespace: str, name: str) -> bool:
        """Return whether the objects of an object's owner have another name than this one."""
        if live["metadata"].get("deletionTimestamp"):
            return False
        uid = owner_uid(live)
        for owner in live["metadata"]["ownerReferences"]:
            if owner["uid"] == uid and owner.get("kind") == KIND:
                body = self._resources.get(NamespacedName(namespace, owner["name"]))
                return body is not None and body["metadata"]["uid"] == uid and self._child_name(body) != name
        return False

    def _child_name(self, body: Mapping[str, Any]) -> str:
        return self._naming.child_name(body["spec"]["userId"])

    def _see_listener(self, body: Mapping[str, Any]) -> bool:
        """Return whether the pod of a resource listens, and count it."""
        user = NamespacedName(body["metadata"]["namespace"], body["metadata"]["name"])
        deployment = self._children.get(self._deployment_key(body))
        awake = deployment is None or deployment["spec"].get("replicas", 1) > 0
        wish = body["spec"].get("relay", {}).get("signal")
        try:
            listens = self._config.signals.of(wish).listens
        except SignalError:
            listens = False
        self._listeners.see(user, listens=listens and awake)
        return listens and awake

    def _end_rollout(self, user: NamespacedName) -> None:
        for next_user in self._rollouts.end(user):
            self._requeue(next_user)

    def _withdraw_rollout(self, user: NamespacedName) -> None:
        for next_user in self._rollouts.withdraw(user):
            self._requeue(next_user)

    def _continue_rollout(self, observed: Observed, deployment: Live, contests: Collection[tuple[str, str]]) -> None:
        """Keep the slot of a rollout whose pods are not available yet, for a limited time if something interferes."""
        paused = deployment is not None and deployment["spec"].get("paused", False)
        foreign = paused or any(kind == "Deployment" for kind, _ in contests)
        if foreign and self._rollouts.active_s(observed.user) >= FOREIGN_ROLLOUT_S:
            self._end_rollout(observed.user)
        else:
            self._withdraw_rollout(observed.user)

    def _abandon_rollout(self, user: NamespacedName, body: Mapping[str, Any]) -> float | None:
        """End the rollout of a user whose objects cannot be applied.

        If pods are being replaced, it goes on for a limited time; return the seconds until then.
        """
        deployment = self._children.get(self._deployment_key(body))
        active_s = self._rollouts.active_s(user)
        if deployment is None or not deployment_progress(deployment).true or active_s >= FOREIGN_ROLLOUT_S:
            self._end_rollout(user)
            return None
        self._withdraw_rollout(user)
        return FOREIGN_ROLLOUT_S - active_s if active_s else None

    async def find_idle(self, namespace: str, resources: Iterable[Mapping[str, Any]]) -> None:
        """Add the users of a namespace to the queue that seem to be idle, one after the other.

        Raises:
            DatabaseError: the idle users cannot be found.
        """
        found = await self._sleep.find_idle(namespace, resources, self._deployment)
        loop, pause_s = asyncio.get_running_loop(), min(SLEEP_PAUSE_S, SLEEP_SPREAD_S / max(1, len(found)))
        for number, user in enumerate(found):
            if number == 0:
                self._requeue(user)
            else:
                loop.call_later(number * pause_s, self._requeue, user)

    def _deployment_key(self, body: Mapping[str, Any]) -> ObjectKey:
        return ObjectKey("Deployment", body["metadata"]["namespace"], self._child_name(body))

    def _deployment(self, resource: UserRealtime) -> Mapping[str, Any] | None:
        return self._children.get(_part_key(resource, "Deployment"))

    def _claim_route(self, resource: UserRealtime, body: Mapping[str, Any]) -> Route | None:
        """Return the route of a user, and note it. Users whose route overlaps the old or the new one are reconciled.

        Raises:
            RouteError, HostNotAllowed: the spec.route of the resource cannot be used.
            RouteConflict: the route overlaps that of a user with precedence.
        """
        user = NamespacedName(resource.namespace, resource.name)
        try:
            route = route_of(resource, self._config)
        except ResourceError:
            self._release_route(user)
            raise
        for other in self._claims.put(user, route, _rank(resource, body)):
            self._requeue(other)
        winner = self._claims.winner(user)
        if winner is None:
            return route
        logger.warning("the URL of %s/%s overlaps that of %s/%s, which has precedence", *user, *winner)
        raise RouteConflict(
            "the URL equals, contains or lies below the URL of another user; change spec.route.url, or include "
            "{namespace} in route.url of the chart's values if several namespaces serve the same user"
        )

    def _resume_route(self, body: Mapping[str, Any]) -> None:
        """Note the route of a user that has one, by its status."""
        if not body.get("status", {}).get("url"):
            return
        try:
            resource = parse_resource(body, self._naming)
            route = route_of(resource, self._config)
        except ResourceError:
            return
        self._claims.put(NamespacedName(resource.namespace, resource.name), route, _rank(resource, body))

    def _release_route(self, user: NamespacedName) -> None:
        for other in self._claims.remove(user):
            self._requeue(other)

    async def _withdraw(self, resource: ResourceIdentity, error: ResourceError) -> None:
        """Delete the objects of a resource that the platform does not allow any more."""
        for kind in _WITHDRAWN.get(type(error), ()):
            key = _part_key(resource, kind)
            live = self._children.get(key)
            if live is not None and owner_uid(live) == resource.uid and not live["metadata"].get("deletionTimestamp"):
                await self._writer.delete(key, f": {error}")

    def _live(self, resource: ResourceIdentity) -> Mapping[str, Live]:
        """Return the objects of a resource, by part.

        Raises:
            Conflict: an object belongs to another resource.
        """
        live = {part: self._children.get(_part_key(resource, part)) for part in PARTS}
        for part, item in live.items():
            check_owner(resource, kind_of(part), item)
        return live

    async def _apply_children(self, observed: Observed, database_available: bool) -> Applied:
        """Apply the objects that differ. A change of the pod may have to wait for other users, except for a first pod,
        a change of the resource itself, and sleep and wake."""
        resource, live = observed.resource, dict(observed.live)
        plan = await self._sleep.plan(resource, observed.body, live)

        def desired(secrets: Secrets) -> tuple[Object, ...]:
            return desired_objects(
                resource, self._config, secrets, plan.asleep, plan.activators if plan.slice else None, plan.ended
            )

        kept = await self._keeper.keep(
            resource,
            live,
            lambda secrets: [item for item in desired(secrets) if item["kind"] == SECRET],
            database_available=database_available,
            rolling_out=bool(deployment_progress(live["Deployment"]).true),
        )
        live |= kept.live
        objects = desired(kept.contents.secrets)
        rollout_waits = False
        contests: set[tuple[str, str]] = set()
        requested = observed.status.get("observedGeneration") != resource.generation
        revoked = _is_of_another_series(live["Deployment"], objects)
        urgent = requested or kept.replaces_password or revoked
        if revoked and plan.asleep is not None and plan.asleep.parked:
            self._sleep.end_parking(observed.user)
            self._requeue(observed.user)
        sleeps = plan.asleep is not None or asleep(live["Deployment"]) is not None
        for item in objects:
            part = part_of(item["kind"], item["metadata"]["name"])
            found = live[part]
            if is_up_to_date(found, item):
                continue
            digest, fields = item["metadata"]["annotations"][APPLIED_DIGEST], drift(found, item)
            if found is not None and self._contests.accepts(observed.user, part, digest, fields):
                contests |= {(part, field) for field in fields}
                continue
            if part == "Deployment" and found is not None and not urgent and not sleeps:
                rollout_waits = not self._rollouts.begin(observed.user)
                if rollout_waits:
                    continue
            stored = drift(await self._writer.write(found, item), item)
            contests |= {(part, field) for field in stored}
            changed = fields if is_applied(found, digest) else frozenset[str]()
            self._contests.applied(observed.user, part, digest, changed, stored)
        if database_available and kept.problem is None:
            self._keeper.written(resource)
        unwanted = PARTS - {part_of(item["kind"], item["metadata"]["name"]) for item in objects}
        for part in unwanted - ({"EndpointSlice"} if plan.slice else set()):
            if live[part] is not None:
                await self._writer.delete(_part_key(resource, part))
        waits = (self._contests.remaining_s(observed.user, part) for part, _ in contests)
        due_s = min((wait for wait in waits if wait is not None), default=None)
        return Applied(kept, plan, rollout_waits, contests, due_s)

    async def _explained(
        self, observed: Observed, pod: ConditionResult, progress: ConditionResult
    ) -> tuple[ConditionResult, ConditionResult, float]:
        """Return why a pod is not ready yet, and the seconds until the next check.

        The first check is soon, and then they become rare. Pods are not watched: nearly all of them become ready soon.
        """
        resource, age = observed.resource, self._progressing_s(observed)
        if age >= PODS_FIRST_S:
            trouble = pod_trouble(await self._api.pods(resource.namespace, resource.child_name))
            if trouble is not None:
                # An old pod may still serve while the new one cannot.
                progress = ConditionResult(True, trouble.reason, trouble.message)
                pod = trouble if pod.reason == "PodNotReady" else pod
        return pod, progress, min(max(age, PODS_FIRST_S), PODS_LAST_S)

    def _progressing_s(self, observed: Observed) -> float:
        """Return for how many seconds the resource has been Progressing, by its status."""
        began = true_since(observed.status, "Progressing")
        return (self._now() - datetime.fromisoformat(began)).total_seconds() if began else 0.0

    async def _is_locked_out(self, observed: Observed, access: Access) -> bool:
        """Return whether a pod that has not been ready for some time has a password that the database rejects."""
        if self._progressing_s(observed) < PODS_FIRST_S:
            return False
        return await self._keeper.is_locked_out(observed.resource, access)

    async def _write_status(self, resource: ResourceIdentity, body: Mapping[str, Any], outcome: Outcome) -> None:
        # Only together with another change: no user is reconciled because of the number of listeners.
        too_many_listeners = self._see_listener(body) and self._listeners.too_many
        await self._status.write(resource, body.get("status", {}), outcome, too_many_listeners=too_many_listeners)


_WITHDRAWN: Mapping[type[ResourceError], tuple[str, ...]] = {
    ImageNotAllowed: ("Deployment",),
    HostNotAllowed: ("Ingress", "HTTPRoute"),
    RouteConflict: ("Ingress", "HTTPRoute"),
}
"""The kinds of objects that are deleted when the platform rejects a part of the spec."""
_WITHOUT_POD: Mapping[str, str] = {
    State.ASLEEP.value: "the user sleeps; the next connection starts the pod",
    State.PARKED.value: "activators keep the connections of idle clients; activity starts the pod",
}
_NOT_REGISTERED = ConditionResult(False, "NotRegistered", "the resource is not registered in the database")


def _rank(resource: UserRealtime, body: Mapping[str, Any]) -> Rank:
    created: str = body["metadata"].get("creationTimestamp", "")
    return Rank(resource.route_url is not None, created, resource.uid)


def _part_key(resource: ResourceIdentity, part: str) -> ObjectKey:
    return ObjectKey(kind_of(part), resource.namespace, object_name(part, resource.child_name))


def _is_of_another_series(deployment: Mapping[str, Any] | None, objects: Iterable[Object]) -> bool:
    """Return whether the pods have a series of keys that has been revoked."""
    if deployment is None:
        return False
    live = deployment["metadata"].get("annotations", {}).get(SERIES_DIGEST)
    [wanted] = (item["metadata"]["annotations"][SERIES_DIGEST] for item in objects if item["kind"] == "Deployment")
    return live is not None and live != wanted


_REFUSED = ConditionResult(False, "Refused")


def _refusal(error: ApiError) -> ConditionResult:
    return ConditionResult(False, "Refused", f"the API server rejected an object: {error}")
