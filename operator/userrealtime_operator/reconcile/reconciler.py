"""Bringing one user to what their resource asks for, whatever the state found.

Level-triggered: only what is now counts, not which event led here. All comparing is done against the cached watches;
the API server is asked when something has to change.

A Secret holds what cannot be made again, so it is not applied like the rest: before it is written it is read from the
API server, and the write fails if it has changed since. Two views of one Secret never both write it.
"""

from __future__ import annotations

import enum
import logging
import secrets as random_source
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, Protocol, TypeVar
from urllib.parse import urlsplit

from userrealtime_operator.config import Config, CredentialsType
from userrealtime_operator.kube.client import CHILD_KINDS, Api, ApiError
from userrealtime_operator.kube.drift import is_subset
from userrealtime_operator.kube.timestamps import rfc3339
from userrealtime_operator.kube.types import NamespacedName, Object, ObjectKey
from userrealtime_operator.manifests.objects import (
    APPLIED_DIGEST,
    DATABASE_URL,
    SERIES_DIGEST,
    Secrets,
    desired_objects,
    route_of,
)
from userrealtime_operator.model.conditions import (
    ConditionResult,
    deployment_progress,
    deployment_ready,
    readiness,
    true_since,
)
from userrealtime_operator.model.naming import child_name, instance_name, object_name
from userrealtime_operator.model.notifiers import Listeners, SignalError
from userrealtime_operator.model.resource import GROUP, UserRealtime, parse_resource
from userrealtime_operator.model.routes import Route, RouteError
from userrealtime_operator.postgres.database import Database, DatabaseError
from userrealtime_operator.postgres.health import DatabaseHealth
from userrealtime_operator.postgres.roles import PasswordChanged, Roles
from userrealtime_operator.process.metrics import Metrics
from userrealtime_operator.secrets.database_passwords import Access, choose_access, read_credentials, role_names
from userrealtime_operator.secrets.token_keys import TokenKeys, advance, series_of
from userrealtime_operator.sleep.activator_endpoints import Activators
from userrealtime_operator.sleep.controller import Plan, SleepController
from userrealtime_operator.sleep.state import asleep

from .events import events, transition
from .pods import pod_trouble
from .rollouts import Rollouts
from .status import PAST_RANGE, differs, next_status
from .userrealtimes import patch_status, resource_uids

logger = logging.getLogger(__name__)

Key = TypeVar("Key", contravariant=True)

TOKEN_KEY_BYTES = 32
DATABASE_RETRY_S = 15.0
# When a pod that does not become ready is looked at for the reason, and its database password is tried, first and at
# the least often.
PODS_FIRST_S = 3.0
PODS_LAST_S = 120.0


class Rollout(enum.Enum):
    """What became of a change of a user's pod."""

    NONE = "none"
    """There is no change that is not applied."""
    BEGUN = "begun"
    """It has just been applied."""
    WAITING = "waiting"
    """It waits for its turn."""


class Applied(NamedTuple):
    """What `_apply_children` has done and found."""

    rollout: Rollout
    look_again_s: float | None
    """When something about the children is due, if anything."""
    access: Access | None
    """The pods' own access to the database."""
    trouble: ConditionResult | None
    """What is wrong with that."""
    plan: Plan
    """Whether the user sleeps."""


class Conflict(RuntimeError):
    """Another resource owns the objects of this user."""


def random_text() -> str:
    """256 random bits, as URL-safe text: a new HS256 key, for one."""
    return random_source.token_urlsafe(TOKEN_KEY_BYTES)


def owner_uid(item: Mapping[str, Any]) -> str | None:
    """The uid of an object's controller."""
    for owner in item["metadata"].get("ownerReferences", ()):
        if owner.get("controller"):
            uid: str = owner["uid"]
            return uid
    return None


def _now() -> datetime:
    return datetime.now(UTC)


class Lister(Protocol[Key]):
    """Reads a cache."""

    def get(self, key: Key) -> Mapping[str, Any] | None:
        """Return an object, None if there is none."""


class Reconciler:
    """One per operator. `resource` and `child` look into the cached watches; `wake` has a user reconciled again."""

    def __init__(
        self,
        config: Config,
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
        self._api = api
        self._database = database
        self._health = DatabaseHealth(database, clock)
        self._resources = resources
        self._children = children
        self._requeue = requeue
        self._metrics = metrics
        self._now = now
        self._rollouts = Rollouts(config.relay.max_concurrent_rollouts)
        self._registered: dict[str, str] = {}
        """The namespaces of the resources that the database knows, by uid."""
        self._roles = roles
        self._ensured: dict[str, tuple[str, int, str]] = {}
        """The fingerprints of the passwords, for how many pods, and the series, that the database is known to have, by
        the resource's uid."""
        self._lost: set[str] = set()
        """The uids of the resources whose database password somebody else has changed."""
        self._settled: dict[str, str] = {}
        """The roles that all pods of a resource use, by its uid; empty with shared credentials."""
        self._rotated: set[str] = set()
        """The uids of the resources that have a new role since they settled."""
        self._sleep = SleepController(config, api, database, activators, metrics, now, clock)
        self._instance = instance_name()
        self._listeners = Listeners(config.signals.listen_range)
        metrics.listening.set_function(lambda: len(self._listeners))

    def resume_rollouts(self, resources: Iterable[Mapping[str, Any]]) -> None:
        """Count the users whose old pod serves while the new one does not come yet, and those whose pod listens: to be
        called once, with all resources, when the caches are full. Otherwise each restart would let in as many users
        again, and find few listeners at first."""
        for body in resources:
            self._see_listener(body)
            namespace, name = body["metadata"]["namespace"], body["metadata"]["name"]
            deployment = self._children.get(_deployment_key(namespace, body["spec"]["userId"]))
            if deployment_ready(deployment).true and deployment_progress(deployment).true:
                self._rollouts.resume(NamespacedName(namespace, name))

    async def reconcile(self, namespace: str, name: str) -> float | None:
        """Bring one resource's user to the desired state; a number of seconds after which to look again, if any.

        Raises:
            ApiError: to be tried again later.
        """
        body = self._resources.get(NamespacedName(namespace, name))
        user = NamespacedName(namespace, name)
        if body is None or body["metadata"].get("deletionTimestamp"):
            self._end_rollout(user)
            self._sleep.forget(user)
            self._listeners.see(user, listens=False)
            return None  # the children are owned: the garbage collector follows
        resource = parse_resource(body)
        self._see_listener(body)
        database = await self._register(resource)
        waits: list[float | None] = []
        plan: Plan | None = None
        try:
            route = route_of(resource, self._config)
            state, due, access, trouble, plan = await self._apply_children(resource, body, bool(database.true))
            waits += (due, plan.recheck_s)
            database = trouble or database
            deployment = self._deployment(resource)
            pod, progress = deployment_ready(deployment), deployment_progress(deployment)
            if plan.asleep is not None:
                # Healthy: who connects is served, a moment later.
                pod, progress = (
                    ConditionResult(True, "Asleep", "the user sleeps; the next connection starts the pod"),
                    ConditionResult(False, "Asleep"),
                )
            if state is Rollout.WAITING:
                progress = ConditionResult(
                    True, "RolloutWaiting", "the new pod waits for other users (relay.maxConcurrentRollouts)"
                )
            elif progress.true:
                pod, progress, pods_due = await self._explained(resource, body, pod, progress)
                waits.append(pods_due)
            elif state is Rollout.NONE:
                self._end_rollout(user)
                await self._settle(resource, access)
            if database.true and pod.reason == "PodNotReady":
                database = await self._still_there(database)
            unserved = database.true and not pod.true
            if unserved and access is not None and await self._is_locked_out(resource, body, access):
                waits.append(0.0)
        except SignalError as error:
            route, pod = None, ConditionResult(False, "InvalidSignal", str(error))
            progress = ConditionResult(False, "InvalidSignal")
        except RouteError as error:
            route, pod = None, ConditionResult(False, "InvalidRoute", str(error))
            progress = ConditionResult(False, "InvalidRoute")
        except Conflict as error:
            route, pod = None, ConditionResult(False, "DuplicateUserId", str(error))
            progress = ConditionResult(False, "DuplicateUserId")
        except ApiError as error:
            if error.status not in (400, 403, 422):
                raise
            # Refused for what it says, not for the moment: tell the resource's author, and try again later.
            await self._write_status(
                resource, body, None, _refusal(error), ConditionResult(False, "Refused"), database, plan
            )
            raise
        await self._write_status(resource, body, route, pod, progress, database, plan)
        waits.append(None if database.true else DATABASE_RETRY_S)
        return min((wait for wait in waits if wait is not None), default=None)

    async def sweep(self, namespace: str) -> set[str]:
        """Remove the logs of users whose resources in this namespace are gone; gives the uids of those that exist.

        It also notices registrations that the database has lost; `is_registered` then says so.

        Raises:
            ApiError, DatabaseError: to be tried again later.
        """
        # In this order: a resource registered after the first question cannot be missed by the second.
        scope = self._api.scope(namespace)
        registered = await self._database.registered(scope)
        with_roles = await self._roles.resources(scope) if self._roles else set()
        existing = await resource_uids(self._api, namespace)
        broken = await self._roles.broken(scope) if self._roles else set()
        of_here = {uid for uid, place in self._registered.items() if place == namespace}
        for uid in of_here - ((existing & registered) - broken):
            del self._registered[uid]
            self._ensured.pop(uid, None)
            self._settled.pop(uid, None)
            self._lost.discard(uid)
            self._rotated.discard(uid)
        if self._roles:
            await self._roles.sweep(scope, with_roles - existing, self._settled)
        failure: DatabaseError | None = None
        for uid in registered - existing:
            try:
                await self._database.forget(uid)
            except DatabaseError as error:  # of one user, perhaps: the others are not to wait for it
                logger.warning("could not remove the rows of a deleted resource (uid %s), retrying: %s", uid, error)
                failure = error
                continue
            self._metrics.swept.inc()
            logger.info("removed the rows of a deleted resource (uid %s)", uid)
        if failure is not None:
            raise failure
        return existing

    def is_registered(self, uid: str) -> bool:
        """Whether the database knows a resource, as far as this operator has seen."""
        return uid in self._registered

    async def remove_orphans(self, namespace: str, name: str) -> None:
        """Delete the children of this name that have lost their owner; those that have one go with it.

        Raises:
            ApiError: to be tried again later.
        """
        for kind in CHILD_KINDS:
            key = ObjectKey(kind, namespace, object_name(kind, name))
            live = self._children.get(key)
            if live is not None and owner_uid(live) is None:
                await self._api.delete(*key)
                logger.info("deleted %s %s/%s, which had no owner", *key)

    async def _register(self, resource: UserRealtime) -> ConditionResult:
        try:
            if resource.uid not in self._registered:
                await self._database.register(resource.uid, self._api.scope(resource.namespace), resource.user_id)
                self._registered[resource.uid] = resource.namespace
        except DatabaseError as error:
            return self._away(error)
        return ConditionResult(True, "Registered", "the user is registered in the database")

    async def _still_there(self, known: ConditionResult) -> ConditionResult:
        """What is known of the database, unless it has gone away since: relays without one are not ready."""
        trouble = await self._health.check()
        return known if trouble is None else self._away(trouble)

    async def _settle(self, resource: UserRealtime, access: Access | None) -> None:
        """Note the role that all pods of a user have, and retire the one before."""
        role = access.credentials.role if access else ""
        self._settled[resource.uid] = role
        if self._roles is not None and resource.uid in self._rotated:
            self._rotated.discard(resource.uid)
            try:
                await self._roles.retire(resource.uid, role)
            except DatabaseError as error:
                logger.warning("could not retire the role that %s replaces; the next sweep retries: %s", role, error)

    def _away(self, error: DatabaseError) -> ConditionResult:
        self._metrics.database_failures.inc()
        return ConditionResult(False, "DatabaseUnavailable", str(error))

    def _see_listener(self, body: Mapping[str, Any]) -> bool:
        """Whether this resource's pod listens, which is counted."""
        user = NamespacedName(body["metadata"]["namespace"], body["metadata"]["name"])
        deployment = self._children.get(_deployment_key(user.namespace, body["spec"]["userId"]))
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

    async def find_idle(self, namespace: str, resources: Iterable[Mapping[str, Any]]) -> None:
        """Have those of a namespace looked at who seem to have been idle for long enough.

        Raises:
            DatabaseError: nobody can be told to be idle.
        """
        for user in await self._sleep.find_idle(namespace, resources, self._deployment):
            self._requeue(user)

    def _deployment(self, resource: UserRealtime) -> Mapping[str, Any] | None:
        return self._children.get(_deployment_key(resource.namespace, resource.user_id))

    async def _apply_children(
        self, resource: UserRealtime, body: Mapping[str, Any], database_is_there: bool
    ) -> Applied:
        """Apply what differs. What the resource itself asks for, a first pod, and one that goes or comes with sleep,
        never waits."""
        keys = {
            kind: ObjectKey(kind, resource.namespace, object_name(kind, resource.child_name)) for kind in CHILD_KINDS
        }
        live = {
            **{kind: self._children.get(key) for kind, key in keys.items()},
            "Deployment": self._deployment(resource),
        }
        for kind, item in live.items():
            _check_owner(resource, kind, item)
        plan = await self._sleep.plan(resource, body, live)

        def desired(secrets: Secrets) -> tuple[Object, ...]:
            return desired_objects(
                resource, self._config, secrets, plan.asleep, plan.activators if plan.slice else None
            )

        is_lost = database_is_there and resource.uid in self._lost
        # One at a time: a password is good for as long as the pods that know it take to be replaced.
        may_rotate = database_is_there and not deployment_progress(live["Deployment"]).true
        secrets, access, wait = await self._secrets(resource, live["Secret"], may_rotate, is_lost)
        objects = desired(secrets)
        created = await self._created(objects[0]) if live["Secret"] is None else None
        if created is not None:
            live["Secret"] = created
        elif not _up_to_date(live["Secret"], objects[0]):
            live["Secret"] = await self._api.get("Secret", resource.namespace, resource.child_name)
            _check_owner(resource, "Secret", live["Secret"])
            secrets, access, wait = await self._secrets(resource, live["Secret"], may_rotate, is_lost)
            objects = desired(secrets)
        trouble = await self._ensure_role(resource, access, secrets.token_keys.series) if database_is_there else None
        if (
            trouble and access and (access.rotated or is_lost)
        ):  # no pod is to get a password that the database does not know
            secrets, access, wait = await self._secrets(resource, live["Secret"], False, False)
            objects = desired(secrets)
        if access is not None and access.rotated:
            self._rotated.add(resource.uid)
        rollout = Rollout.NONE
        asked_for = body.get("status", {}).get("observedGeneration") != resource.generation
        urgent = asked_for or is_lost or _is_of_another_series(live["Deployment"], objects)
        sleeps = plan.asleep is not None or asleep(live["Deployment"]) is not None
        for item in objects:
            if _up_to_date(live[item["kind"]], item):
                continue
            if item["kind"] == "Deployment" and live["Deployment"] is not None and not urgent and not sleeps:
                if not self._rollouts.begin(NamespacedName(resource.namespace, resource.name)):
                    rollout = Rollout.WAITING
                    continue
                rollout = Rollout.BEGUN
            await self._write(live[item["kind"]], item)
            _log_applied(item)
        if database_is_there and trouble is None:
            self._lost.discard(resource.uid)
        unwanted = CHILD_KINDS.keys() - {item["kind"] for item in objects}
        for kind in unwanted - ({"EndpointSlice"} if plan.slice else set()):
            if live[kind] is not None:
                await self._api.delete(*keys[kind])
                logger.info("deleted %s %s/%s", *keys[kind])
        return Applied(rollout, wait, access, trouble, plan)

    async def _secrets(
        self, resource: UserRealtime, secret: Mapping[str, Any] | None, may_rotate: bool, is_lost: bool
    ) -> tuple[Secrets, Access | None, float | None]:
        """What the Secret is to hold, and the seconds after which some of that is due, if any."""
        keys, keys_wait = self._token_keys(resource, secret)
        url, policy = self._config.database_url, self._config.database
        if policy.credentials is CredentialsType.SHARED:
            return Secrets(keys, url), None, keys_wait
        names = role_names(urlsplit(url).path, self._api.scope(resource.namespace), resource.user_id)
        # Where the keys begin anew, the whole Secret was lost or given away.
        begun = is_lost or series_of(secret) != keys.series
        access, access_wait = choose_access(
            secret,
            DATABASE_URL,
            names,
            resource.password_rotation,
            self._now(),
            policy.rotate_after_s,
            may_rotate,
            random_text,
            await self._last_role(names) if begun or read_credentials(secret, DATABASE_URL) is None else None,
            begun,
        )
        waits = [wait for wait in (keys_wait, access_wait) if wait is not None]
        return Secrets(keys, access.credentials.url(url), access.annotations()), access, min(waits, default=None)

    async def _last_role(self, names: tuple[str, str]) -> str | None:
        """The role of a user that the database knew last. None also without a database: `ensure` then revokes it."""
        if self._roles is None:
            return None
        try:
            return await self._roles.newest(names)
        except DatabaseError as error:
            logger.info("could not find the previous role of a user: %s", error)
            return None

    async def _is_locked_out(self, resource: UserRealtime, body: Mapping[str, Any], access: Access) -> bool:
        """Whether a pod is not ready because the database rejects its password. The next reconciliation replaces it."""
        began = true_since(body.get("status", {}), "Progressing")
        if began is None or self._now() - datetime.fromisoformat(began) < timedelta(seconds=PODS_FIRST_S):
            return False
        if self._roles is None or self._ensured.get(resource.uid) is None:
            return False
        if not await self._roles.rejects_password(access.credentials):
            return False
        logger.warning("the database rejects the password of role %s; replacing the password", access.credentials.role)
        self._lost.add(resource.uid)
        self._ensured.pop(resource.uid, None)
        return True

    async def _ensure_role(self, resource: UserRealtime, access: Access | None, series: str) -> ConditionResult | None:
        """What hinders the database from knowing the pod's role, if anything."""
        if access is None or self._roles is None:
            return None
        credentials, uid = access.credentials, resource.uid
        try:
            wanted = credentials.fingerprint, resource.replicas, series
            if self._ensured.get(uid) != wanted:
                scope = self._api.scope(resource.namespace)
                await self._roles.ensure(
                    credentials, uid, scope, resource.user_id, resource.replicas, series, alone=uid in self._lost
                )
                self._ensured[uid] = wanted
        except PasswordChanged as error:
            self._lost.add(uid)
            return ConditionResult(False, "RoleUnavailable", str(error))
        except DatabaseError as error:
            return ConditionResult(False, "RoleUnavailable", str(error))
        return None

    def _token_keys(self, resource: UserRealtime, secret: Mapping[str, Any] | None) -> tuple[TokenKeys, float | None]:
        return advance(secret, resource.key_rotation, self._now(), self._config.token_keys, random_text)

    async def _created(self, item: Object) -> Object | None:
        """An object made anew, as it is stored; None if there is one already, which the cache does not know."""
        try:
            stored = await self._api.create(item)
        except ApiError as error:
            if error.status != 409:
                raise
            return None
        _log_applied(item)
        return stored

    async def _write(self, live: Mapping[str, Any] | None, item: Object) -> None:
        if item["kind"] != "Secret":
            await self._api.apply(item)
        elif live is None:
            await self._api.create(item)
        else:
            await self._api.replace(_replacement(live, item))

    async def _explained(
        self, resource: UserRealtime, body: Mapping[str, Any], pod: ConditionResult, progress: ConditionResult
    ) -> tuple[ConditionResult, ConditionResult, float]:
        """Why a pod is long in coming, and when to look again: soon at first, then ever later. Pods are not watched,
        since nearly all of them come at once and would only cost."""
        began = true_since(body.get("status", {}), "Progressing")
        age = (self._now() - datetime.fromisoformat(began)).total_seconds() if began else 0.0
        if age >= PODS_FIRST_S:
            trouble = pod_trouble(await self._api.pods(resource.namespace, resource.child_name))
            if trouble is not None:
                # An old pod may still serve while the new one cannot.
                progress = ConditionResult(True, trouble.reason, trouble.message)
                pod = trouble if pod.reason == "PodNotReady" else pod
        return pod, progress, min(max(age, PODS_FIRST_S), PODS_LAST_S)

    async def _write_status(
        self,
        resource: UserRealtime,
        body: Mapping[str, Any],
        route: Route | None,
        pod: ConditionResult,
        progress: ConditionResult,
        database: ConditionResult,
        plan: Plan | None,
    ) -> None:
        previous = body.get("status", {})
        findings = {"Ready": readiness(pod, database), "Progressing": progress, "DatabaseReady": database}
        if plan is not None:
            findings["Asleep"] = plan.condition
        # Said when there is something to write of a resource anyway: nobody is reconciled for it.
        if self._see_listener(body) and self._listeners.past:
            findings["SignalRange"] = PAST_RANGE
        now = self._now()
        asleep_since = plan.asleep.since if plan and plan.asleep else None
        status = next_status(resource, previous, route, findings, rfc3339(now), asleep_since)
        if not differs(status, previous):
            return
        before = previous.get("conditions", ())
        news = list(events(resource, before, status["conditions"], rfc3339(now, "microseconds"), self._instance))
        await patch_status(self._api, resource.namespace, resource.name, status)
        match transition(before, status["conditions"]):
            case "Slept":
                self._metrics.sleeps.inc()
            case "Woken" if plan is not None:
                self._metrics.wakes.labels(plan.condition.reason).inc()
        for event in news:
            try:
                await self._api.create_event(resource.namespace, event)
            except ApiError as error:
                place = (resource.namespace, resource.name)
                logger.warning("could not create the event %s for %s/%s: %s", event["reason"], *place, error)


def _deployment_key(namespace: str, user_id: str) -> ObjectKey:
    return ObjectKey("Deployment", namespace, child_name(user_id))


def _is_of_another_series(deployment: Mapping[str, Any] | None, objects: Iterable[Object]) -> bool:
    """Whether pods run whose keys and passwords are revoked."""
    if deployment is None:
        return False
    live = deployment["metadata"].get("annotations", {}).get(SERIES_DIGEST)
    [wanted] = (item["metadata"]["annotations"][SERIES_DIGEST] for item in objects if item["kind"] == "Deployment")
    return live is not None and live != wanted


def _log_applied(item: Object) -> None:
    logger.info("applied %s %s/%s", item["kind"], item["metadata"]["namespace"], item["metadata"]["name"])


def _refusal(error: ApiError) -> ConditionResult:
    return ConditionResult(False, "Refused", f"the API server rejected an object: {error}")


def _check_owner(resource: UserRealtime, kind: str, item: Mapping[str, Any] | None) -> None:
    if item is not None and owner_uid(item) not in (None, resource.uid):
        raise Conflict(f"{kind} {resource.child_name} belongs to another UserRealtime with userId {resource.user_id!r}")


def _replacement(live: Mapping[str, Any], item: Object) -> Object:
    """A whole object in the place of `live`, with the labels and annotations that others gave that one."""
    metadata, wanted = live["metadata"], item["metadata"]
    theirs = {name: text for name, text in metadata.get("annotations", {}).items() if not name.startswith(f"{GROUP}/")}
    return {
        **item,
        "metadata": {
            **metadata,
            **wanted,
            "labels": {**metadata.get("labels", {}), **wanted["labels"]},
            "annotations": {**theirs, **wanted["annotations"]},
        },
    }


def _up_to_date(live: Mapping[str, Any] | None, item: Object) -> bool:
    if live is None or live["metadata"].get("deletionTimestamp"):
        return live is not None  # one that is being deleted comes back when it is gone
    annotations = live["metadata"].get("annotations", {})
    return annotations.get(APPLIED_DIGEST) == item["metadata"]["annotations"][APPLIED_DIGEST] and is_subset(item, live)
