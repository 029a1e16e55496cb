"""The operator's configuration: a YAML file that the Helm chart writes from its values, and URLs in the environment.

The dataclasses are the sections of the file. Together with `model.policies` and `model.notifiers`, they are the only
list of the operator's settings. All faults are reported together, each with its path and with advice. No message
contains the value of a secret.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, get_args

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    model_validator,
    with_config,
)
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails
from typing_extensions import TypedDict  # for pydantic on Python 3.11

from userrealtime_core.auth.sealed_keys import SEAL_KEY, Seal, validate_seal_key
from userrealtime_core.environment import BROKER_SCHEMES, CREDENTIALS_DIR, LOG_LEVELS, ConfigError, read_credential
from userrealtime_core.relay_settings import PROTOCOLS
from userrealtime_core.wire.cors import ORIGIN, validate_origin

from .model.naming import Naming, validate_key
from .model.notifiers import SignalDefaults, SignalType
from .model.policies import InboxQuota, KeyPolicy, Retention
from .model.routes import URL, parse_url_template
from .model.settings import (
    BROKER_URL,
    DATABASE_URL,
    FILE,
    FROM_ENVIRONMENT,
    NAMES_KEY,
    Count,
    Duration,
    Flag,
    Interval,
    Json,
    Limit,
    Name,
    Section,
    Strings,
    Variable,
    by_rule,
    fault,
    fields_of,
    variables,
)
from .model.tenancy import HOST_PATTERN, IMAGE_PATTERN

__all__ = ["Config", "ConfigError", "load_config", "parse_config"]


def _origin(value: Any) -> str:
    flaw = validate_origin(value) if isinstance(value, str) else "must be an origin in quotes; this includes 'null'"
    if flaw is not None:
        raise ValueError(flaw)
    return str(value)


def _url_template(value: str) -> str:
    parse_url_template(value)
    return value


def _announce_url(value: str) -> str:
    by_rule("ANNOUNCE_URL", f"{value}/namespace/name", lambda read: read.service_url("ANNOUNCE_URL"))
    return value


def _database_url(value: str) -> str:
    by_rule(DATABASE_URL, value, lambda read: read.database_url(DATABASE_URL))
    return value


def _names_key(value: str) -> str:
    if not value:
        raise ValueError(
            "required with names.opaque: a secret key of at least 32 bytes. Readable names are not used instead, "
            "because all users' URLs would change"
        )
    if (flaw := validate_key(value)) is not None:
        raise ValueError(flaw)
    return value


def _seal_key(value: str) -> str:
    if value and (flaw := validate_seal_key(value)) is not None:
        raise ValueError(flaw)
    return value


def _if_enabled(value: Any) -> Any:
    return None if isinstance(value, dict) and not value.get("enabled") else value


def _if_named(value: Any) -> Any:
    return None if isinstance(value, dict) and not value.get("configMap") else value


DatabaseUrl = Annotated[str, AfterValidator(_database_url)]
# A pattern cannot express the relay's rule about hosts, which `Variable` applies.
JwksUrl = Annotated[str, WithJsonSchema({"type": "string", "pattern": r"^https?://[^\s@#/]+(/[^\s#]*)?$"})]
LogLevel = Annotated[str, WithJsonSchema({"enum": [*LOG_LEVELS]})]
Origin = Annotated[str, BeforeValidator(_origin), WithJsonSchema({"type": "string", "pattern": f"^({ORIGIN})$"})]
AllowedImage = Annotated[str, Field(pattern=f"^({IMAGE_PATTERN})$")]
AllowedHost = Annotated[str, Field(pattern=f"^({HOST_PATTERN})$")]
Protocol = Annotated[str, WithJsonSchema({"enum": [*PROTOCOLS]})]
UrlTemplate = Annotated[
    str,
    AfterValidator(_url_template),
    WithJsonSchema({"type": "string", "pattern": f"^{URL}$", "allOf": [{"pattern": r"\{name\}"}]}),
]


@dataclass(frozen=True, config=FILE)
class RelayAuth(Section):
    """Which tokens the pods accept."""

    allow_query_token: Annotated[Flag | None, Variable("ALLOW_QUERY_TOKEN")] = None
    allow_user_keys: Annotated[Flag | None, Variable("ALLOW_USER_KEYS")] = None
    audience: Annotated[str | None, Variable("TOKEN_AUDIENCE")] = None
    issuer: Annotated[str | None, Variable("TOKEN_ISSUER")] = None
    jwks_url: Annotated[JwksUrl | None, Variable("JWKS_URL")] = None
    leeway_s: Annotated[float | None, Duration(), Variable("TOKEN_LEEWAY")] = None
    max_lifetime_s: Annotated[float | None, Duration(), Variable("TOKEN_MAX_LIFETIME")] = None
    user_claim: Annotated[Name | None, Variable("TOKEN_USER_CLAIM")] = None

    @model_validator(mode="after")
    def _check_audience(self) -> Self:
        if self.jwks_url is not None and self.audience is None:
            raise fault(
                "audience",
                "required with jwksUrl: the value of `aud` in tokens for this application; or '*', to accept tokens "
                "for all applications of the identity provider",
            )
        if self.allow_user_keys is False and self.jwks_url is None:
            raise fault("jwksUrl", "required with allowUserKeys: false, because otherwise no token would be accepted")
        return self


@dataclass(frozen=True, config=FILE)
class RelayDefaults(Section):
    """How users' pods run, unless a resource overrides it."""

    image: str
    """The image of users' pods."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    image_pull_secrets: tuple[Name, ...] = ()
    run_as_user: Limit = 65532
    """The user and group ID of the pods. None: the platform assigns one."""
    max_concurrent_rollouts: Count = 20
    # Measured: an idle relay holds under 40 MiB; the ring and a full catch-up of clients add a few more.
    resources: Json = Field(
        default_factory=lambda: {"requests": {"cpu": "10m", "memory": "48Mi"}, "limits": {"memory": "128Mi"}}
    )
    log_level: Annotated[LogLevel | None, Variable("LOG_LEVEL")] = None
    signal: Annotated[Literal["auto", "listen", "poll"] | None, Variable("SIGNAL")] = None
    poll_interval_s: Annotated[float | None, Duration(), Variable("POLL_INTERVAL")] = None
    auth_timeout_s: Annotated[float | None, Duration(), Variable("AUTH_TIMEOUT")] = None
    ping_interval_s: Annotated[float | None, Duration(), Variable("PING_INTERVAL")] = None
    allowed_origins: Annotated[tuple[Origin, ...], Variable("ALLOWED_ORIGINS")] = ()
    allowed_images: tuple[AllowedImage, ...] = ()
    """The images that a resource may select, see `model.tenancy`."""
    protocols: Annotated[tuple[Protocol, ...], Variable("PROTOCOLS")] = ()
    auth: RelayAuth = Field(default_factory=RelayAuth)
    node_selector: Strings = Field(default_factory=dict)
    tolerations: tuple[Json, ...] = ()
    affinity: Json = Field(default_factory=dict)
    topology_spread_constraints: tuple[Json, ...] = ()
    priority_class_name: str = ""
    runtime_class_name: str = ""
    pod_labels: Strings = Field(default_factory=dict)
    pod_annotations: Strings = Field(default_factory=dict)

    @property
    def pod_spec(self) -> Json:
        """The fields of the pod's spec that are set here, as Kubernetes names them."""
        fields = {
            "nodeSelector": self.node_selector,
            "tolerations": list(self.tolerations),
            "affinity": self.affinity,
            "topologySpreadConstraints": list(self.topology_spread_constraints),
            "priorityClassName": self.priority_class_name,
            "runtimeClassName": self.runtime_class_name,
        }
        return {name: value for name, value in fields.items() if value}


class RouteType(enum.StrEnum):
    """What routes the traffic of a user's clients to the user's Service."""

    INGRESS = "Ingress"
    """One Ingress per user."""
    HTTP_ROUTE = "HTTPRoute"
    """One HTTPRoute of the Gateway API per user."""
    EDGE = "Edge"
    """No object per user: one proxy resolves the DNS names of all users' Services."""


@with_config(extra="forbid")
class Gateway(TypedDict, total=False):
    """A parentRef of the Gateway API."""

    name: Name
    namespace: Name
    sectionName: Name


@dataclass(frozen=True, config=FILE)
class RouteDefaults(Section):
    """How clients reach users' pods. `url` is a template, see `model.routes`."""

    enabled: Flag = True
    type: RouteType = RouteType.INGRESS
    url: UrlTemplate = "http://localhost/{name}"
    gateway: Gateway = Field(default_factory=Gateway)
    class_name: str | None = None
    annotations: Strings = Field(default_factory=dict)
    tls_secret_name: str | None = None
    request_timeout: Annotated[str, Field(pattern=r"^(([0-9]{1,5}(h|m|s|ms)){1,4})?$")] | None = None
    """`timeouts.request` of an HTTPRoute, in the notation of the Gateway API."""
    allowed_hosts: tuple[AllowedHost, ...] = ()
    """The hosts of URLs that a resource may select, see `model.tenancy`."""

    @model_validator(mode="after")
    def _check_gateway(self) -> Self:
        if self.type is RouteType.HTTP_ROUTE and "name" not in self.gateway:
            raise fault("gateway.name", "required with route.type HTTPRoute: the Gateway that the routes attach to")
        return self


class CredentialsType(enum.StrEnum):
    """Which database role a user's pod uses."""

    PER_USER = "perUser"
    """A separate role that can read only the user's log. The operator's role needs CREATEROLE to create it."""
    SHARED = "shared"
    """The operator's role."""


@dataclass(frozen=True, config=FILE)
class DatabaseAccess(Section):
    """How users' pods connect to the database. Passwords are replaced after `rotate_after_s`; None: on request only."""

    credentials: CredentialsType = CredentialsType.PER_USER
    rotate_after_s: Interval = None
    shared_users: Flag = False
    """Whether several namespaces, or clusters, may serve the same userId."""


@dataclass(frozen=True, config=FILE)
class Names(Section):
    """The names of users' objects, which are part of the users' URLs, see `model.naming`."""

    opaque: Flag = False
    """Whether the names contain no readable part. They then depend on `key`."""
    key: Annotated[str, AfterValidator(_names_key)] = Field(default="", validation_alias=NAMES_KEY, repr=False)
    """The key of opaque names. It is hidden from `repr`."""

    def naming(self) -> Naming:
        """Return the names.

        Raises:
            ValueError: names are opaque, and the configuration was read without an environment, so there is no key.
        """
        return Naming(self.key if self.opaque else None)


@dataclass(frozen=True, config=FILE)
class Log(Section):
    """The log in the database."""

    retention: Retention = Field(default_factory=Retention)
    inbox: InboxQuota = Field(default_factory=InboxQuota)


@dataclass(frozen=True, config=FILE)
class IdleDefaults(Section):
    """When users sleep, unless a resource overrides it: after this time without clients; 0 is never."""

    after_s: Annotated[float, Duration()] = 600.0
    park_after_s: Annotated[float, Duration()] = 900.0
    """The time without traffic after which connected clients are parked, and the pod ends; 0 is never."""


@dataclass(frozen=True, config=FILE)
class Activator(Section):
    """The Service of the activator's pods, which accept the connections of sleeping users, and the pods' port."""

    namespace: Name
    """The namespace of the activator."""
    service: Name
    """The activator's Service."""
    port: Count = 8080
    announce_url: Annotated[str, AfterValidator(_announce_url)] = ""
    """Where users' pods register their addresses, followed by the namespace and the name of a user's objects. Empty:
    they do not register."""
    sealed_keys: Flag = False
    """Whether the activator receives the token keys of users in the status of their resources, encrypted with
    `seal_key`. Otherwise it reads the users' Secrets."""
    seal_key: Annotated[str, AfterValidator(_seal_key)] = Field(default="", validation_alias=SEAL_KEY, repr=False)
    """The key that encrypts the token keys. It is hidden from `repr`."""
    parking: Flag = False
    """Whether the activator has a database role, which it needs to park clients."""
    enabled: Flag = True

    def seal(self) -> Seal | None:
        """Return what encrypts the token keys, None if the activator reads the users' Secrets.

        Raises:
            ValueError: keys are sealed, and the configuration was read without an environment, so there is no key.
        """
        return Seal(self.seal_key) if self.sealed_keys else None


@dataclass(frozen=True, config=FILE)
class Trust(Section):
    """A ConfigMap in each of the namespaces with the certificates of authorities (PEM) for users' pods."""

    config_map: Name
    """The ConfigMap with the certificates."""
    key: Name = "ca.crt"


@dataclass(frozen=True, config=FILE)
class AdmissionPolicy(Section):
    """The chart's ValidatingAdmissionPolicy, which verifies the account that a resource names as its requester."""

    enabled: Flag = False


@dataclass(frozen=True, config=FILE)
class Config(Section):
    """The whole configuration."""

    namespaces: tuple[Name, ...]
    """A list of the namespaces to serve."""
    relay: RelayDefaults
    """The settings of users' pods."""
    route: RouteDefaults = Field(default_factory=RouteDefaults)
    database_url: DatabaseUrl = Field(default="", validation_alias=DATABASE_URL, repr=False)
    """The URL of the log's database. It is hidden from `repr`, because it contains a password."""
    token_keys: KeyPolicy = Field(default_factory=KeyPolicy)
    database: DatabaseAccess = Field(default_factory=DatabaseAccess)
    log: Log = Field(default_factory=Log)
    names: Names = Field(default_factory=Names)
    idle: IdleDefaults = Field(default_factory=IdleDefaults)
    activator: Annotated[Activator | None, BeforeValidator(_if_enabled)] = None
    """None: no user sleeps."""
    signals: SignalDefaults = Field(default_factory=SignalDefaults)
    trust: Annotated[Trust | None, BeforeValidator(_if_named)] = None
    """None: only the authorities of the image."""
    admission_policy: AdmissionPolicy = Field(default_factory=AdmissionPolicy)

    @property
    def relay_settings(self) -> dict[str, str]:
        """The non-empty variables of the relay that the configuration sets."""
        sections: list[Section] = [self.relay, self.relay.auth]
        if self.signals.type.broker:
            sections.append(self.signals)
        return dict(variables(sections))


_MESSAGES: Final = {
    "bool_type": "must be true or false",
    "dataclass_type": "must be a mapping",
    "dict_type": "must be a mapping",
    "int_type": "must be a whole number",
    "string_too_short": "must not be empty",
    "string_type": "must be text",
    "tuple_type": "must be a list",
}


def section_at(path: Iterable[str | int]) -> type[Section]:
    """Return the section at a path of the file."""
    section: type[Section] = Config
    for name in path:
        [annotation] = [each.annotation for each in fields_of(section).values() if each.validation_alias == name]
        kinds = (annotation, *get_args(annotation))
        [section] = [each for each in kinds if isinstance(each, type) and issubclass(each, Section)]
    return section


def _describe(error: ErrorDetails) -> str:
    """Return a fault as its path and its message. The input is not part of it, because it can be a secret."""
    path, context = error["loc"], error.get("ctx", {})
    match error["type"]:
        case "missing":
            [field] = [each for each in fields_of(section_at(path[:-1])).values() if each.validation_alias == path[-1]]
            message = f"required: {field.description}"
        case "unexpected_keyword_argument":
            names = [str(each.validation_alias) for each in fields_of(section_at(path[:-1])).values()]
            message = f"unknown; known are {', '.join(name for name in names if name not in FROM_ENVIRONMENT)}"
        case "extra_forbidden":
            message = f"unknown; known are {', '.join(Gateway.__annotations__)}"
        case "enum" | "literal_error":
            message = f"must be {context['expected']}"
        case "greater_than_equal":
            message = f"must be a whole number of at least {context['ge']}"
        case "value_error":
            message = str(context["error"])
        case "section":
            path, message = (*path, context["field"]), context["message"]
        case other:
            message = _MESSAGES.get(other, error["msg"])
    return f"{'.'.join(map(str, path))}: {message}"


_CONFIG: Final = TypeAdapter(Config)


def json_schema() -> Json:
    """Return the JSON schema of the file."""
    return _CONFIG.json_schema()


def parse_config(text: str, environment: Mapping[str, str] | None) -> Config:
    """Return the configuration in `text` (YAML) and `environment`. Without an environment, the URLs are empty.

    Raises:
        ConfigError: the message has one line for each fault.
    """
    try:
        document = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"not valid YAML: {error}") from None
    if not isinstance(document, dict):
        raise ConfigError("the configuration must be a mapping")
    signals = document.get("signals") or {}
    if isinstance(signals, dict):
        relay = document.get("relay")
        default = relay.get("signal") if isinstance(relay, dict) else None
        signals = {**signals, "type": signals.get("type") or (default if default in [*SignalType] else "")}
        document = {**document, "signals": signals}
    names = document.get("names") or {}
    if isinstance(names, dict):
        names = {**names}
        document = {**document, "names": names}
    activator = document.get("activator") or {}
    if isinstance(activator, dict):
        activator = {**activator}
        document = {**document, "activator": activator}
    faults = [
        f"{name}: set it in the environment, or as a file in {CREDENTIALS_DIR}; this file is not secret"
        for name, section in (
            (DATABASE_URL, document),
            (BROKER_URL, signals),
            (NAMES_KEY, names),
            (SEAL_KEY, activator),
        )
        if name in section
    ]
    unreadable: set[str] = set()
    if environment is not None:
        wanted = [(document, DATABASE_URL, DATABASE_URL)]
        if isinstance(signals, dict) and str(signals["type"]) in BROKER_SCHEMES:
            wanted.append((signals, BROKER_URL, f"signals.{BROKER_URL}"))
        if isinstance(names, dict) and names.get("opaque") is True:
            wanted.append((names, NAMES_KEY, f"names.{NAMES_KEY}"))
        if isinstance(activator, dict) and activator.get("enabled") and activator.get("sealedKeys") is True:
            wanted.append((activator, SEAL_KEY, f"activator.{SEAL_KEY}"))
        for section, name, path in wanted:
            section[name] = ""
            try:
                section[name] = read_credential(environment, name)
                if name == SEAL_KEY and not section[name]:
                    faults.append(f"{path}: required with activator.sealedKeys: a secret key of at least 32 bytes")
            except ValueError as error:
                faults.append(f"{name}: {error}")
                unreadable.add(path)
    try:
        # A context marks values from the file, for the validators.
        config = _CONFIG.validate_python(document, context=text, by_alias=True, by_name=False)
    except ValidationError as error:
        found = map(_describe, error.errors(include_url=False, include_input=False))
        faults += [each for each in found if each.partition(":")[0] not in unreadable]
    if faults:
        raise ConfigError("\n".join(faults))
    return config


def load_config(path: Path, environment: Mapping[str, str] | None = os.environ) -> Config:
    """Return the configuration in a file, as `parse_config` does.

    Raises:
        ConfigError: the file cannot be read or has faults.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    return parse_config(text, environment)
