"""Every setting, followed from the chart's value to the environment of a user's pod, with its limits.

The settings are read from their sources: values.schema.json, the operator's sections, the relay's reader and the CRD.
Only Helm is needed, no cluster.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from functools import cache
from typing import Any, Final

import pytest
import yaml

from testing.cluster import ClusterError, choose
from testing.system import CHART, ROOT
from userrealtime_core.auth.sealed_keys import SEAL_KEY
from userrealtime_core.environment import CREDENTIALS_DIR, MAXIMUM_ID_LENGTH, Reader
from userrealtime_core.relay_settings import PROTOCOLS, RelaySettings
from userrealtime_operator.config import Config, ConfigError, json_schema, parse_config
from userrealtime_operator.kube.duration import DURATION, parse_duration
from userrealtime_operator.manifests.children import desired_objects
from userrealtime_operator.manifests.secrets import Secrets
from userrealtime_operator.model.resource import parse_resource
from userrealtime_operator.model.routes import URL
from userrealtime_operator.model.settings import (
    BROKER_URL,
    DATABASE_URL,
    NAMES_KEY,
    Duration,
    Section,
    Variable,
    fields_of,
)
from userrealtime_operator.secrets.token_keys import TokenKeys
from userrealtime_relay.bridge.config import Config as BridgeConfig
from userrealtime_relay.broadcast_api.config import Config as BroadcastApiConfig
from userrealtime_relay.config import Config as RelayConfig
from website.reference import followed

Json = dict[str, Any]
Path = tuple[str, ...]

ROLLOUTS: Final = ("relay", "maxConcurrentRollouts")
URLS: Final = {DATABASE_URL: "postgresql://user:password@host/database", BROKER_URL: "nats://broker"}
KEY_OF_NAMES: Final = "a key of opaque names, with 32 bytes"
NOT_VALUES: Final = {
    # The chart sets these from other values, and the URLs are in Secrets.
    ("namespaces",),
    ("relay", "image"),
    ("relay", "imagePullPolicy"),
    ("relay", "imagePullSecrets"),
    ("relay", "runAsUser"),
    ("activator", "namespace"),
    ("activator", "service"),
    ("activator", "port"),
    ("activator", "announceUrl"),
    ("activator", "parking"),
    ("activator", "sealedKeys"),
    ("activator", SEAL_KEY),
    ("trust", "configMap"),
    ("trust", "key"),
    ("names", "opaque"),
    ("names", NAMES_KEY),
    (DATABASE_URL,),
    ("signals", BROKER_URL),
}
NOT_OF_THE_OPERATOR: Final = {
    # Values that templates use without the operator, in sections that both have.
    ("activator", "affinity"),
    ("activator", "database"),
    ("activator", "logLevel"),
    ("activator", "nodeSelector"),
    ("activator", "podAnnotations"),
    ("activator", "replicas"),
    ("activator", "resources"),
    ("activator", "sealedKeys"),
    ("activator", "tolerations"),
    ("activator", "userKeys"),
    ("admissionPolicy", "requireRequester"),
    ("database", "existingSecret"),
    ("database", "url"),
    ("names", "opaque"),
    ("relay", "image"),
    ("signals", "bridge"),
    ("signals", "existingSecret"),
    ("signals", "url"),
    ("trust", "certificates"),
    ("trust", "existingConfigMap"),
}
FREE: Final[dict[Path, Any]] = {
    # A value other than the default, where neither the limits nor the choices of a setting give one.
    ("relay", "allowedImages"): ["a/relay:3", "registry.example.com/realtime/*"],
    ("relay", "allowedOrigins"): ["https://app.example.com", "null"],
    ("relay", "protocols"): [*PROTOCOLS],
    ("relay", "auth", "audience"): "realtime",
    ("relay", "auth", "issuer"): "https://issuer.example.com",
    ("relay", "auth", "jwksUrl"): "http://keys.auth.svc:8080/keys",
    ("relay", "auth", "userClaim"): "email",
    ("route", "allowedHosts"): ["realtime.example.org", "*.example.com"],
    ("route", "gateway"): {"name": "public", "namespace": "gateways", "sectionName": "https"},
    ("route", "requestTimeout"): "0s",
    ("route", "url"): "https://realtime.example.com/{name}",
}


# --- the sources


@cache
def chart_schema() -> Json:
    schema = json.loads((CHART / "values.schema.json").read_text())
    found: Json = followed(schema, schema["$defs"])
    return found


def leaves(schema: Json, path: Path = ()) -> Iterator[tuple[Path, Json]]:
    """Yield the settings of a JSON schema."""
    for name, child in schema.get("properties", {}).items():
        if "properties" in child and (*path, name) not in FREE:
            yield from leaves(child, (*path, name))
        else:
            yield (*path, name), child


@dataclass(frozen=True)
class Setting:
    """A setting of the operator, with its limits in seconds if it is a duration, or as a number."""

    path: Path
    attributes: Path
    variable: str | None
    schema: Json
    least: float | None = None
    most: float | None = None

    @property
    def duration(self) -> bool:
        return self.schema.get("pattern") == f"^{DURATION}$"

    @property
    def choices(self) -> list[Any]:
        return [True, False] if self.schema.get("type") == "boolean" else self.schema.get("enum", [])

    def text(self, number: float) -> Any:
        """Return a number as a value of the chart."""
        if not self.duration:
            return int(number)
        return f"{number / 3600:.12g}h" if number >= 1e9 else f"{number:.12g}s"


class Limits(Reader):
    """A reader that records the limits of each variable."""

    def __init__(self) -> None:
        super().__init__({"POLL_INTERVAL": "15"})
        self.found: dict[str, tuple[float, float]] = {}

    def seconds(self, name: str, default: float, low: float, high: float) -> float:
        self.found[name] = low, high
        return super().seconds(name, default, low, high)

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        self.found[name] = low, high
        return super().integer(name, default, low, high)


@cache
def relay_limits() -> dict[str, tuple[float, float]]:
    read = Limits()
    RelaySettings.read(read)
    return read.found


def plain(schema: Json) -> Json:
    """Return a schema without texts, and without the alternatives that mean the default."""
    schema = {k: v for k, v in schema.items() if k not in ("title", "description", "default", "uniqueItems")}
    if "anyOf" in schema:
        [schema] = [plain(each) for each in schema["anyOf"] if each not in ({"const": ""}, {"type": "null"})]
    if "enum" in schema:
        return {"enum": [each for each in schema["enum"] if each != ""]}
    if "items" in schema:
        # Kubernetes validates what it knows, such as the fields of a spread constraint.
        schema["items"] = plain({k: v for k, v in schema["items"].items() if k != "required"})
    if "properties" in schema:
        schema["properties"] = {name: plain(child) for name, child in schema["properties"].items()}
    if schema.get("additionalProperties") is True:
        del schema["additionalProperties"]
    return schema


def settings() -> Iterator[Setting]:
    """Yield the settings of the operator."""
    schema = json_schema()
    return _settings(Config, followed(schema, schema["$defs"]), (), ())


def _settings(section: type[Section], schema: Json, path: Path, attributes: Path) -> Iterator[Setting]:
    for name, field in fields_of(section).items():
        here, at = (*path, str(field.validation_alias)), (*attributes, name)
        child = schema["properties"][here[-1]]
        kinds = [each for each in child.get("anyOf", [child]) if each != {"type": "null"}]
        section_here = next((kind for kind in _classes(field.annotation) if issubclass(kind, Section)), None)
        if section_here is not None:
            yield from _settings(section_here, kinds[0], here, at)
            continue
        variable = next((each.name for each in field.metadata if isinstance(each, Variable)), None)
        span = next((each for each in field.metadata if isinstance(each, Duration)), None)
        least, most = plain(child).get("minimum"), plain(child).get("maximum")
        if variable in relay_limits():
            least, most = relay_limits()[str(variable)]
        elif span is not None:
            least, most = span.least, span.most
        yield Setting(here, at, variable, plain(child), least, most)


def _classes(annotation: Any) -> Iterator[type]:
    for each in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(each, type):
            yield each


SETTINGS: Final = [each for each in settings() if each.path not in NOT_VALUES]


# --- the way


def values(given: dict[Path, Any]) -> Json:
    """Return values of the chart."""
    document: Json = {}
    for path, value in given.items():
        section = document
        for name in path[:-1]:
            section = section.setdefault(name, {})
        section[path[-1]] = value
    return document


BASE: Final[dict[Path, Any]] = {
    ("namespaces",): ["users"],
    ("database", "url"): URLS[DATABASE_URL],
    ("signals", "url"): "nats://broker",
    ("route", "gateway"): FREE["route", "gateway"],
}


def render(given: dict[Path, Any], *options: str) -> list[Json]:
    """Return the objects that the chart renders."""
    arguments = ("template", "x", str(CHART), "--namespace", "system", "--values", "-", *options)
    text = choose().helm(*arguments, input=json.dumps(values(BASE | given)))
    return [item for item in yaml.safe_load_all(text) if item]


def configuration(given: dict[Path, Any], *options: str) -> str:
    [text] = [
        item["data"]["config.yaml"]
        for item in render(given, *options)
        if item["kind"] == "ConfigMap" and "config.yaml" in item["data"]
    ]
    return str(text)


def operator_config(given: dict[Path, Any]) -> Config:
    signals = given.get(("signals", "type"), "")
    broker = {"redis": "redis://broker", "kafka": "kafka://broker"}.get(signals, URLS[BROKER_URL])
    return parse_config(configuration(given), {**URLS, BROKER_URL: broker})


def resource(**spec: Any) -> Json:
    defaults: Json = {
        "userId": "alice",
        "relay": {},
        "limits": {"connections": 100, "messageBytes": 65536, "messagesPerSecond": 100, "broadcastsPerSecond": 0},
        "route": {"enabled": True},
    }
    head = {"name": "alice", "namespace": "system", "uid": "1", "generation": 1}
    return {"metadata": head, "spec": {**defaults, **spec}}


def relay_config(config: Config, **spec: Any) -> tuple[dict[str, str], RelayConfig]:
    """Return the environment of a user's pod, and the configuration that the relay reads from it."""
    keys = TokenKeys(current="key-" * 10, signs_since=datetime(2026, 1, 2, tzinfo=UTC), series="one")
    objects = desired_objects(
        parse_resource(resource(**spec), config.names.naming()), config, Secrets(keys, config.database_url)
    )
    secret = {
        name: base64.b64decode(value).decode()
        for item in objects
        if item["kind"] == "Secret"
        for name, value in item["data"].items()
    }
    kinds = {item["kind"]: item for item in objects}
    [container] = kinds["Deployment"]["spec"]["template"]["spec"]["containers"]
    environment = {}
    for entry in container["env"]:
        if "fieldRef" in entry.get("valueFrom", {}):
            environment[entry["name"]] = "10.0.0.1"
        else:
            environment[entry["name"]] = entry["value"].replace("$$", "$")
    # The keys and the URLs are files in the pod.
    readable = {name: value for name, value in environment.items() if name not in ("TOKEN_KEY_DIR", CREDENTIALS_DIR)}
    return environment, RelayConfig.from_environment({**readable, **secret})


def parsed(setting: Setting, value: Any) -> Any:
    """Return a chart value as the operator and the relay have it."""
    if setting.duration:
        return parse_duration(value)
    return tuple(value) if isinstance(value, list) else value


def attribute(config: object, path: Path) -> Any:
    for name in path:
        config = getattr(config, name)
    return config


def relay_attribute(variable: str, text: str) -> str | None:
    """Return the attribute of `RelaySettings` that a variable sets; None if the text is the default."""
    # Read without a check: some variables require others.
    default, changed = RelaySettings.read(Reader({})), RelaySettings.read(Reader({variable: text}))
    names = [each.name for each in fields(default) if getattr(default, each.name) != getattr(changed, each.name)]
    assert len(names) <= 1, names
    return names[0] if names else None


def follow(given: dict[Path, Any]) -> set[Path]:
    """Follow values from the chart to the relay. Returns those whose effect at the end was compared."""
    config = operator_config(given)
    environment, relay = relay_config(config)
    arrived = set()
    for setting in SETTINGS:
        if setting.path not in given:
            continue
        value = parsed(setting, given[setting.path])
        if setting.path[:1] == ("activator",):
            assert (config.activator is not None) is value
            arrived.add(setting.path)
            continue
        held = attribute(config, setting.attributes)
        assert held == value or (value in (0, "") and held is None), setting.path
        if setting.variable is None:
            arrived.add(setting.path)
            continue
        if setting.variable == "DATABASE_IDLE_AFTER" and not config.signals.type.broker:
            assert setting.variable not in environment
            continue
        text = environment[setting.variable]
        if setting.variable == "SIGNAL":
            value = config.signals.type
        name = relay_attribute(setting.variable, text)
        if name is not None:
            assert getattr(relay, name) == value, setting.path
            arrived.add(setting.path)
    return arrived


def bounds() -> list[dict[Path, Any]]:
    """Return the lowest and the highest value of every setting with limits."""
    lowest = {each.path: each.text(each.least) for each in SETTINGS if each.least is not None}
    highest = {each.path: each.text(each.most) for each in SETTINGS if each.most is not None}
    for setting in SETTINGS:
        if setting.least is not None and setting.most is None:
            highest[setting.path] = setting.text(1_000_000)
    return [lowest, highest]


def choices() -> list[dict[Path, Any]]:
    """Return values with which every choice of every setting occurs."""
    longest = max(len(each.choices) for each in SETTINGS)
    # Without keys of users, an identity provider is required.
    provider = {("relay", "auth", name): FREE["relay", "auth", name] for name in ("jwksUrl", "audience")}
    return [
        provider | {each.path: each.choices[number % len(each.choices)] for each in SETTINGS if each.choices}
        for number in range(longest)
    ]


# --- the tests


def test_every_setting_is_followed_from_the_chart_to_the_relay() -> None:
    arrived = set()
    for given in (*bounds(), *choices(), FREE):
        for path in given:
            if path == ("signals", "idleAfter"):
                given = {**given, ("signals", "type"): "nats"}
                break
        arrived |= follow(given)
    objects = {("relay", name) for name in ("affinity", "nodeSelector", "tolerations", "topologySpreadConstraints")}
    objects |= {("relay", name) for name in ("resources", "podLabels", "podAnnotations")}
    texts = {("relay", "priorityClassName"), ("relay", "runtimeClassName")}
    texts |= {("route", "className"), ("route", "tlsSecretName"), ("route", "annotations")}
    # Settings of Kubernetes have no limits; e2e/test_chart.py and test_objects.py follow them.
    assert {each.path for each in SETTINGS} - arrived == objects | texts
    unset = {each.path for each in SETTINGS if each.path[0] == "relay" and each.variable is None}
    of_the_operator = {ROLLOUTS, ("relay", "allowedImages")}
    assert unset == objects | {("relay", "priorityClassName"), ("relay", "runtimeClassName")} | of_the_operator
    variables = {each.variable for each in SETTINGS} - {None}
    assert variables <= set(Asked.variables()), "the relay does not read a variable that the operator sets"


def test_opaque_names_are_followed_from_the_chart_to_the_objects_of_users() -> None:
    given: dict[Path, Any] = {
        ("names", "opaque", "existingSecret", "name"): "names",
        ("names", "opaque", "existingSecret", "key"): "K",
    }
    for values, is_opaque in ((given, True), ({}, False)):
        text = configuration(values)
        config = parse_config(text, {**URLS, NAMES_KEY: KEY_OF_NAMES})
        assert config.names.opaque is is_opaque
        spec = resource()
        spec["spec"]["userId"] = "ann.lee@example.com"
        user = parse_resource(spec, config.names.naming())
        keys = TokenKeys(current="key-" * 10, signs_since=datetime(2026, 1, 2, tzinfo=UTC), series="one")
        objects = desired_objects(user, config, Secrets(keys, config.database_url))
        assert len(objects) == 5
        assert {("ann" in item["metadata"]["name"]) for item in objects} == {not is_opaque}
        operator = sources(values, "x-userrealtime")
        assert operator.get(NAMES_KEY) == ({"name": "names", "key": "K"} if is_opaque else None)
        # The activator reads names from the status, and starts without the key.
        assert parse_config(text, environment=None).names.key == ""
        assert "names" not in json.dumps(render_pod(values, "x-userrealtime-activator")["volumes"])
    with pytest.raises(ConfigError, match=r"names\.NAMES_KEY: required with names\.opaque"):
        parse_config(configuration(given), URLS)


def test_sealed_keys_are_followed_from_the_chart_to_both_processes() -> None:
    given: dict[Path, Any] = {
        ("activator", "sealedKeys", "existingSecret", "name"): "seal",
        ("activator", "sealedKeys", "existingSecret", "key"): "K",
    }
    for values, is_sealed in ((given, True), ({}, False), ({**given, ("activator", "enabled"): False}, None)):
        text = configuration(values)
        config = parse_config(text, {**URLS, SEAL_KEY: KEY_OF_NAMES})
        assert (config.activator and config.activator.sealed_keys) is is_sealed
        expected = {"name": "seal", "key": "K"} if is_sealed else None
        assert sources(values, "x-userrealtime").get(SEAL_KEY) == expected
        if is_sealed is not None:
            assert ("seal" in json.dumps(render_pod(values, "x-userrealtime-activator")["volumes"])) is is_sealed
        if is_sealed:
            assert sources(values, "x-userrealtime-activator") == {SEAL_KEY: expected}
    with pytest.raises(ConfigError, match=r"activator\.SEAL_KEY: required with activator\.sealedKeys"):
        parse_config(configuration(given), URLS)


def test_the_database_of_the_activator_is_followed_from_the_chart_to_both_processes() -> None:
    given: dict[Path, Any] = {
        ("activator", "database", "existingSecret", "name"): "parking",
        ("activator", "database", "existingSecret", "key"): "URL",
    }
    sealed: dict[Path, Any] = {("activator", "sealedKeys", "existingSecret", "name"): "seal"}
    for values, parks in ((given, True), ({}, False), ({**given, **sealed}, True)):
        config = parse_config(configuration(values), {**URLS, SEAL_KEY: KEY_OF_NAMES})
        assert config.activator is not None
        assert config.activator.parking is parks
        assert config.idle.park_after_s == 900
        assert "parking" not in json.dumps(sources(values, "x-userrealtime"))
        if parks:
            assert sources(values, "x-userrealtime-activator")["DATABASE_URL"] == {"name": "parking", "key": "URL"}
        else:
            assert '"secret"' not in json.dumps(render_pod(values, "x-userrealtime-activator")["volumes"])


def render_pod(given: dict[Path, Any], name: str) -> Json:
    [spec] = [
        item["spec"]["template"]["spec"]
        for item in render(given)
        if item["kind"] == "Deployment" and item["metadata"]["name"] == name
    ]
    return dict(spec)


def sources(given: dict[Path, Any], name: str) -> dict[str, Json]:
    """Return the name and the key of the Secret of each credential of a Deployment."""
    [volume] = [each for each in render_pod(given, name)["volumes"] if each["name"] == "credentials"]
    return {
        item["path"]: {"name": source["secret"]["name"], "key": item["key"]}
        for source in volume["projected"]["sources"]
        for item in source["secret"]["items"]
    }


class Asked(dict[str, str]):
    """An environment that records what it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def get(self, name: str, default: str = "") -> str:  # type: ignore[override]
        self.names.append(name)
        return default

    @staticmethod
    def variables() -> list[str]:
        asked = Asked()
        RelaySettings.read(Reader(asked))
        return asked.names


def outside() -> tuple[dict[Path, Any], dict[Path, Any]]:
    """Return values just below and just above the limits."""
    low = {each.path: each.text(each.least - (0.05 if each.duration else 1)) for each in limited() if each.least}
    low |= {each.path: -1 for each in limited() if each.least == 0 and not each.duration}
    high = {each.path: each.text(each.most + (3600 if each.most >= 1e9 else 1)) for each in limited() if each.most}
    return low, high


def limited() -> Iterable[Setting]:
    return [each for each in SETTINGS if each.least is not None]


def faults(given: dict[Path, Any]) -> set[str]:
    """Return the paths that the operator rejects, with the chart's schema out of the way."""
    text = configuration({**given, ("signals", "type"): "nats"}, "--skip-schema-validation")
    with pytest.raises(ConfigError) as wrong:
        parse_config(text, URLS)
    return {line.partition(": ")[0] for line in str(wrong.value).splitlines()}


@pytest.mark.parametrize("given", outside(), ids=["below", "above"])
def test_a_value_just_outside_its_limits_is_rejected_with_its_path(given: dict[Path, Any]) -> None:
    assert given
    assert faults(given) == {".".join(path) for path in given}


def test_chart_and_operator_reject_an_unknown_choice() -> None:
    # Without route and activator, whose wrong values stop the templates.
    wrong: dict[Path, Any] = {
        each.path: "neither" for each in SETTINGS if each.choices and each.path[0] not in ("route", "activator")
    }
    wrong |= {each.path: -1 for each in SETTINGS if each.least is not None and not each.duration}
    with pytest.raises(ClusterError) as rejected:
        render(wrong)
    for path in wrong:
        assert f"'/{'/'.join(path)}'" in str(rejected.value), path
    del wrong["signals", "type"]
    assert faults(wrong) == {".".join(path) for path in wrong}


def test_the_chart_and_the_operator_have_the_same_settings() -> None:
    chart = {path for path, _ in leaves(chart_schema())}
    operator = {each.path for each in SETTINGS}
    assert operator <= chart
    shared = {path[0] for path in operator}
    assert {path for path in chart - operator if path[0] in shared and not covered(path)} == set()
    assert all(any(path[: len(each)] == each for path in chart) for each in NOT_OF_THE_OPERATOR)
    assert {each.path for each in settings()} >= NOT_VALUES


def covered(path: Path) -> bool:
    return any(path[: len(each)] == each for each in NOT_OF_THE_OPERATOR)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: ".".join(setting.path))
def test_the_charts_schema_agrees_with_the_operators(setting: Setting) -> None:
    assert plain(dict(leaves(chart_schema()))[setting.path]) == setting.schema


def test_the_settings_of_the_broadcast_api_are_within_its_limits() -> None:
    for level in dict(leaves(chart_schema()))["broadcast", "http", "logLevel"]["enum"]:
        given = {("broadcast", "http", "enabled"): True, ("broadcast", "http", "existingSecret", "name"): "token"}
        rendered = render({**given, ("broadcast", "http", "logLevel"): level})
        [api] = [i for i in rendered if i["kind"] == "Deployment" and i["metadata"]["name"].endswith("-broadcast-api")]
        [container] = api["spec"]["template"]["spec"]["containers"]
        environment = {each["name"]: each["value"] for each in container["env"] if each["name"] != CREDENTIALS_DIR}
        secrets = {"DATABASE_URL": URLS[DATABASE_URL], "BROADCAST_TOKEN": "x" * 32}
        assert BroadcastApiConfig.from_environment({**environment, **secrets}).log_level == level


def test_the_settings_of_the_bridge_are_within_its_limits() -> None:
    pattern = dict(leaves(chart_schema()))["signals", "bridge", "pollInterval"]["pattern"]
    for text, good in (("0.1s", True), ("3600s", True), ("0.05s", False), ("3600.1s", False), ("0s", False)):
        assert (re.search(pattern, text) is not None) is good, text
    for interval in ("0.1s", "3600s"):
        for level in dict(leaves(chart_schema()))["signals", "bridge", "logLevel"]["enum"]:
            given = {("signals", "type"): "nats", ("signals", "bridge", "pollInterval"): interval}
            rendered = render({**given, ("signals", "bridge", "logLevel"): level})
            [bridge] = [i for i in rendered if i["kind"] == "Deployment" and i["metadata"]["name"].endswith("-bridge")]
            [container] = bridge["spec"]["template"]["spec"]["containers"]
            environment = {entry["name"]: entry.get("value", "") for entry in container["env"]}
            del environment[CREDENTIALS_DIR]
            config = BridgeConfig.from_environment(
                {**environment, "DATABASE_URL": URLS[DATABASE_URL], "NATS_URL": URLS[BROKER_URL]}
            )
            assert (config.poll_interval, config.log_level) == (float(interval[:-1]), level)


def crd() -> Json:
    document = yaml.safe_load((ROOT / "crds" / "userrealtimes.yaml").read_text())
    [version] = document["spec"]["versions"]
    spec: Json = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return spec


def test_the_limits_of_a_resource_are_within_those_of_the_relay() -> None:
    config = operator_config({})
    limits = crd()["properties"]["limits"]["properties"]
    for bound in ("minimum", "maximum"):
        given = {name: schema[bound] for name, schema in limits.items()}
        _, relay = relay_config(config, limits=given)
        assert set(given.values()) <= set(asdict(relay).values())
    for level in crd()["properties"]["relay"]["properties"]["logLevel"]["enum"]:
        assert relay_config(config, relay={"logLevel": level})[1].log_level == level


def test_the_protocols_of_a_resource_are_those_of_the_relay_and_override_the_charts() -> None:
    assert crd()["properties"]["protocols"]["items"]["enum"] == [*PROTOCOLS]
    config = operator_config({("relay", "protocols"): [PROTOCOLS[0]]})
    assert relay_config(config)[1].protocols == PROTOCOLS[:1]
    assert relay_config(config, protocols=[*PROTOCOLS])[1].protocols == PROTOCOLS
    environment, relay = relay_config(config, protocols=[])
    assert relay.protocols == ()
    assert "PROTOCOLS" not in environment


def test_the_patterns_of_a_resource_are_those_of_the_operator() -> None:
    properties = crd()["properties"]
    assert properties["userId"]["maxLength"] == MAXIMUM_ID_LENGTH
    [rule] = properties["route"]["properties"]["url"]["x-kubernetes-validations"]
    assert rule["rule"] == f'self.matches("^{URL}$")'
    [rule] = properties["idle"]["properties"]["after"]["x-kubernetes-validations"]
    assert rule["rule"] == f'self.matches("^{DURATION}$")'
