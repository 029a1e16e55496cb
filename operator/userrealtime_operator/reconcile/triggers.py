"""Which tasks a change leads to. Pure: it only reads the caches."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from userrealtime_operator.kube.store import ObjectStore
from userrealtime_operator.kube.types import NamespacedName, ObjectKey
from userrealtime_operator.model.naming import child_of, object_name
from userrealtime_operator.sleep.state import has_ready, wake_pending

from .resources import Resources


class Kind(enum.StrEnum):
    """The kind of a task."""

    RESOURCE = "resource"
    """Bring a user's objects to the state that the resource describes."""
    SWEEP = "sweep"
    """Remove the registrations, logs and roles of a namespace's deleted resources from the database."""
    PRUNE = "prune"
    """Delete events and messages that are older than the configured retention."""
    IDLE = "idle"
    """Find the users of a namespace that may sleep."""
    ORPHAN = "orphan"
    """Delete the objects with a name that belong to no resource."""


class Task(NamedTuple):
    """A key of the work queue."""

    kind: Kind
    namespace: str = ""
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}".rstrip("/")


class Trigger(NamedTuple):
    """A task to add to the work queue; an urgent one goes first."""

    task: Task
    urgent: bool = False


class Triggers:
    """The tasks that follow from each kind of change."""

    def __init__(self, resources: Resources, children: ObjectStore) -> None:
        self._resources = resources
        self._children = children

    def user(self, user: NamespacedName) -> Trigger:
        """Return the task of a user. It is urgent if a connection waits for the user to wake."""
        body, child = self._resources.get(user), self._resources.child_name(user)
        urgent = False
        if body is not None and child is not None:
            deployment = self._children.get(ObjectKey("Deployment", user.namespace, child))
            urgent = wake_pending(body, deployment)
        return Trigger(Task(Kind.RESOURCE, *user), urgent)

    def resource_deleted(self, namespace: str) -> Trigger:
        """Return the task that follows the deletion of a resource."""
        return Trigger(Task(Kind.SWEEP, namespace))

    def child_changed(self, key: ObjectKey) -> Iterator[Trigger]:
        """Yield the tasks of the users whose object has changed, or of an object without a user.

        The object is matched by its name and not by its owner reference, which may be the part that was removed.
        """
        child = child_of(key.kind, key.name)
        owners = self._resources.owners(key.namespace, child)
        if not owners:
            yield Trigger(Task(Kind.ORPHAN, key.namespace, child))
        for name in owners:
            yield self.user(NamespacedName(key.namespace, name))

    def activators_changed(self) -> Iterator[Trigger]:
        """Yield the tasks of all users, because each Service has a slice with the activators.

        The users whose connections reach activators now are first: their slices must not keep an old address.
        """
        on_standby: list[Trigger] = []
        for place in self._resources:
            trigger = self.user(NamespacedName(*place))
            if self._reaches_activators(place):
                yield trigger
            else:
                on_standby.append(trigger)
        yield from on_standby

    def lead(self, namespaces: Sequence[str], *, sleep: bool) -> Iterator[Trigger]:
        """Yield the tasks of a new leader: all users, all orphans, and the periodic tasks.

        Args:
            sleep: users may sleep.
        """
        for namespace in namespaces:
            yield Trigger(Task(Kind.SWEEP, namespace))
            if sleep:
                yield Trigger(Task(Kind.IDLE, namespace))
        yield Trigger(Task(Kind.PRUNE))
        for place in self._resources:
            yield self.user(NamespacedName(*place))
        for key in self._children:
            child = child_of(key.kind, key.name)
            if not self._resources.owners(key.namespace, child):
                yield Trigger(Task(Kind.ORPHAN, key.namespace, child))

    def _reaches_activators(self, place: tuple[str, str]) -> bool:
        child = self._resources.child_name(NamespacedName(*place))
        if child is None:
            return False
        name = object_name("EndpointSlice", child)
        return has_ready(self._children.get(ObjectKey("EndpointSlice", place[0], name)))
