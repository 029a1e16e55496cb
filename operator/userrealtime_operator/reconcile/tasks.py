"""The work behind each task of the queue."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from userrealtime_operator.config import Log
from userrealtime_operator.kube.types import NamespacedName
from userrealtime_operator.postgres.database import Database, DatabaseError
from userrealtime_operator.postgres.retention import limit_inbox, prune
from userrealtime_operator.process.metrics import Metrics

from .reconciler import Reconciler
from .resources import Resources
from .triggers import Kind, Task

logger = logging.getLogger(__name__)

IDLE_INTERVAL_S = 15.0
SWEEP_INTERVAL_S = 300.0
PRUNE_INTERVAL_S = 60.0


class Tasks:
    """Runs tasks. `requeue` adds the task of a user to the queue."""

    def __init__(
        self,
        reconciler: Reconciler,
        resources: Resources,
        database: Database,
        log: Log,
        scopes: Sequence[str],
        requeue: Callable[[NamespacedName], None],
        metrics: Metrics,
    ) -> None:
        self._reconciler = reconciler
        self._resources = resources
        self._database = database
        self._log = log
        self._scopes = scopes
        self._requeue = requeue
        self._metrics = metrics

    async def run(self, task: Task) -> float | None:
        """Run a task and count it; return the seconds after which it is due again, None if no time is set.

        Raises:
            ApiError, DatabaseError: the task failed, and is retried.
        """
        started, result = time.perf_counter(), "error"
        try:
            due_s = await self._run(task)
            result = "success"
        except DatabaseError:
            self._metrics.database_failures.inc()
            raise
        finally:
            self._metrics.reconciles.labels(task.kind, result).inc()
            self._metrics.duration.labels(task.kind).observe(time.perf_counter() - started)
        return due_s

    async def _run(self, task: Task) -> float | None:
        match task.kind:
            case Kind.RESOURCE:
                return await self._reconciler.reconcile(task.namespace, task.name)
            case Kind.SWEEP:
                await self._sweep(task.namespace)
                return SWEEP_INTERVAL_S
            case Kind.PRUNE:
                self._metrics.full_inboxes.set(await limit_inbox(self._database, self._log.inbox))
                events, messages = await prune(self._database, self._log.retention, self._scopes)
                if events or messages:
                    logger.info("removed %d events and %d messages (log.retention)", events, messages)
                return PRUNE_INTERVAL_S
            case Kind.IDLE:
                bodies = (self._resources.get(place) for place in list(self._resources) if place[0] == task.namespace)
                # A generator, because a list of all decoded resources would need most of the process's memory.
                await self._reconciler.find_idle(task.namespace, (body for body in bodies if body is not None))
                return IDLE_INTERVAL_S
            case Kind.ORPHAN:
                if not self._resources.owners(task.namespace, task.name):
                    await self._reconciler.remove_orphans(task.namespace, task.name)
                return None

    async def _sweep(self, namespace: str) -> None:
        known = self._resources.uids(namespace)
        existing = await self._reconciler.sweep(namespace)
        for uid, name in known.items():
            if uid not in existing:  # a watch that starts again does not report deletions in the meantime
                self._resources.remove(namespace, name, uid)
            elif not self._reconciler.is_registered(uid):
                self._requeue(NamespacedName(namespace, name))
