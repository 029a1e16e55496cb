"""A UserRealtime resource, typed. The API server has validated it and filled in the defaults of the CRD."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from userrealtime_operator.kube.duration import parse_duration
from userrealtime_operator.kube.types import ResourceType

from .labels import PASSWORD_ROTATION_ANNOTATION, TOKEN_KEY_ROTATION_ANNOTATION
from .naming import child_name

GROUP = "userrealtime.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "UserRealtime"
PLURAL = "userrealtimes"
USERREALTIMES = ResourceType(API_VERSION, PLURAL)


@dataclass(frozen=True, slots=True)
class UserRealtime:
    """The parts of a resource that the operator uses. None means not set."""

    namespace: str
    name: str
    uid: str
    generation: int
    user_id: str
    replicas: int
    image: str | None
    resources: Mapping[str, Any] | None
    max_connections: int
    max_message_bytes: int
    max_messages_per_second: int
    log_level: str | None
    signal: str | None
    key_rotation: str | None
    """The value of the annotation that requests a new token key."""
    password_rotation: str | None
    """The value of the annotation that requests a new database password."""
    route_enabled: bool
    route_url: str | None
    idle_after_s: float | None
    """Seconds without a client after which the user sleeps; 0 is never."""
    warm: bool
    """Whether the user never sleeps."""

    @property
    def child_name(self) -> str:
        """The name of the user's Deployment, Service, Secret and Ingress."""
        return child_name(self.user_id)


def parse_resource(body: Mapping[str, Any]) -> UserRealtime:
    """Return a resource from the object of the API server.

    Raises:
        KeyError: it was stored before the CRD had the field's default; apply it again.
        ValueError: likewise, with a duration that is none.
    """
    metadata, spec = body["metadata"], body["spec"]
    idle = spec.get("idle", {})
    return UserRealtime(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        generation=metadata["generation"],
        user_id=spec["userId"],
        replicas=spec.get("replicas", 1),
        image=spec["relay"].get("image"),
        resources=spec["relay"].get("resources"),
        max_connections=spec["limits"]["connections"],
        max_message_bytes=spec["limits"]["messageBytes"],
        max_messages_per_second=spec["limits"]["messagesPerSecond"],
        log_level=spec["relay"].get("logLevel"),
        signal=spec["relay"].get("signal"),
        key_rotation=metadata.get("annotations", {}).get(TOKEN_KEY_ROTATION_ANNOTATION) or None,
        password_rotation=metadata.get("annotations", {}).get(PASSWORD_ROTATION_ANNOTATION) or None,
        route_enabled=spec["route"]["enabled"],
        route_url=spec["route"].get("url"),
        idle_after_s=parse_duration(idle["after"]) if "after" in idle else None,
        warm=idle.get("warm", False),
    )
