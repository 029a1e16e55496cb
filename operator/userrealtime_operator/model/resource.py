"""A UserRealtime resource, typed. The API server has validated it and filled in the defaults of the CRD."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from userrealtime_operator.kube.duration import parse_duration
from userrealtime_operator.kube.types import ResourceType

from .errors import SpecError
from .labels import (
    ADOPTION_ANNOTATION,
    PASSWORD_ROTATION_ANNOTATION,
    REQUESTER_ANNOTATION,
    TOKEN_KEY_ROTATION_ANNOTATION,
)
from .naming import Naming

GROUP = "userrealtime.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "UserRealtime"
PLURAL = "userrealtimes"
USERREALTIMES = ResourceType(API_VERSION, PLURAL)
SEALED_KEYS = "sealedKeys"
"""The field of the status with the token keys, encrypted for the activator."""


@dataclass(frozen=True, slots=True)
class ResourceIdentity:
    """Which resource and which user: the parts that every stored resource has."""

    namespace: str
    name: str
    uid: str
    generation: int
    user_id: str
    child_name: str
    """The name of the user's Deployment, Service, Secret and Ingress."""


@dataclass(frozen=True, slots=True)
class UserRealtime(ResourceIdentity):
    """The parts of a resource that the operator uses. Optional fields that are absent are None."""

    replicas: int
    image: str | None
    resources: Mapping[str, Any] | None
    max_connections: int
    max_message_bytes: int
    max_messages_per_second: int
    max_broadcasts_per_second: int
    log_level: str | None
    signal: str | None
    protocols: tuple[str, ...] | None
    """The protocols of other systems that the user's pod serves."""
    key_rotation: str | None
    """The value of the annotation that requests a new token key."""
    password_rotation: str | None
    """The value of the annotation that requests a new database password."""
    adopted_secret: str | None
    """The uid of a Secret of another creator whose contents the user keeps."""
    route_enabled: bool
    route_url: str | None
    idle_after_s: float | None
    """Seconds without a client after which the user sleeps; 0 is never."""
    idle_park_after_s: float | None
    """Seconds without traffic after which the clients are parked; 0 is never."""
    warm: bool
    """Whether the user never sleeps."""
    requested_by: str | None
    """The account of the last change, as the annotation states it."""
    field_managers: tuple[str, ...]
    """The programs that set the spec or an annotation, by their own statement, the last one first."""


def parse_identity(body: Mapping[str, Any], naming: Naming) -> ResourceIdentity:
    """Parse the part of a resource that identifies it."""
    metadata = body["metadata"]
    return ResourceIdentity(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        generation=metadata["generation"],
        user_id=body["spec"]["userId"],
        child_name=naming.child_name(body["spec"]["userId"]),
    )


def parse_resource(body: Mapping[str, Any], naming: Naming) -> UserRealtime:
    """Parse a resource as the API server returns it: validated, and with the defaults of the CRD.

    Raises:
        SpecError: a field is missing or invalid. The likely cause is a CRD that is older than the operator.
    """
    try:
        return _parse(body, naming)
    except KeyError as error:
        problem = f"a required field is missing: {error.args[0]}"
    except (ValueError, TypeError, AttributeError) as error:
        problem = str(error)
    raise SpecError(
        f"the stored spec cannot be parsed ({problem}); if the CRD is older than the operator, apply the current one"
    )


def _parse(body: Mapping[str, Any], naming: Naming) -> UserRealtime:
    metadata, spec = body["metadata"], body["spec"]
    idle = spec.get("idle", {})
    return UserRealtime(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        generation=metadata["generation"],
        user_id=spec["userId"],
        child_name=naming.child_name(spec["userId"]),
        replicas=spec.get("replicas", 1),
        image=spec["relay"].get("image"),
        resources=spec["relay"].get("resources"),
        max_connections=spec["limits"]["connections"],
        max_message_bytes=spec["limits"]["messageBytes"],
        max_messages_per_second=spec["limits"]["messagesPerSecond"],
        max_broadcasts_per_second=spec["limits"]["broadcastsPerSecond"],
        log_level=spec["relay"].get("logLevel"),
        signal=spec["relay"].get("signal"),
        protocols=tuple(spec["protocols"]) if "protocols" in spec else None,
        key_rotation=metadata.get("annotations", {}).get(TOKEN_KEY_ROTATION_ANNOTATION) or None,
        password_rotation=metadata.get("annotations", {}).get(PASSWORD_ROTATION_ANNOTATION) or None,
        adopted_secret=metadata.get("annotations", {}).get(ADOPTION_ANNOTATION) or None,
        route_enabled=spec["route"]["enabled"],
        route_url=spec["route"].get("url"),
        idle_after_s=parse_duration(idle["after"]) if "after" in idle else None,
        idle_park_after_s=parse_duration(idle["parkAfter"]) if "parkAfter" in idle else None,
        warm=idle.get("warm", False),
        requested_by=metadata.get("annotations", {}).get(REQUESTER_ANNOTATION) or None,
        field_managers=tuple(each["manager"] for each in metadata.get("managedFields", ())),
    )
