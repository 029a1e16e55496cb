"""The reasons for which a resource cannot be served."""

from __future__ import annotations

from typing import ClassVar


class ResourceError(ValueError):
    """A resource cannot be served until it, or the platform, changes. Base class.

    It becomes the condition `Ready`, with `reason` and the error's text.
    """

    reason: ClassVar[str]


class SpecError(ResourceError):
    """The stored spec cannot be parsed."""

    reason = "InvalidSpec"


class Conflict(ResourceError):
    """Another resource owns the objects of this user."""

    reason = "DuplicateUserId"


class RouteConflict(ResourceError):
    """The URL of this user equals, contains or lies below the URL of another user."""

    reason = "RouteConflict"


class ServedElsewhere(ResourceError):
    """Another namespace, or another cluster, serves the user from the same database."""

    reason = "UserServedElsewhere"
