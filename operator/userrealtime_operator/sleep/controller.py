"""Putting users to sleep and waking them: what their objects are to be now.

Falling asleep takes three steps, of which only the last ends anything. The slice that leads to the activators is put
in place; a settle time passes, longer than a relay takes to tell of a client; and if still nobody is there, the pod
goes. Whoever connects to the pod in its last moment is sent away by its drain, and comes back through the activator.
The first two steps are remembered here alone: another operator begins them anew.

The slice goes once a pod is among the endpoints that the cluster itself has for the Service.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from userrealtime_operator.config import Config
from userrealtime_operator.kube.client import Api
from userrealtime_operator.kube.timestamps import parse_timestamp, rfc3339
from userrealtime_operator.kube.types import NamespacedName
from userrealtime_operator.model.conditions import ConditionResult, condition_of, pod_available
from userrealtime_operator.model.labels import SLICES_MANAGED_BY
from userrealtime_operator.model.resource import UserRealtime, parse_resource
from userrealtime_operator.postgres.database import Database, DatabaseError
from userrealtime_operator.process.metrics import Metrics

from .activator_endpoints import Activators
from .policy import FRESH_S, Sleep, decide
from .state import Asleep, Endpoints, asleep, ready_addresses, wake_requested

SETTLE_S: Final = 2.0
ENDPOINT_S: Final = 0.5
"""Until it is looked again whether a pod that is available is among the Service's endpoints."""
DATABASE_S: Final = 15.0
_AT_ONCE: Final = 200
"""Users who are looked at before others get their turn."""
_ENDED: Final = ("Succeeded", "Failed")
_WOKEN: Final = ConditionResult(False, "WakeRequested", "a connection has woken the user")

Live = Mapping[str, Mapping[str, Any] | None]
"""A user's objects by kind."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be of a user now."""

    finding: ConditionResult
    """The condition Asleep."""
    asleep: Asleep | None = None
    """What the Deployment is to say; None is awake."""
    slice: bool = False
    """Whether there is to be the slice to the activators."""
    activators: Endpoints | None = None
    """What the slice is to hold; None if that is not known, and the slice is to stay as it is."""
    look_again_s: float | None = None


@dataclass(slots=True)
class _Settling:
    """A user is falling asleep."""

    since: str
    wake_seen: str
    due: float | None = None
    """When the pod may go, on our own clock; not known before the slice is seen."""


class Sleeper:
    """One a reconciler. Without `activators`, nobody sleeps."""

    def __init__(
        self,
        config: Config,
        api: Api,
        database: Database,
        activators: Activators | None,
        metrics: Metrics,
        now: Callable[[], datetime],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._api = api
        self._database = database
        self._activators = activators
        self._metrics = metrics
        self._now = now
        self._clock = clock
        self._idle: set[NamespacedName] = set()
        """Who seems to be idle, and is to be looked at closely."""
        self._settling: dict[NamespacedName, _Settling] = {}
        self._waking: dict[NamespacedName, datetime] = {}
        """For whom a pod was asked, and when."""

    def forget(self, user: NamespacedName) -> None:
        """A resource is gone."""
        self._idle.discard(user)
        self._settling.pop(user, None)
        self._waking.pop(user, None)

    async def find_idle(
        self,
        namespace: str,
        resources: Iterable[Mapping[str, Any]],
        deployment: Callable[[UserRealtime], Mapping[str, Any] | None],
    ) -> list[NamespacedName]:
        """Who of a namespace seems to have been idle for long enough, with one question for all. `plan` looks closer.

        Raises:
            DatabaseError: nobody can be told to be idle.
        """
        if self._activators is None or self._activators.gone:
            return []
        found: list[NamespacedName] = []
        now, presence = await self._database.presence(self._api.scope(namespace))
        for number, body in enumerate(resources, start=1):
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)  # somebody may want to be woken
            rows = presence.get(body["spec"]["userId"])
            user = NamespacedName(namespace, body["metadata"]["name"])
            if not rows or user in self._settling:
                continue
            try:
                resource = parse_resource(body)
            except (KeyError, ValueError):
                continue  # its own reconciliation tells of it
            heard = [row.instance for row in rows if row.seen_at > now - FRESH_S]
            answer = decide(heard, rows, self._after_s(resource), self._awake_since(body), now, warm=resource.warm)
            if isinstance(answer, Sleep) and asleep(deployment(resource)) is None:
                found.append(user)
        self._idle.update(found)
        return found

    async def plan(self, resource: UserRealtime, body: Mapping[str, Any], live: Live) -> Plan:
        """What is to be of a user, by all that is known, with a close look at who seems to be idle.

        Raises:
            ApiError: to be tried again later.
        """
        user, wake = NamespacedName(resource.namespace, resource.name), wake_requested(body)
        activators = self._endpoints(live)
        obstacle = self._obstacle(resource)
        sleeping, seems_idle = asleep(live["Deployment"]), user in self._idle
        self._idle.discard(user)
        if sleeping is not None:
            if obstacle is None and wake == sleeping.wake_seen:
                return Plan(_asleep(), sleeping, slice=True, activators=activators)
            if obstacle is None:
                self._waking[user] = parse_timestamp(wake, self._now(), to_the_second=False)
            return Plan(obstacle or _WOKEN, slice=True, activators=activators)
        finding = obstacle or self._awake(user, resource, body)
        if obstacle is None and activators is not None:
            settling = self._settling.get(user)
            if settling is not None:
                plan = await self._settle(user, settling, resource, body, live, activators, finding)
            elif seems_idle:
                plan = await self._fall_asleep(user, resource, body, activators, finding)
            else:
                plan = Plan(finding)
        else:
            self._settling.pop(user, None)
            plan = Plan(finding)
        return plan if plan.slice or live["EndpointSlice"] is None else await self._served(user, live, activators, plan)

    def _endpoints(self, live: Live) -> Endpoints | None:
        if self._activators is None:
            return None
        # A slice is of one family, for its life; that of the Service's own address is what is used.
        families = (live["Service"] or {}).get("spec", {}).get("ipFamilies") or ["IPv4"]
        return self._activators.endpoints(families[0])

    def _after_s(self, resource: UserRealtime) -> float:
        return self._config.idle.after_s if resource.idle_after_s is None else resource.idle_after_s

    def _awake_since(self, body: Mapping[str, Any]) -> float:
        wake = wake_requested(body)
        return parse_timestamp(wake, self._now()).timestamp() if wake else 0.0

    def _obstacle(self, resource: UserRealtime) -> ConditionResult | None:
        """Why a user must not sleep."""
        if self._activators is None:
            return ConditionResult(
                False, "NeverSleeps", "nobody sleeps without an activator (activator.enabled of the chart)"
            )
        if resource.warm:
            return ConditionResult(False, "NeverSleeps", "spec.idle.warm keeps the pod")
        if self._after_s(resource) <= 0:
            return ConditionResult(False, "NeverSleeps", "idle.after is 0")
        if self._activators.gone:
            return ConditionResult(False, "ActivatorUnavailable", "no activator is ready, which would wake the user")
        return None

    def _awake(self, user: NamespacedName, resource: UserRealtime, body: Mapping[str, Any]) -> ConditionResult:
        # The reason stays until the next sleep, also while the cached status does not have it yet.
        before = condition_of(body.get("status", {}), "Asleep") or {}
        if user in self._waking or (before.get("status"), before.get("reason")) == ("False", _WOKEN.reason):
            return _WOKEN
        return ConditionResult(
            False, "Awake", f"sleeps once nobody has been connected for {self._after_s(resource):g} s"
        )

    async def _is_idle(self, resource: UserRealtime, body: Mapping[str, Any]) -> bool:
        """A close look, at the pods that there are and at what they have said by now."""
        pods = await self._api.pods(resource.namespace, resource.child_name)
        living = [
            str(pod["metadata"]["name"])
            for pod in pods
            if "deletionTimestamp" not in pod["metadata"] and pod.get("status", {}).get("phase") not in _ENDED
        ]
        now, presence = await self._database.presence(self._api.scope(resource.namespace), resource.user_id)
        rows = presence.get(resource.user_id, ())
        answer = decide(living, rows, self._after_s(resource), self._awake_since(body), now, warm=resource.warm)
        return isinstance(answer, Sleep)

    async def _fall_asleep(
        self,
        user: NamespacedName,
        resource: UserRealtime,
        body: Mapping[str, Any],
        activators: Endpoints,
        finding: ConditionResult,
    ) -> Plan:
        try:
            if not await self._is_idle(resource, body):
                return Plan(finding)
        except DatabaseError as error:
            return Plan(_unknown(error), look_again_s=DATABASE_S)
        self._settling[user] = _Settling(rfc3339(self._now(), "microseconds"), wake_requested(body))
        return Plan(finding, slice=True, activators=activators, look_again_s=SETTLE_S)

    async def _settle(
        self,
        user: NamespacedName,
        settling: _Settling,
        resource: UserRealtime,
        body: Mapping[str, Any],
        live: Live,
        activators: Endpoints,
        finding: ConditionResult,
    ) -> Plan:
        if live["EndpointSlice"] is None:
            settling.due = None
        elif settling.due is None:
            settling.due = self._clock() + SETTLE_S
        left = SETTLE_S if settling.due is None else settling.due - self._clock()
        unchanged = wake_requested(body) == settling.wake_seen
        if left > 0 and unchanged:
            return Plan(finding, slice=True, activators=activators, look_again_s=left)
        del self._settling[user]
        try:
            if unchanged and await self._is_idle(resource, body):
                sleeping = Asleep(settling.since, settling.wake_seen)
                return Plan(_asleep(), sleeping, slice=True, activators=activators)
        except DatabaseError as error:
            return Plan(_unknown(error), look_again_s=DATABASE_S)
        return Plan(finding)

    async def _served(self, user: NamespacedName, live: Live, activators: Endpoints | None, plan: Plan) -> Plan:
        """Whether the slice, which is there, may go."""
        service = live["Service"]
        if service is not None and pod_available(live["Deployment"]):
            found = await self._api.endpoint_slices(service["metadata"]["namespace"], service["metadata"]["name"])
            if ready_addresses(each for each in found if not _is_ours(each)):
                began = self._waking.pop(user, None)
                if began is not None:
                    self._metrics.wake_seconds.observe(max(0.0, (self._now() - began).total_seconds()))
                return plan
            look_again_s: float | None = ENDPOINT_S
        else:
            look_again_s = plan.look_again_s  # the Deployment's own change brings us back
        return Plan(plan.finding, slice=True, activators=activators, look_again_s=look_again_s)


def _asleep() -> ConditionResult:
    return ConditionResult(True, "Idle", "nobody is connected; the next connection wakes the user")


def _unknown(error: DatabaseError) -> ConditionResult:
    return ConditionResult(False, "DatabaseUnavailable", f"who is connected cannot be known: {error}")


def _is_ours(each: Mapping[str, Any]) -> bool:
    labels: Mapping[str, str] = each["metadata"].get("labels", {})
    return SLICES_MANAGED_BY.items() <= labels.items()
