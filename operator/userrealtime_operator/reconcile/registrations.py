"""The registrations of users in the database."""

from __future__ import annotations

import logging
from collections.abc import Callable

from userrealtime_operator.kube.client import Api
from userrealtime_operator.model.conditions import ConditionResult
from userrealtime_operator.model.errors import ServedElsewhere
from userrealtime_operator.model.resource import ResourceIdentity
from userrealtime_operator.postgres.database import Database, DatabaseError
from userrealtime_operator.postgres.health import DatabaseHealth
from userrealtime_operator.postgres.roles import Roles
from userrealtime_operator.process.metrics import Metrics

from .secrets import SecretKeeper
from .userrealtimes import resource_uids

logger = logging.getLogger(__name__)


class RegistrationSweeper:
    """Registers users, and removes the rows of users whose resources are gone."""

    def __init__(
        self,
        api: Api,
        database: Database,
        roles: Roles | None,
        keeper: SecretKeeper,
        metrics: Metrics,
        clock: Callable[[], float],
        *,
        shared_users: bool,
    ) -> None:
        self._api = api
        self._database = database
        self._health = DatabaseHealth(database, clock)
        self._roles = roles
        self._keeper = keeper
        self._metrics = metrics
        self._shared_users = shared_users
        self._registered: dict[str, str] = {}
        """The namespaces of the registered resources, by uid."""

    async def register(self, resource: ResourceIdentity) -> ConditionResult:
        """Register a user, unless it is known to be registered; return the condition `DatabaseReady`.

        Raises:
            ServedElsewhere: another namespace or cluster serves the user, and the platform does not allow sharing.
        """
        try:
            if resource.uid not in self._registered:
                scope = self._api.scope(resource.namespace)
                if not await self._database.register(resource.uid, scope, resource.user_id, shared=self._shared_users):
                    logger.warning(
                        "%s/%s has the userId of a user of another namespace or cluster; it is not served",
                        resource.namespace,
                        resource.name,
                    )
                    raise ServedElsewhere(
                        "another namespace, or another cluster with the same database, serves this userId; use another "
                        "userId, delete the other resource, or set database.sharedUsers in the chart's values"
                    )
                self._registered[resource.uid] = resource.namespace
        except DatabaseError as error:
            return self._unavailable(error)
        return ConditionResult(True, "Registered", "the user is registered in the database")

    async def check(self, known: ConditionResult) -> ConditionResult:
        """Return `known`, unless the database has become unavailable. A relay without a database is not ready."""
        error = await self._health.check()
        return known if error is None else self._unavailable(error)

    def is_registered(self, uid: str) -> bool:
        """Return whether a resource is known to be registered."""
        return uid in self._registered

    async def sweep(self, namespace: str) -> set[str]:
        """Remove the rows and roles of deleted resources of a namespace; return the uids of the existing ones.

        It also finds registrations that the database has lost: `is_registered` then returns False.

        Raises:
            ApiError, DatabaseError: the sweep is incomplete, and is retried.
        """
        # In this order, a resource that is registered after the first query is in the result of the second.
        scope = self._api.scope(namespace)
        registered = await self._database.registered(scope)
        with_roles = await self._roles.resources(scope) if self._roles else set()
        existing = await resource_uids(self._api, namespace)
        broken = await self._roles.broken(scope) if self._roles else set()
        of_here = {uid for uid, place in self._registered.items() if place == namespace}
        for uid in of_here - ((existing & registered) - broken):
            del self._registered[uid]
            self._keeper.forget(uid)
        if self._roles:
            await self._roles.sweep(scope, with_roles - existing, self._keeper.settled_roles)
        failure: DatabaseError | None = None
        for uid in registered - existing:
            try:
                await self._database.forget(uid)
            except DatabaseError as error:  # perhaps only for this user, so the others continue
                logger.warning("could not remove the rows of a deleted resource (uid %s), retrying: %s", uid, error)
                failure = error
                continue
            self._metrics.swept.inc()
            logger.info("removed the rows of a deleted resource (uid %s)", uid)
        if failure is not None:
            raise failure
        return existing

    def _unavailable(self, error: DatabaseError) -> ConditionResult:
        self._metrics.database_failures.inc()
        return ConditionResult(False, "DatabaseUnavailable", error.status)
