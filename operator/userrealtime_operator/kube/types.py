"""Types of Kubernetes objects and of their names, and the error that asks for a later retry."""

from __future__ import annotations

from typing import Any, NamedTuple

Object = dict[str, Any]
"""An object of the Kubernetes API, as decoded from JSON."""

FIELD_MANAGER = "userrealtime-operator"
"""The name under which the operator writes the fields of objects."""


class NamespacedName(NamedTuple):
    """The namespace and the name of an object."""

    namespace: str
    name: str


class ResourceType(NamedTuple):
    """A kind of object, as the paths of the API name it, for example `v1` and `services`."""

    api_version: str
    plural: str


class ObjectKey(NamedTuple):
    """The kind, the namespace and the name of an object."""

    kind: str
    namespace: str
    name: str


class TryLater(RuntimeError):
    """A failure with the time before which a retry is useless: `after_s`, in seconds."""

    def __init__(self, message: str, after_s: float = 0.0) -> None:
        super().__init__(message)
        self.after_s = after_s
