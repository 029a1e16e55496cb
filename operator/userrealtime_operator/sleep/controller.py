"""Puts users to sleep and wakes them: observes a user, asks the state machine for the next step, and returns a plan.

A slice of the user's Service leads to the activators. While a pod serves, its endpoints are on standby: the Service
uses them only if it has no ready endpoint, so connections to a user without a pod wait in an activator.

Falling asleep takes three steps, and only the last one ends the pod. The endpoints of the slice become ready,
the operator waits for longer than a relay takes to report a client, and if there is still no client, the Deployment
is scaled to 0. A client that connects to the pod in its last second is closed by the drain of the pod, and reconnects
through an activator.

A user whose clients have no traffic is parked by the same steps. The pod closes its clients, and they reconnect to an
activator, which keeps their connections.

The endpoints return to standby once a pod is among the endpoints that the cluster itself has for the Service.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from userrealtime_operator.config import Config
from userrealtime_operator.kube.client import Api
from userrealtime_operator.kube.timestamps import parse_timestamp
from userrealtime_operator.kube.types import NamespacedName
from userrealtime_operator.model.conditions import ConditionResult, condition_of, has_available_pod, pod_available
from userrealtime_operator.model.errors import SpecError
from userrealtime_operator.model.labels import SLICES_MANAGED_BY
from userrealtime_operator.model.naming import Naming
from userrealtime_operator.model.presence import Presence
from userrealtime_operator.model.resource import UserRealtime, parse_resource
from userrealtime_operator.postgres.database import Database, DatabaseError
from userrealtime_operator.process.metrics import Metrics

from .activator_endpoints import Activators
from .machine import WITHOUT_POD, WOKEN, Check, Memory, Observation, State, Usage, mark_idle, next_step
from .policy import FRESH_S, Park, Sleep, decide, decide_parking
from .state import Asleep, Endpoints, asleep, ended_sleep, has_ready, ready_addresses, wake_requested

_BATCH: Final = 200
"""The number of users that are checked before other tasks get a turn."""
_ENDED: Final = ("Succeeded", "Failed")
PARKED_S: Final = 120.0
"""Seconds in which the clients of a parked user have time to reconnect, before it counts as asleep without clients."""

Live = Mapping[str, Mapping[str, Any] | None]
"""A user's objects by kind."""
_AWAKE: Final = Memory()


@dataclass(frozen=True, slots=True)
class Plan:
    """The intended state of a user's objects."""

    condition: ConditionResult
    """The condition Asleep."""
    asleep: Asleep | None = None
    """The sleep that the Deployment must record; None if the user must be awake."""
    ended: Asleep | None = None
    """The last sleep of a user that is awake, if its record stays in the Deployment."""
    slice: bool = False
    """Whether the slice that leads to the activators must exist, ready or on standby."""
    activators: Endpoints | None = None
    """The endpoints of the slice; None if they are unknown, and an existing slice stays unchanged."""
    recheck_s: float | None = None
    """The time until the user is reconciled again; None if that follows a change in the cluster."""

    @property
    def state(self) -> str:
        """The state of the user for its status: Awake, Parked or Asleep."""
        if self.asleep is None:
            return State.AWAKE.value
        return State.PARKED.value if self.asleep.parked else State.ASLEEP.value


class SleepController:
    """The sleep of all users of a reconciler. Without `activators`, no user sleeps."""

    def __init__(
        self,
        config: Config,
        naming: Naming,
        api: Api,
        database: Database,
        activators: Activators | None,
        metrics: Metrics,
        now: Callable[[], datetime],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._naming = naming
        self._api = api
        self._database = database
        self._activators = activators
        self._metrics = metrics
        self._now = now
        self._clock = clock
        self._memories: dict[NamespacedName, Memory] = {}
        """The users about which more is remembered than their Deployments record."""
        self._left: set[NamespacedName] = set()
        """The parked users that have no client any more."""
        self._revoked: set[NamespacedName] = set()
        """The parked users whose clients must be checked again."""

    def forget(self, user: NamespacedName) -> None:
        """Remove a user whose resource was deleted."""
        self._memories.pop(user, None)
        self._left.discard(user)
        self._revoked.discard(user)

    def end_parking(self, user: NamespacedName) -> None:
        """Start the pod of a parked user: it checks the tokens of the clients with the present keys."""
        self._revoked.add(user)

    async def find_idle(
        self,
        namespace: str,
        resources: Iterable[Mapping[str, Any]],
        deployment: Callable[[UserRealtime], Mapping[str, Any] | None],
    ) -> list[NamespacedName]:
        """Return the users of a namespace that seem to be idle, by one query for all of them. `plan` checks each again.

        Raises:
            DatabaseError: presence cannot be read, so no user is known to be idle.
        """
        if self._activators is None or self._activators.gone:
            return []
        found: list[NamespacedName] = []
        now, presence = await self._database.presence(self._api.scope(namespace))
        for number, body in enumerate(resources, start=1):
            if number % _BATCH == 0:
                await asyncio.sleep(0)  # a wake may be waiting
            rows = presence.get(body["spec"]["userId"], ())
            user = NamespacedName(namespace, body["metadata"]["name"])
            if body.get("status", {}).get("state") == State.PARKED.value:
                if self._has_left(body, rows, now):
                    self._left.add(user)
                    found.append(user)
                continue
            if not rows or self._memory(user).state is State.DRAINING:
                continue
            try:
                resource = parse_resource(body, self._naming)
            except SpecError:
                continue  # its own reconciliation reports it
            reported = [row.instance for row in rows if row.seen_at > now - FRESH_S and not row.parked]
            usage = self._usage(resource, body, reported, rows, now)
            if usage is not Usage.IN_USE and asleep(deployment(resource)) is None:
                found.append(user)
        for user in found:
            if user in self._left:
                continue
            self._remember(user, mark_idle(self._memory(user)))
        return found

    async def plan(self, resource: UserRealtime, body: Mapping[str, Any], live: Live) -> Plan:
        """Return the intended state of a user's objects, and make the checks that the next step needs.

        Raises:
            ApiError: a check failed, and has to be repeated later.
        """
        user = NamespacedName(resource.namespace, resource.name)
        activators = self._endpoints(live)
        seen = self._observe(resource, body, live, activators)
        step = next_step(self._memory(user), seen)
        while step.check is not None:
            seen = await self._check(step.check, seen, resource, body, live)
            step = next_step(step.memory, seen)
        self._remember(user, step.memory)
        if step.wake_s is not None:
            self._metrics.wake_seconds.observe(step.wake_s)
        if activators is not None and not step.slice:
            activators = replace(activators, standby=True)
        # Addresses on standby may be outdated for a moment; addresses that also receive connections to a pod may not.
        kept = activators is not None or not has_ready(live["EndpointSlice"])
        standby = kept and self._activators is not None and not self._activators.gone
        ended = ended_sleep(body, live["Deployment"]) if step.asleep is None else None
        return Plan(step.condition, step.asleep, ended, step.slice or standby, activators, step.recheck_s)

    def _memory(self, user: NamespacedName) -> Memory:
        return self._memories.get(user, _AWAKE)

    def _remember(self, user: NamespacedName, memory: Memory) -> None:
        # The Deployment records ASLEEP and PARKED, and most users are awake: neither needs memory.
        if memory.state in WITHOUT_POD or memory == _AWAKE:
            self._memories.pop(user, None)
        else:
            self._memories[user] = memory

    def _observe(
        self, resource: UserRealtime, body: Mapping[str, Any], live: Live, activators: Endpoints | None
    ) -> Observation:
        """Return the facts about a user that need no further requests."""
        stored = condition_of(body.get("status", {}), "Asleep") or {}
        awake = f"the user sleeps after {self._after_s(resource):g} s without clients"
        recorded = asleep(live["Deployment"])
        user = NamespacedName(resource.namespace, resource.name)
        blocker = self._blocker(resource)
        if recorded is None or not recorded.parked:
            self._left.discard(user)
            self._revoked.discard(user)
        elif blocker is None:
            blocker = self._parking_blocker(user, resource)
        return Observation(
            now=self._now(),
            clock=self._clock(),
            recorded=recorded,
            wake_requested=wake_requested(body),
            slice_exists=has_ready(live["EndpointSlice"]),
            pod_available=live["Service"] is not None and pod_available(live["Deployment"]),
            blocker=blocker,
            activators_known=activators is not None,
            pod_missing=not has_available_pod(live["Deployment"]),
            awake=ConditionResult(False, "Awake", awake),
            parked_clients=0 if user in self._left else None,
            was_woken=(stored.get("status"), stored.get("reason")) == ("False", WOKEN.reason),
        )

    async def _check(
        self, check: Check, seen: Observation, resource: UserRealtime, body: Mapping[str, Any], live: Live
    ) -> Observation:
        """Return the observation with the result of a check."""
        match check:
            case Check.USAGE:
                try:
                    usage = await self._read_usage(resource, body)
                except DatabaseError as error:
                    return replace(seen, usage=Usage.UNKNOWN, usage_error=error.status)
                # The database may have taken a while.
                return replace(seen, usage=usage, now=self._now())
            case Check.ENDPOINTS:
                return replace(seen, pod_serves=await self._pod_serves(live["Service"]), now=self._now())

    async def _read_usage(self, resource: UserRealtime, body: Mapping[str, Any]) -> Usage:
        """Return whether clients are connected to any of the user's pods, and whether they have traffic."""
        pods = await self._api.pods(resource.namespace, resource.child_name)
        living = [
            str(pod["metadata"]["name"])
            for pod in pods
            if "deletionTimestamp" not in pod["metadata"] and pod.get("status", {}).get("phase") not in _ENDED
        ]
        now, presence = await self._database.presence(self._api.scope(resource.namespace), resource.user_id)
        return self._usage(resource, body, living, presence.get(resource.user_id, ()), now)

    def _usage(
        self,
        resource: UserRealtime,
        body: Mapping[str, Any],
        pods: Sequence[str],
        presence: Sequence[Presence],
        now: float,
    ) -> Usage:
        """Return what the reports of pods mean for the user."""
        # Clients that an activator keeps are about to be connected to a pod.
        rows = [row for row in presence if not row.parked]
        after_s, awake_since = self._after_s(resource), self._awake_since(body)
        warm = self._stays_awake(resource) is not None
        if isinstance(decide(pods, rows, after_s, awake_since, now, warm=warm), Sleep):
            return Usage.IDLE
        park_after_s = 0 if warm or after_s <= 0 else self._park_after_s(resource)
        if isinstance(decide_parking(pods, rows, park_after_s, awake_since, now), Park):
            return Usage.QUIET
        return Usage.IN_USE

    def _has_left(self, body: Mapping[str, Any], presence: Sequence[Presence], now: float) -> bool:
        """Return whether a parked user has no client any more."""
        if any(row.clients and row.seen_at > now - FRESH_S for row in presence):
            return False
        since = body.get("status", {}).get("asleepSince")
        return since is not None and (self._now() - parse_timestamp(since, self._now())).total_seconds() > PARKED_S

    def _parking_blocker(self, user: NamespacedName, resource: UserRealtime) -> ConditionResult | None:
        """Return why a user must not stay parked."""
        if user in self._revoked:
            return ConditionResult(
                False, "Awake", "the keys of the user were revoked; the pod checks its clients again"
            )
        if self._park_after_s(resource) <= 0:
            return ConditionResult(False, "Awake", "parking is disabled (idle.parkAfter, activator.database)")
        return None

    async def _pod_serves(self, service: Mapping[str, Any] | None) -> bool:
        """Return whether a pod is among the endpoints that the cluster has for a Service."""
        if service is None:
            return False
        found = await self._api.endpoint_slices(service["metadata"]["namespace"], service["metadata"]["name"])
        return bool(ready_addresses(each for each in found if not _is_ours(each)))

    def _endpoints(self, live: Live) -> Endpoints | None:
        if self._activators is None:
            return None
        # A slice has one address family. That of the Service's own address is used.
        families = (live["Service"] or {}).get("spec", {}).get("ipFamilies") or ["IPv4"]
        return self._activators.endpoints(families[0])

    def _after_s(self, resource: UserRealtime) -> float:
        return self._config.idle.after_s if resource.idle_after_s is None else resource.idle_after_s

    def _park_after_s(self, resource: UserRealtime) -> float:
        if self._config.activator is None or not self._config.activator.parking:
            return 0.0
        own = resource.idle_park_after_s
        return self._config.idle.park_after_s if own is None else own

    def _stays_awake(self, resource: UserRealtime) -> str | None:
        """Return why a resource keeps its pod running, None if it does not."""
        if resource.warm:
            return "spec.idle.warm keeps the pod running"
        return None

    def _awake_since(self, body: Mapping[str, Any]) -> float:
        wake = wake_requested(body)
        return parse_timestamp(wake, self._now()).timestamp() if wake else 0.0

    def _blocker(self, resource: UserRealtime) -> ConditionResult | None:
        """Return why a user must not sleep, None if it may."""
        if self._activators is None:
            message = "sleep is disabled because no activator is installed (activator.enabled of the chart)"
            return ConditionResult(False, "NeverSleeps", message)
        if (reason := self._stays_awake(resource)) is not None:
            return ConditionResult(False, "NeverSleeps", reason)
        if self._after_s(resource) <= 0:
            return ConditionResult(False, "NeverSleeps", "sleep is disabled because idle.after is 0")
        if self._activators.gone:
            return ConditionResult(False, "ActivatorUnavailable", "sleep is disabled because no activator is ready")
        return None


def _is_ours(each: Mapping[str, Any]) -> bool:
    labels: Mapping[str, str] = each["metadata"].get("labels", {})
    return SLICES_MANAGED_BY.items() <= labels.items()
