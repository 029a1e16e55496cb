"""What the platform decides for all users: the operator's configuration file, plus `DATABASE_URL` from the environment.

The file is YAML, written by the Helm chart from its values; a password does not belong in it.
"""

from __future__ import annotations

import enum
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from userrealtime_core.database_url import validate_database_url
from userrealtime_core.environment import validate_broker_url
from userrealtime_core.wire.cors import validate_origin

from .kube.duration import parse_duration
from .model.notifiers import DEFAULT_LISTEN_RANGE, SignalDefaults, SignalType
from .model.policies import KeyPolicy, Retention
from .model.routes import RouteError, parse_url_template

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
    settings: Mapping[str, str] = field(default_factory=dict)
    """Variables of the relay's environment, by name (docs/relay.md)."""
    pod_spec: Json = field(default_factory=dict)
    """Fields of the pod's spec, such as nodeSelector, as Kubernetes has them."""
    pod_labels: Mapping[str, str] = field(default_factory=dict)
    pod_annotations: Mapping[str, str] = field(default_factory=dict)


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


class CredentialsType(enum.StrEnum):
    """Whose database role a user's pod has."""

    PER_USER = "perUser"
    """One of its own, which reads that user's log alone. The operator's own role needs CREATEROLE for it."""
    SHARED = "shared"
    """The operator's own."""


@dataclass(frozen=True, slots=True)
class DatabaseAccess:
    """How users' pods come to the database. `rotate_after_s` is how long a password is used; None is for ever."""

    credentials: CredentialsType = CredentialsType.PER_USER
    rotate_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class IdleDefaults:
    """When users sleep whose resource does not say. `after_s` is without a client; 0 is never."""

    after_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Activator:
    """Who wakes users: the Service whose pods take the connections of those who sleep, and the pods' port for that."""

    namespace: str
    service: str
    port: int = 8080
    announce_url: str = ""
    """Where users' pods say that they listen; what follows is the namespace and the name of a user's objects. Empty:
    they do not."""


@dataclass(frozen=True, slots=True)
class Trust:
    """A ConfigMap of each of the namespaces with certificates of authorities (PEM), for TLS of users' pods."""

    config_map: str
    key: str = "ca.crt"


@dataclass(frozen=True, slots=True)
class Config:
    """The operator's whole configuration. `database_url` is hidden from `repr`, since it holds a password."""

    namespaces: tuple[str, ...]
    relay: RelayDefaults
    route: RouteDefaults
    database_url: str = field(repr=False)
    token_keys: KeyPolicy = field(default_factory=KeyPolicy)
    database: DatabaseAccess = field(default_factory=DatabaseAccess)
    retention: Retention = field(default_factory=Retention)
    idle: IdleDefaults = field(default_factory=IdleDefaults)
    activator: Activator | None = None
    """None: nobody sleeps."""
    signals: SignalDefaults = field(default_factory=SignalDefaults)
    trust: Trust | None = None
    """None: those that the image brings."""


Parser = Callable[[Any], Any]
"""From a value of the file to one of the configuration. Raises ValueError where it cannot be."""


def _one_of(*choices: str) -> Parser:
    def parse(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return str(value)

    return parse


def _duration(least_s: float, most_s: float) -> Parser:
    def parse(value: Any) -> float:
        if not isinstance(value, str):
            raise ValueError("must be a duration in quotes, such as '90s'")
        seconds = parse_duration(value)
        if not least_s <= seconds <= most_s:
            raise ValueError(f"must be from {least_s:g} to {most_s:g} seconds")
        return seconds

    return parse


def _seconds(least: float, most: float) -> Parser:
    """A duration, as the relay's environment has it."""
    parse = _duration(least, most)
    return lambda value: f"{parse(value):.6f}".rstrip("0").rstrip(".")


def _count(value: Any) -> int:
    if not isinstance(value, int) or value < 1:
        raise ValueError("must be a whole number of at least 1")
    return value


def _limit(value: Any) -> int | None:
    return None if value == 0 and isinstance(value, int) else _count(value)


def _member(kind: type[enum.StrEnum]) -> Parser:
    choice = _one_of(*kind)
    return lambda value: kind(choice(value))


def _strings(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for pair in value.items() for text in pair):
        raise ValueError("must be a mapping of strings")
    return value


def _origins(value: Any) -> str:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError("must be a list of origins such as https://app.example.com (lower case, no path), or of *")
    if (flaw := next(filter(None, map(validate_origin, value)), None)) is not None:
        raise ValueError(flaw)
    return ",".join(value)


def _jwks_url(value: Any) -> str:
    inside = r"localhost|[a-z][a-z0-9-]*|[a-z0-9.-]+\.svc(\.cluster\.local)?"
    if not re.fullmatch(rf"(https://[^\s@#/]+|http://({inside})(:\d+)?)(/[^\s#]*)?", str(value)):
        raise ValueError("must be an https:// URL without a password, or an http:// one of a Service of the cluster")
    return str(value)


_TOP = ("namespaces", "database", "log", "relay", "signals", "trust", "tokenKeys", "route", "idle", "activator")
BROKER_URL = "BROKER_URL"
# The file's names, each with the attribute or variable it sets, and its type or how it is read.
Known = Mapping[str, tuple[str, type | Parser]]
_RELAY: Known = {
    "image": ("image", str),
    "imagePullPolicy": ("image_pull_policy", str),
    "imagePullSecrets": ("image_pull_secrets", list),
    "maxConcurrentRollouts": ("max_concurrent_rollouts", _count),
    "resources": ("resources", dict),
    "podLabels": ("pod_labels", _strings),
    "podAnnotations": ("pod_annotations", _strings),
}
_SETTINGS: Known = {
    "logLevel": ("LOG_LEVEL", _one_of("debug", "info", "warning", "error")),
    "signal": ("SIGNAL", _one_of("auto", "listen", "poll")),
    "pollInterval": ("POLL_INTERVAL", _seconds(0.1, 3600)),
    "authTimeout": ("AUTH_TIMEOUT", _seconds(0.1, 300)),
    "pingInterval": ("PING_INTERVAL", _seconds(0.1, 3600)),
    "allowedOrigins": ("ALLOWED_ORIGINS", _origins),
}
_AUTH: Known = {
    "jwksUrl": ("JWKS_URL", _jwks_url),
    "issuer": ("TOKEN_ISSUER", str),
    "audience": ("TOKEN_AUDIENCE", str),
    "userClaim": ("TOKEN_USER_CLAIM", str),
    "leeway": ("TOKEN_LEEWAY", _seconds(0, 300)),
    "maxLifetime": ("TOKEN_MAX_LIFETIME", _seconds(60, 10 * 365 * 86400)),
    "allowQueryToken": ("ALLOW_QUERY_TOKEN", lambda value: "true" if _typed(value, bool) else "false"),
}
_SIGNALS: Known = {
    "type": ("type", _member(SignalType)),
    "idleAfter": ("idle_after", _seconds(0, 3600)),
    "listenRange": ("listen_range", _limit),
}
_POD: Known = {
    "nodeSelector": ("nodeSelector", _strings),
    "tolerations": ("tolerations", list),
    "affinity": ("affinity", dict),
    "topologySpreadConstraints": ("topologySpreadConstraints", list),
    "priorityClassName": ("priorityClassName", str),
    "runtimeClassName": ("runtimeClassName", str),
}
_TOKEN_KEYS: Known = {
    "rotateAfter": ("rotate_after_s", _duration(0, 100 * 366 * 86400)),
    "overlap": ("overlap_s", _duration(60, 366 * 86400)),
    "publishAhead": ("publish_ahead_s", _duration(10, 3600)),
}
_DATABASE: Known = {
    "credentials": ("credentials", _member(CredentialsType)),
    "rotateAfter": ("rotate_after_s", _duration(0, 100 * 366 * 86400)),
}
_RETENTION: Known = {
    "maxAge": ("max_age_s", _duration(1, 100 * 366 * 86400)),
    "maxEvents": ("max_events", _limit),
    "inboxMaxAge": ("inbox_max_age_s", _duration(1, 100 * 366 * 86400)),
}
_ROUTE: Known = {
    "enabled": ("enabled", bool),
    "type": ("type", _member(RouteType)),
    "gateway": ("gateway", dict),
    "url": ("url", str),
    "className": ("class_name", str),
    "annotations": ("annotations", dict),
    "tlsSecretName": ("tls_secret_name", str),
}
_IDLE: Known = {"after": ("after_s", _duration(0, 100 * 366 * 86400))}
_ACTIVATOR: Known = {
    "enabled": ("enabled", bool),
    "namespace": ("namespace", str),
    "service": ("service", str),
    "port": ("port", _count),
    "announceUrl": ("announce_url", str),
}
_TRUST: Known = {"configMap": ("config_map", str), "key": ("key", str)}
_GATEWAY: Known = {name: (name, str) for name in ("name", "namespace", "sectionName")}


def _section(document: Json, path: str, known: Known, faults: list[str]) -> Json:
    section = document.get(path.rpartition(".")[2]) or {}
    if not isinstance(section, dict):
        faults.append(f"{path}: must be a mapping")
        return {}
    values: Json = {}
    for key, value in section.items():
        if key not in known:
            faults.append(f"{path}.{key}: unknown; known are {', '.join(known)}")
            continue
        target, form = known[key]
        if value in ("", [], {}):  # an empty value of the chart means: the default
            continue
        try:
            values[target] = _typed(value, form) if isinstance(form, type) else form(value)
        except ValueError as error:
            faults.append(f"{path}.{key}: {error}")
    return values


def _typed(value: Any, form: type) -> Any:
    if not isinstance(value, form):
        raise ValueError(f"must be of type {form.__name__}, not {type(value).__name__}")
    return value


def _relay(document: Json, faults: list[str]) -> RelayDefaults:
    known: Known = {**_RELAY, **_SETTINGS, **_POD, "auth": ("auth", dict)}
    found = _section(document, "relay", known, faults)
    if "image" not in found:
        faults.append("relay.image: required, the image of the users' pods")
    auth = _section(found, "relay.auth", _AUTH, faults)

    def those_of(table: Known) -> Json:
        return {target: found[target] for target, _ in table.values() if target in found}

    attributes = {"image": "", **those_of(_RELAY)}
    attributes["image_pull_secrets"] = tuple(attributes.get("image_pull_secrets", ()))
    return RelayDefaults(**attributes, settings={**those_of(_SETTINGS), **auth}, pod_spec=those_of(_POD))


def _token_keys(document: Json, faults: list[str]) -> KeyPolicy:
    policy = KeyPolicy(**_section(document, "tokenKeys", _TOKEN_KEYS, faults))
    if not policy.rotate_after_s:
        return replace(policy, rotate_after_s=None)
    if policy.rotate_after_s < policy.overlap_s + policy.publish_ahead_s:
        faults.append("tokenKeys.rotateAfter: must be at least overlap and publishAhead together, or 0 for never")
    return policy


def _signals(
    document: Json, relay: RelayDefaults, environment: Mapping[str, str] | None, faults: list[str]
) -> tuple[SignalDefaults, dict[str, str]]:
    """What wakes relays, and the variables of their environment."""
    found = _section(document, "signals", _SIGNALS, faults)
    settings = dict(relay.settings)
    signal = found.get("type") or SignalType(settings.get("SIGNAL", SignalType.AUTO))
    url = ""
    if signal.broker:
        settings["DATABASE_IDLE_AFTER"] = found.get("idle_after", "")
        if environment is not None:
            url = environment.get(BROKER_URL, "")
            if (problem := validate_broker_url(signal, url)) is not None:
                faults.append(f"{BROKER_URL}: {problem}")
    return SignalDefaults(signal, url, found.get("listen_range", DEFAULT_LISTEN_RANGE)), settings


def _database_url(environment: Mapping[str, str] | None, faults: list[str]) -> str:
    url = "" if environment is None else environment.get("DATABASE_URL", "")
    if environment is not None and not url.startswith(("postgresql://", "postgres://")):
        faults.append("DATABASE_URL: must be set in the environment, to a postgresql:// URL")
    elif (flaw := validate_database_url(url)) is not None:
        faults.append(f"DATABASE_URL: {flaw}")
    return url


def _activator(document: Json, faults: list[str]) -> Activator | None:
    found = _section(document, "activator", _ACTIVATOR, faults)
    if not found.pop("enabled", False):
        return None
    missing = [name for name in ("namespace", "service") if name not in found]
    faults.extend(f"activator.{name}: required with activator.enabled" for name in missing)
    return None if missing else Activator(**found)


def parse_config(text: str, environment: Mapping[str, str] | None) -> Config:
    """The configuration in `text` (YAML) and `environment`; without the latter, the secrets in it are empty.

    Raises:
        ConfigError: naming every fault at once.
    """
    try:
        document = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"not valid YAML: {error}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"the configuration must be a mapping with {', '.join(_TOP)}")
    faults = [f"{key}: unknown; known are {', '.join(_TOP)}" for key in document if key not in _TOP]
    namespaces = document.get("namespaces")
    if not isinstance(namespaces, list) or not namespaces or not all(isinstance(n, str) and n for n in namespaces):
        faults.append("namespaces: a list of at least one namespace to serve is required")
        namespaces = []
    relay = _relay(document, faults)
    signals, settings = _signals(document, relay, environment, faults)
    relay = replace(relay, settings=settings)
    token_keys = _token_keys(document, faults)
    database = _section(document, "database", _DATABASE, faults)
    database["rotate_after_s"] = database.get("rotate_after_s") or None
    log = _section(document, "log", {"retention": ("retention", dict)}, faults)
    retention = Retention(**_section(log, "log.retention", _RETENTION, faults))
    route = _section(document, "route", _ROUTE, faults)
    try:
        parse_url_template(route.get("url", DEFAULT_URL))
    except RouteError as error:
        faults.append(f"route.url: {error}")
    route["gateway"] = _section(route, "route.gateway", _GATEWAY, faults)
    if route.get("type") is RouteType.HTTP_ROUTE and "name" not in route["gateway"]:
        faults.append("route.gateway.name: required with route.type HTTPRoute, the Gateway that the routes attach to")
    idle = IdleDefaults(**_section(document, "idle", _IDLE, faults))
    activator = _activator(document, faults)
    trust = _section(document, "trust", _TRUST, faults)
    database_url = _database_url(environment, faults)
    if faults:
        raise ConfigError("\n".join(faults))
    return Config(
        tuple(namespaces),
        relay,
        RouteDefaults(**route),
        database_url,
        token_keys,
        DatabaseAccess(**database),
        retention,
        idle,
        activator,
        signals,
        Trust(**trust) if "config_map" in trust else None,
    )


def load_config(path: Path, environment: Mapping[str, str] | None = os.environ) -> Config:
    """`parse_config` of a file.

    Raises:
        ConfigError: also when the file cannot be read.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    return parse_config(text, environment)
