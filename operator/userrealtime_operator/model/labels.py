"""Labels, annotations and ports by which the operator, the activator and others find a user's objects."""

from __future__ import annotations

from userrealtime_operator.kube.types import FIELD_MANAGER

MANAGER = FIELD_MANAGER
MANAGED_BY = {"app.kubernetes.io/managed-by": MANAGER}
SLICES_MANAGED_BY = {"endpointslice.kubernetes.io/managed-by": MANAGER}
"""The label of the operator's EndpointSlices. The cluster's own slices also have the label `MANAGED_BY`, which they
copy from their Service."""
RELAY = {"app.kubernetes.io/name": "userrealtime-relay"}
WS_PORT = 8080

TOKEN_KEY_ROTATION_ANNOTATION = "userrealtime.dev/rotate-token-key"  # noqa: S105  (no secret)
"""On a UserRealtime, a new value requests a new token key. On the Secret, it is the last request that was fulfilled."""
PASSWORD_ROTATION_ANNOTATION = "userrealtime.dev/rotate-database-password"  # noqa: S105  (no secret)
"""On a UserRealtime, a new value requests a new database password. On the Secret, it is the last request that was
fulfilled."""

ADOPTION_ANNOTATION = "userrealtime.dev/adopt-secret"
"""On a UserRealtime, the uid of a Secret of another creator whose keys the user keeps."""
REQUESTER_ANNOTATION = "userrealtime.dev/requested-by"
"""On a UserRealtime, the account of the last change. The chart's ValidatingAdmissionPolicy verifies it."""
RESOURCE_ANNOTATIONS = frozenset(
    {TOKEN_KEY_ROTATION_ANNOTATION, PASSWORD_ROTATION_ANNOTATION, ADOPTION_ANNOTATION, REQUESTER_ANNOTATION}
)
"""The annotations of a UserRealtime that the operator reads."""


def owned_labels(kind: str) -> dict[str, str]:
    """Return the labels that select the operator's objects of a kind."""
    return SLICES_MANAGED_BY if kind == "EndpointSlice" else MANAGED_BY
