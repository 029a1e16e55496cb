"""The PodDisruptionBudget of a user with several pods."""

from __future__ import annotations

from userrealtime_operator.kube.types import Object
from userrealtime_operator.model.resource import UserRealtime

from .metadata import metadata_of, selector_of


def disruption_budget_of(resource: UserRealtime) -> Object:
    """Return the PodDisruptionBudget, which lets a drain evict at most one pod at a time."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata_of(resource),
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": selector_of(resource)},
            # A pod that serves no client, because the database is unavailable, does not block a drain.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }
