"""A resource and its objects, as cached when a reconciliation begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from userrealtime_operator.kube.types import NamespacedName
from userrealtime_operator.model.resource import UserRealtime

from .children import Live


@dataclass(frozen=True, slots=True)
class Observed:
    """What one reconciliation starts from."""

    resource: UserRealtime
    body: Mapping[str, Any]
    """The resource as the API server returned it."""
    live: Mapping[str, Live]
    """The objects of the user, by part: see `model.naming`."""

    @property
    def user(self) -> NamespacedName:
        """The namespace and the name of the resource."""
        return NamespacedName(self.resource.namespace, self.resource.name)

    @property
    def status(self) -> Mapping[str, Any]:
        """The status of the resource."""
        status: Mapping[str, Any] = self.body.get("status", {})
        return status
