"""The path of changes from the watches to the caches and the work queue."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, Final

from userrealtime_operator.kube.store import ObjectStore
from userrealtime_operator.kube.types import NamespacedName, Object, ObjectKey
from userrealtime_operator.model.resource import KIND

from .resources import Resources
from .triggers import Task, Trigger, Triggers
from .workqueue import WorkQueue

GATHER_S: Final = 0.1
"""Seconds for which changes of a user's objects are gathered. A new pod alone changes its Deployment's status four
times."""


class Feed:
    """Receives all changes, and adds the tasks that follow from them to the queue.

    Until the caches are complete, no task is added, because a resource without its children would be taken for a new
    one. A new leader begins with all resources.
    """

    def __init__(self, resources: Resources, children: ObjectStore, queue: WorkQueue[Task]) -> None:
        self._resources = resources
        self._children = children
        self._queue = queue
        self._triggers = Triggers(resources, children)
        self._synced = asyncio.Event()

    @property
    def has_synced(self) -> bool:
        """Whether the caches are complete."""
        return self._synced.is_set()

    def mark_synced(self) -> None:
        """Record that the caches are complete."""
        self._synced.set()

    async def wait_for_sync(self) -> None:
        """Wait until the caches are complete."""
        await self._synced.wait()

    def resource_event(self, event_type: str | None, item: Mapping[str, Any]) -> None:
        """Apply an event of the watch of resources. The type is None for the items of a list."""
        user = NamespacedName(item["metadata"]["namespace"], item["metadata"]["name"])
        if event_type == "DELETED":
            self._resources.remove(*user, item["metadata"]["uid"])
            self._add([self._triggers.resource_deleted(user.namespace)])
        elif self._resources.put(item, listed=event_type is None) and self.has_synced:
            self.requeue(user)

    def child_changed(self, key: ObjectKey) -> None:
        """Add the tasks that follow from a change of a child, which the cache already has."""
        if self.has_synced:
            self._add(self._triggers.child_changed(key), gather=True)

    def stored(self, item: Object) -> None:
        """Store the response to a write of this process in the cache. The watch event for the write is then ignored."""
        kind, user = item["kind"], NamespacedName(item["metadata"]["namespace"], item["metadata"]["name"])
        if kind == KIND:
            if self._resources.put(item, ours=True):
                self.requeue(user)  # another process has changed it in the meantime
        elif self._children.put(ObjectKey(kind, *user), item, ours=True) and kind == "EndpointSlice":
            # The next step of sleep or wake waits for the slice.
            self.child_changed(ObjectKey(kind, *user))

    def activators_changed(self) -> None:
        """Add the tasks that follow from a change of the ready activators."""
        self._add(list(self._triggers.activators_changed()))

    def requeue(self, user: NamespacedName) -> None:
        """Add the task of a user."""
        self._add([self._triggers.user(user)])

    def lead(self, namespaces: tuple[str, ...], *, sleep: bool) -> None:
        """Add the tasks of a new leader."""
        self._add(list(self._triggers.lead(namespaces, sleep=sleep)))

    def _add(self, triggers: Iterable[Trigger], *, gather: bool = False) -> None:
        """Add tasks; with `gather`, those that are not urgent after a delay."""
        for trigger in triggers:
            if gather and not trigger.urgent:
                self._queue.add_later(trigger.task, GATHER_S)
            else:
                self._queue.add(trigger.task, urgent=trigger.urgent)
