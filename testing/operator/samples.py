"""A resource and a configuration for tests."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from testing.operator.names import NAMES
from userrealtime_operator.config import Config, CredentialsType, DatabaseAccess, RelayDefaults, RouteDefaults
from userrealtime_operator.kube.types import Object
from userrealtime_operator.manifests.secrets import Secrets
from userrealtime_operator.model.naming import part_of
from userrealtime_operator.model.resource import UserRealtime, parse_resource
from userrealtime_operator.secrets.token_keys import TokenKeys

CONFIG = Config(
    namespaces=("users",),
    relay=RelayDefaults(image="relay:1", allowed_images=("mine:*",)),
    route=RouteDefaults(
        url="https://realtime.example.com/{name}", class_name="traefik", allowed_hosts=("*.example.com",)
    ),
    database_url="postgresql://relay:hunter2@db/app",
    database=DatabaseAccess(CredentialsType.SHARED),
)
KEYS = TokenKeys(current="key-" * 10, signs_since=datetime(2026, 1, 2, tzinfo=UTC), series="series one")
SECRETS = Secrets(token_keys=KEYS, database_url=CONFIG.database_url)


def body(name: str = "alice", *, limits: Object | None = None, **spec: Any) -> Object:
    """Return a UserRealtime as the API server returns it, with its defaults."""
    return {
        "apiVersion": "userrealtime.dev/v1alpha1",
        "kind": "UserRealtime",
        "metadata": {"name": name, "namespace": "users", "uid": f"uid-of-{name}", "generation": 1},
        "spec": {
            "userId": name,
            "relay": {},
            "limits": {
                "connections": 100,
                "messageBytes": 65536,
                "messagesPerSecond": 100,
                "broadcastsPerSecond": 0,
                **(limits or {}),
            },
            "route": {"enabled": True},
            "idle": {"warm": False},
            **spec,
        },
    }


def by_part(objects: Iterable[Object]) -> dict[str, Object]:
    """Return the objects of a user by part, see `model.naming`."""
    return {part_of(item["kind"], item["metadata"]["name"]): item for item in objects}


def resource(name: str = "alice", **spec: Any) -> UserRealtime:
    return parse_resource(body(name, **spec), NAMES)
