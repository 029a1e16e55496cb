"""A resource and a configuration, as tests like to have them."""

from __future__ import annotations

from typing import Any

from userrealtime_operator.config import Config, RelayDefaults, RouteDefaults
from userrealtime_operator.desired import Object, Secrets
from userrealtime_operator.resource import UserRealtime, parse_resource

CONFIG = Config(
    namespaces=("users",),
    relay=RelayDefaults(image="relay:1"),
    route=RouteDefaults(url="https://realtime.example.com/{name}", class_name="traefik"),
    database_url="postgresql://relay:hunter2@db/app",
)
SECRETS = Secrets(token_key="key-" * 10, database_url=CONFIG.database_url)


def body(name: str = "alice", **spec: Any) -> Object:
    """A UserRealtime as the API server would give it, defaults filled in."""
    return {
        "apiVersion": "userrealtime.dev/v1alpha1",
        "kind": "UserRealtime",
        "metadata": {"name": name, "namespace": "users", "uid": f"uid-of-{name}", "generation": 1},
        "spec": {
            "userId": name,
            "relay": {},
            "limits": {"connections": 100, "messageBytes": 65536},
            "route": {"enabled": True},
            **spec,
        },
    }


def resource(name: str = "alice", **spec: Any) -> UserRealtime:
    return parse_resource(body(name, **spec))
