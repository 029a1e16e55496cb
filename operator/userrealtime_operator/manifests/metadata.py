"""The metadata that all objects of a user share."""

from __future__ import annotations

import hashlib
import json

from userrealtime_operator.kube.types import Object
from userrealtime_operator.model.labels import MANAGED_BY, RELAY
from userrealtime_operator.model.resource import API_VERSION, KIND, UserRealtime


def digest(value: object) -> str:
    """Return a short SHA-256 of the canonical JSON of a value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


def metadata_of(resource: UserRealtime) -> Object:
    return {
        "name": resource.child_name,
        "namespace": resource.namespace,
        "labels": {**MANAGED_BY, **selector_of(resource), "app.kubernetes.io/component": "relay"},
        "annotations": {"userrealtime.dev/user-id": resource.user_id},
        "ownerReferences": [
            {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "name": resource.name,
                "uid": resource.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }


def selector_of(resource: UserRealtime) -> dict[str, str]:
    return {**RELAY, "app.kubernetes.io/instance": resource.child_name}
