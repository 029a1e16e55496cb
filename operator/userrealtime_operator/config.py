"""What the platform decides for all users: the operator's configuration file, plus `DATABASE_URL` from the environment.

The file is YAML, written by the Helm chart from its values; a password does not belong in it.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .routes import RouteError, parse_url_template

Json = dict[str, Any]

DEFAULT_URL = "http://localhost/{name}"


class ConfigError(ValueError):
    """The configuration cannot be used; the message lists every fault found, with the way out."""


@dataclass(frozen=True, slots=True)
class RelayDefaults:
    """How a user's pod runs where its resource does not say otherwise."""

    image: str
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    max_concurrent_rollouts: int = 20
    # Measured: an idle relay holds under 40 MiB; the ring and a full catch-up of clients add a few more.
    resources: Json = field(
        default_factory=lambda: {"requests": {"cpu": "10m", "memory": "48Mi"}, "limits": {"memory": "128Mi"}}
    )


class RouteType(enum.StrEnum):
    """What leads a user's clients to the user's Service."""

    INGRESS = "Ingress"
    """An Ingress a user."""
    HTTP_ROUTE = "HTTPRoute"
    """An HTTPRoute of the Gateway API a user."""
    EDGE = "Edge"
    """No object a user: one proxy for all, which finds the Service by its DNS name."""


@dataclass(frozen=True, slots=True)
class RouteDefaults:
    """How users are reached. `url` is a template, see `routes`; `gateway` is a parentRef of the Gateway API."""

    enabled: bool = True
    type: RouteType = RouteType.INGRESS
    url: str = DEFAULT_URL
    gateway: Mapping[str, str] = field(default_factory=dict)
    class_name: str | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)
    tls_secret_name: str | None = None


@dataclass(frozen=True, slots=True)
class Config:
    """The operator's whole configuration. `database_url` is hidden from `repr`, since it holds a password."""

    namespaces: tuple[str, ...]
    relay: RelayDefaults
    route: RouteDefaults
    database_url: str = field(repr=False)


# The file's names, each with the attribute it sets and the type it must have.
_RELAY = {
    "image": ("image", str),
    "imagePullPolicy": ("image_pull_policy", str),
    "imagePullSecrets": ("image_pull_secrets", list),
    "maxConcurrentRollouts": ("max_concurrent_rollouts", int),
    "resources": ("resources", dict),
}
_ROUTE = {
    "enabled": ("enabled", bool),
    "type": ("type", str),
    "gateway": ("gateway", dict),
    "url": ("url", str),
    "className": ("class_name", str),
    "annotations": ("annotations", dict),
    "tlsSecretName": ("tls_secret_name", str),
}

_GATEWAY = ("name", "namespace", "sectionName")


def _section(document: Json, name: str, known: Mapping[str, tuple[str, type]], faults: list[str]) -> Json:
    section = document.get(name) or {}
    if not isinstance(section, dict):
        faults.append(f"{name}: must be a mapping")
        return {}
    values: Json = {}
    for key, value in section.items():
        if key not in known:
            faults.append(f"{name}.{key}: unknown; known are {', '.join(known)}")
        elif not isinstance(value, known[key][1]):
            faults.append(f"{name}.{key}: must be of type {known[key][1].__name__}, not {type(value).__name__}")
        elif value not in ("", [], {}):  # an empty value of the chart means: the default
            values[known[key][0]] = tuple(value) if isinstance(value, list) else value
    return values


def parse_config(text: str, environment: Mapping[str, str]) -> Config:
    """The configuration in `text` (YAML) and `environment`.

    Raises:
        ConfigError: naming every fault at once.
    """
    try:
        document = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"not valid YAML: {error}") from None
    if not isinstance(document, dict):
        raise ConfigError("the configuration must be a mapping with namespaces, relay and route")
    faults = [
        f"{key}: unknown; known are namespaces, relay, route"
        for key in document
        if key not in ("namespaces", "relay", "route")
    ]
    namespaces = document.get("namespaces")
    if not isinstance(namespaces, list) or not namespaces or not all(isinstance(n, str) and n for n in namespaces):
        faults.append("namespaces: a list of at least one namespace to serve is required")
        namespaces = []
    relay = _section(document, "relay", _RELAY, faults)
    if "image" not in relay:
        faults.append("relay.image: required, the image of the users' pods")
    route = _section(document, "route", _ROUTE, faults)
    if relay.get("max_concurrent_rollouts", 1) < 1:
        faults.append("relay.maxConcurrentRollouts: must be at least 1")
    try:
        parse_url_template(route.get("url", DEFAULT_URL))
    except RouteError as error:
        faults.append(f"route.url: {error}")
    if "type" in route:
        try:
            route["type"] = RouteType(route["type"])
        except ValueError:
            faults.append(f"route.type: must be one of {', '.join(RouteType)}")
    faults += [
        f"route.gateway.{key}: must be one of {', '.join(_GATEWAY)}, with a text"
        for key, value in route.get("gateway", {}).items()
        if key not in _GATEWAY or not isinstance(value, str)
    ]
    if route.get("type") == RouteType.HTTP_ROUTE and not route.get("gateway", {}).get("name"):
        faults.append("route.gateway.name: required with route.type HTTPRoute, the Gateway that the routes attach to")
    database_url = environment.get("DATABASE_URL", "")
    if not database_url.startswith(("postgresql://", "postgres://")):
        faults.append("DATABASE_URL: must be set in the environment, to a postgresql:// URL")
    if faults:
        raise ConfigError("\n".join(faults))
    return Config(tuple(namespaces), RelayDefaults(**relay), RouteDefaults(**route), database_url)


def load_config(path: Path, environment: Mapping[str, str] = os.environ) -> Config:
    """`parse_config` of a file.

    Raises:
        ConfigError: also when the file cannot be read.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    return parse_config(text, environment)
