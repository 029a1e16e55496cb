"""The operator's configuration file."""

from __future__ import annotations

from pathlib import Path

import pytest

from testing.operator.names import NAMES, NAMES_KEY, OPAQUE
from userrealtime_core.auth.sealed_keys import Seal
from userrealtime_operator.config import (
    Activator,
    Config,
    ConfigError,
    IdleDefaults,
    RelayDefaults,
    RouteDefaults,
    RouteType,
    Trust,
    load_config,
    parse_config,
)
from userrealtime_operator.model.policies import KeyPolicy

ENVIRONMENT = {"DATABASE_URL": "postgresql://relay:hunter2@db/app"}
MINIMAL = "{namespaces: [users], relay: {image: 'relay:1'}}"


def test_the_least_that_is_needed() -> None:
    config = parse_config(MINIMAL, ENVIRONMENT)
    assert config == Config(("users",), RelayDefaults("relay:1"), RouteDefaults(), ENVIRONMENT["DATABASE_URL"])


def test_everything_given() -> None:
    config = parse_config(
        """
        namespaces: [a, b]
        relay:
          image: relay:2
          imagePullPolicy: Always
          imagePullSecrets: [registry]
          maxConcurrentRollouts: 5
          resources: {limits: {memory: 64Mi}}
        route:
          enabled: false
          type: HTTPRoute
          gateway: {name: public}
          url: https://{name}.example.com
          className: nginx
          annotations: {x: y}
          tlsSecretName: wildcard
        trust: {configMap: authorities, key: bundle.pem}
        """,
        ENVIRONMENT,
    )
    assert config.trust == Trust("authorities", "bundle.pem")
    assert config.namespaces == ("a", "b")
    assert config.relay == RelayDefaults(
        "relay:2",
        "Always",
        ("registry",),
        max_concurrent_rollouts=5,
        resources={"limits": {"memory": "64Mi"}},
    )
    assert config.route == RouteDefaults(
        False, RouteType.HTTP_ROUTE, "https://{name}.example.com", {"name": "public"}, "nginx", {"x": "y"}, "wildcard"
    )


def test_empty_values_mean_the_default() -> None:
    config = parse_config(
        "{namespaces: [users], relay: {image: 'relay:1', resources: {}}, route: {className: '', annotations: {}},"
        " trust: {configMap: '', key: ca.crt}}",
        ENVIRONMENT,
    )
    assert config.trust is None
    assert config.relay == RelayDefaults("relay:1")
    assert config.route == RouteDefaults()


def test_every_fault_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as failure:
        parse_config(
            "{relay: {imagee: x, resources: 3}, route: {url: nowhere, type: Road, gateway: {nane: x}}, extra: 1}", {}
        )
    text = str(failure.value)
    for fault in (
        "extra: unknown; known are namespaces, relay,",
        "namespaces: required: A list of the namespaces to serve.",
        "relay.imagee: unknown; known are image,",
        "relay.resources: must be a mapping",
        "relay.image: required: The image of users' pods.",
        "route.url: must be http",
        "route.type: must be 'Ingress', 'HTTPRoute' or 'Edge'",
        "route.gateway.nane: unknown; known are name, namespace, sectionName",
        "DATABASE_URL: required: a URL like postgresql://",
    ):
        assert fault in text


def test_an_http_route_needs_a_gateway() -> None:
    with pytest.raises(ConfigError, match=r"route\.gateway\.name: required"):
        parse_config("{namespaces: [users], relay: {image: 'relay:1'}, route: {type: HTTPRoute}}", ENVIRONMENT)


def test_when_keys_are_replaced() -> None:
    def policy(text: str) -> KeyPolicy:
        return parse_config(f"{{namespaces: [users], relay: {{image: x}}, tokenKeys: {text}}}", ENVIRONMENT).token_keys

    assert policy("{}") == KeyPolicy(None, 86400, 120)
    assert policy("{rotateAfter: 720h, overlap: 1h30m, publishAhead: 3m}") == KeyPolicy(2592000, 5400, 180)
    for never in ("''", "'0'", "0s"):
        assert policy(f"{{rotateAfter: {never}}}") == KeyPolicy()
    with pytest.raises(
        ConfigError, match=r"tokenKeys\.rotateAfter: must be at least the sum of overlap and publishAhead"
    ):
        policy("{rotateAfter: 24h}")
    with pytest.raises(ConfigError, match=r"tokenKeys\.publishAhead: must be from 10 to 3600 seconds"):
        policy("{publishAhead: 1s}")


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("maxConcurrentRollouts", "0", "maxConcurrentRollouts: must be a whole number of at least 1"),
        ("logLevel", "loud", "logLevel: 'loud' is not one of debug, info"),
        ("signal", "smoke", "signal: must be 'auto', 'listen' or 'poll'"),
        ("pingInterval", "20", "pingInterval: must be a duration in quotes"),
        ("pingInterval", "'20'", "pingInterval: '20' is not a duration"),
        ("authTimeout", "1h", r"authTimeout: '3600' is not a number of seconds from 0\.1 to 300"),
        (
            "allowedOrigins",
            "[https://App.example.com]",
            r"allowedOrigins\.0: 'https://App\.example\.com' is not an origin",
        ),
        ("allowedOrigins", "['https://*.example.com']", r"allowedOrigins\.0: .* has a wildcard"),
        ("allowedOrigins", "[null]", r"allowedOrigins\.0: must be an origin in quotes; this includes 'null'"),
        ("allowedOrigins", "'*'", "allowedOrigins: must be a list"),
        ("podLabels", "{a: 1}", r"podLabels\.a: must be text"),
        ("auth", "[1]", "auth: must be a mapping"),
        (
            "auth",
            "{jwks: x}",
            r"auth\.jwks: unknown; known are allowQueryToken, allowUserKeys, audience, issuer, jwksUrl",
        ),
        ("auth", "{allowUserKeys: false}", r"auth\.jwksUrl: required with allowUserKeys: false"),
        (
            "auth",
            "{jwksUrl: 'http://issuer.example.com/'}",
            r"auth\.jwksUrl: must be a URL like https://.*, without a password; http only for",
        ),
        (
            "auth",
            "{jwksUrl: 'https://user:hunter2@issuer.example.com/'}",
            r"auth\.jwksUrl: must be a URL like https://.*, without a password; http only for",
        ),
        ("auth", "{jwksUrl: 'https://issuer.example.com/'}", r"auth\.audience: required with jwksUrl: .* or '\*'"),
        ("auth", "{allowQueryToken: 'no'}", r"auth\.allowQueryToken: must be true or false"),
    ],
)
def test_a_setting_that_cannot_be_is_named(field: str, value: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as failure:
        parse_config(f"{{namespaces: [users], relay: {{{field}: {value}}}}}", ENVIRONMENT)
    assert "hunter2" not in str(failure.value)


@pytest.mark.parametrize("url", ["https://issuer.example.com/keys", "http://keys.auth.svc:8080/keys", "http://keys/"])
def test_a_key_set_is_fetched_safely_or_from_within(url: str) -> None:
    auth = f"{{jwksUrl: '{url}', audience: '*'}}"
    config = parse_config(f"{{namespaces: [users], relay: {{image: x, auth: {auth}}}}}", ENVIRONMENT)
    assert config.relay_settings == {"JWKS_URL": url, "TOKEN_AUDIENCE": "*"}


@pytest.mark.parametrize("text", ["[1]", "a: [", "text"])
def test_what_is_no_mapping_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_config(text, ENVIRONMENT)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*none\.yaml: No such file"):
        load_config(tmp_path / "none.yaml", ENVIRONMENT)


def test_the_password_shows_in_no_text() -> None:
    assert "hunter2" not in repr(parse_config(MINIMAL, ENVIRONMENT))


ACTIVATOR = "activator: {enabled: true, namespace: system, service: waker, port: 8080}"


def test_when_users_sleep_and_who_wakes_them() -> None:
    config = parse_config(
        f"{{namespaces: [users], relay: {{image: r}}, idle: {{after: 90s}}, {ACTIVATOR}}}", ENVIRONMENT
    )
    assert config.idle == IdleDefaults(90)
    assert config.activator == Activator("system", "waker", 8080)
    activator = "activator: {enabled: true, namespace: n, service: s, parking: true}"
    parking = parse_config(
        f"{{namespaces: [users], relay: {{image: r}}, idle: {{parkAfter: 1h}}, {activator}}}", ENVIRONMENT
    )
    assert (config.idle.park_after_s, parking.idle.park_after_s) == (900, 3600)
    assert parking.activator == Activator("n", "s", parking=True)
    off = parse_config(
        "{namespaces: [users], relay: {image: r}, idle: {after: '0'}, activator: {enabled: false, service: waker}}",
        ENVIRONMENT,
    )
    assert (off.idle.after_s, off.activator) == (0, None)


def test_what_wakes_users_has_to_be_named() -> None:
    told = parse_config(
        "{namespaces: [u], relay: {image: r}, activator: {enabled: true, namespace: n, service: s, announceUrl: 'http://s.n.svc:8081'}}",
        ENVIRONMENT,
    )
    assert told.activator == Activator("n", "s", announce_url="http://s.n.svc:8081")
    with pytest.raises(ConfigError, match=r"activator\.service: required: The activator's Service"):
        parse_config("{namespaces: [u], relay: {image: r}, activator: {enabled: true, namespace: n}}", ENVIRONMENT)
    with pytest.raises(ConfigError, match=r"idle\.after: 'soon' is not a duration"):
        parse_config("{namespaces: [u], relay: {image: r}, idle: {after: soon}}", ENVIRONMENT)


def test_whoever_has_no_use_for_secrets_needs_none() -> None:
    config = parse_config("{namespaces: [users], relay: {image: 'relay:1'}, signals: {type: nats}}", None)
    assert (config.database_url, config.signals.url) == ("", "")


def opaque(**environment: str) -> Config:
    return parse_config("{namespaces: [users], relay: {image: x}, names: {opaque: true}}", ENVIRONMENT | environment)


def test_names_are_opaque_with_a_key() -> None:
    config = opaque(NAMES_KEY=NAMES_KEY)
    assert config.names.naming().child_name("alice") == OPAQUE.child_name("alice")
    assert NAMES_KEY not in repr(config)


def test_names_are_readable_by_default() -> None:
    config = parse_config(MINIMAL, {**ENVIRONMENT, "NAMES_KEY": NAMES_KEY})
    assert config.names.naming().child_name("alice") == NAMES.child_name("alice")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("", r"names\.NAMES_KEY: required with names\.opaque: a secret key of at least 32 bytes"),
        ("hunter2" * 4, r"names\.NAMES_KEY: must have 32 to 4096 bytes, and has 28: generate one with `openssl rand"),
    ],
)
def test_an_invalid_key_of_names_is_refused(key: str, message: str) -> None:
    """Readable names instead would give all users other URLs."""
    with pytest.raises(ConfigError, match=message) as caught:
        opaque(NAMES_KEY=key)
    assert "hunter2" not in str(caught.value)


def test_the_key_of_names_is_a_file(tmp_path: Path) -> None:
    text = "{namespaces: [users], relay: {image: x}, names: {opaque: true}}"
    files = {"CREDENTIALS_DIR": str(tmp_path)}
    (tmp_path / "DATABASE_URL").write_text(ENVIRONMENT["DATABASE_URL"])
    with pytest.raises(ConfigError, match=r"NAMES_KEY: the file .*/NAMES_KEY is missing: add the key NAMES_KEY"):
        parse_config(text, files)
    (tmp_path / "NAMES_KEY").write_bytes(b"\xff" * 32)
    with pytest.raises(ConfigError, match=r"NAMES_KEY: the file .*/NAMES_KEY must contain NAMES_KEY as UTF-8 text"):
        parse_config(text, files)
    (tmp_path / "NAMES_KEY").write_text(NAMES_KEY + "\n")
    assert parse_config(text, files).names.key == NAMES_KEY


def test_the_key_of_names_is_not_in_the_configuration_file() -> None:
    with pytest.raises(ConfigError, match="NAMES_KEY: set it in the environment, or as a file in CREDENTIALS_DIR"):
        parse_config(
            f"{{namespaces: [users], relay: {{image: x}}, names: {{opaque: true, NAMES_KEY: '{NAMES_KEY}'}}}}",
            ENVIRONMENT,
        )


def test_an_activator_has_no_key_of_names() -> None:
    config = parse_config("{namespaces: [users], relay: {image: x}, names: {opaque: true}}", environment=None)
    with pytest.raises(ValueError, match="must have 32 to 4096 bytes, and has 0"):
        config.names.naming()


SEALED = (
    "{namespaces: [users], relay: {image: x}, activator: {enabled: true, namespace: n, service: s, sealedKeys: true}}"
)


def test_token_keys_are_sealed_with_a_key() -> None:
    config = parse_config(SEALED, ENVIRONMENT | {"SEAL_KEY": NAMES_KEY})
    assert config.activator is not None
    seal = config.activator.seal()
    assert seal is not None
    assert seal.open("uid", Seal(NAMES_KEY).seal("uid", {"TOKEN_KEY": "k"})) == {"TOKEN_KEY": "k"}
    assert NAMES_KEY not in repr(config)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("", r"activator\.SEAL_KEY: required with activator\.sealedKeys: a secret key of at least 32 bytes"),
        (
            "hunter2" * 4,
            r"activator\.SEAL_KEY: must have 32 to 4096 bytes, and has 28: generate one with `openssl rand",
        ),
    ],
)
def test_an_invalid_key_of_the_seal_is_refused(key: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_config(SEALED, ENVIRONMENT | {"SEAL_KEY": key})
    assert "hunter2" not in str(caught.value)


def test_the_key_of_the_seal_is_not_in_the_configuration_file() -> None:
    with pytest.raises(ConfigError, match="SEAL_KEY: set it in the environment, or as a file in CREDENTIALS_DIR"):
        parse_config(SEALED.replace("sealedKeys", f"SEAL_KEY: '{NAMES_KEY}', sealedKeys"), ENVIRONMENT)


@pytest.mark.parametrize("text", [SEALED.replace("sealedKeys: true", "sealedKeys: false"), MINIMAL])
def test_without_a_seal_no_key_is_needed(text: str) -> None:
    config = parse_config(text, ENVIRONMENT)
    assert config.activator is None or config.activator.seal() is None
    without = parse_config(SEALED.replace("enabled: true", "enabled: false"), ENVIRONMENT)
    assert without.activator is None
