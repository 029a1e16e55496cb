"""Writes the status of a resource, and the Events about its changes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from userrealtime_core.auth.sealed_keys import Seal
from userrealtime_operator.kube.client import Api, ApiError
from userrealtime_operator.kube.timestamps import rfc3339
from userrealtime_operator.model.conditions import ConditionResult, readiness
from userrealtime_operator.model.naming import instance_name
from userrealtime_operator.model.resource import SEALED_KEYS, ResourceIdentity
from userrealtime_operator.model.routes import Route
from userrealtime_operator.process.metrics import Metrics
from userrealtime_operator.sleep.controller import Plan

from .contests import contested
from .events import events, transition
from .status import TOO_MANY_LISTENERS, differs, next_status
from .userrealtimes import patch_status

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a reconciliation has found, for the status of the resource."""

    route: Route | None
    pod: ConditionResult
    progress: ConditionResult
    database: ConditionResult
    plan: Plan | None = None
    """The plan of sleep; None if it is unknown."""
    contests: Collection[tuple[str, str]] = ()
    """The fields that something else sets, each with the part that has it."""
    token_keys: Mapping[str, str] | None = None
    """The token keys by their names in the user's Secret; None if they are unknown."""


class StatusWriter:
    """Writes a status only if it has changed.

    Args:
        seal: encrypts the token keys for the activator. None: the activator reads the users' Secrets.
    """

    def __init__(self, api: Api, metrics: Metrics, now: Callable[[], datetime], seal: Seal | None) -> None:
        self._api = api
        self._metrics = metrics
        self._now = now
        self._seal = seal
        self._instance = instance_name()

    async def write(
        self,
        resource: ResourceIdentity,
        previous: Mapping[str, Any],
        outcome: Outcome,
        *,
        too_many_listeners: bool,
    ) -> None:
        """Write the status that follows from an outcome, if it differs from `previous`.

        Args:
            too_many_listeners: the user's pod listens, and too many pods do.

        Raises:
            ApiError: the status was not written.
        """
        plan = outcome.plan
        results = {
            "Ready": readiness(outcome.pod, outcome.database),
            "Progressing": outcome.progress,
            "DatabaseReady": outcome.database,
        }
        if plan is not None:
            results["Asleep"] = plan.condition
        if outcome.contests:
            results["Contested"] = contested(outcome.contests)
        if too_many_listeners:
            results["ListenersWithinLimit"] = TOO_MANY_LISTENERS
        now = self._now()
        asleep_since = plan.asleep.since if plan and plan.asleep else None
        status = next_status(
            resource, previous, outcome.route, results, rfc3339(now), asleep_since, plan.state if plan else None
        )
        if self._seal is not None and outcome.token_keys is not None:
            status[SEALED_KEYS] = self._seal.seal(resource.uid, outcome.token_keys)
        elif self._seal is None and SEALED_KEYS in previous:
            status[SEALED_KEYS] = None
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
