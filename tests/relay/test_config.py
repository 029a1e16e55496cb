from __future__ import annotations

import dataclasses

import pytest

from testing.relay.harness import KEY, environment
from userrealtime_core.environment import ConfigError
from userrealtime_core.secret import Secret
from userrealtime_relay.config import Config

URL = "postgresql://relay:hunter2@db/app"


def test_three_variables_are_enough() -> None:
    config = Config.from_environment({"USER_ID": "alice", "DATABASE_URL": URL, "TOKEN_KEY": KEY})
    assert config.user_id == "alice"
    assert config.database_url.reveal() == URL
    assert config.token_keys() == (KEY,)
    assert config.host == ""  # all addresses, of IPv4 and IPv6
    assert (config.ws_port, config.health_port, config.base_path) == (8080, 3000, "")
    assert (config.ring_events, config.ring_bytes) == (2048, 4194304)
    assert (config.max_connections, config.max_message_bytes) == (100, 65536)
    assert config.max_broadcasts_per_second == 0
    assert (config.auth_timeout, config.ping_interval, config.poll_interval) == (10, 20, None)
    assert (config.send_timeout, config.drain_timeout, config.log_level) == (30, 20, "info")


def test_every_variable_is_read() -> None:
    changes = {
        "BASE_PATH": "/urt-alice",
        "RING_EVENTS": "7",
        "RING_BYTES": "8",
        "MAX_CONNECTIONS": "9",
        "MAX_MESSAGE_BYTES": "10",
        "MAX_MESSAGES_PER_SECOND": "14",
        "MAX_BROADCASTS_PER_SECOND": "15",
        "AUTH_TIMEOUT": "11",
        "PING_INTERVAL": "12",
        "POLL_INTERVAL": "0.5",
        "SEND_TIMEOUT": "13.25",
        "DRAIN_TIMEOUT": "0",
        "LOG_LEVEL": "debug",
        "SIGNAL": "poll",
        "JWKS_URL": "https://issuer.example/keys",
        "TOKEN_ISSUER": "https://issuer.example",
        "TOKEN_AUDIENCE": "relay",
        "TOKEN_USER_CLAIM": "name",
        "TOKEN_LEEWAY": "3",
        "TOKEN_MAX_LIFETIME": "900",
    }
    config = Config.from_environment(environment(URL, **changes))
    for name, text in changes.items():
        assert str(getattr(config, name.lower())).removesuffix(".0") == text


def test_origins_and_switches() -> None:
    config = Config.from_environment(environment(URL))
    assert (config.allowed_origins, config.allow_query_token) == ((), False)
    origins = "https://app.example.com, http://localhost:5173,http://[::1]:80,"
    config = Config.from_environment(environment(URL, ALLOWED_ORIGINS=origins, ALLOW_QUERY_TOKEN="true"))
    assert config.allowed_origins == ("https://app.example.com", "http://localhost:5173", "http://[::1]:80")
    assert config.allow_query_token
    assert Config.from_environment(environment(URL, ALLOWED_ORIGINS="*")).allowed_origins == ("*",)


def test_the_protocols_are_a_set_of_known_names() -> None:
    assert Config.from_environment(environment(URL)).protocols == ()
    config = Config.from_environment(environment(URL, PROTOCOLS="durable-streams, actioncable,durable-streams,"))
    assert config.protocols == ("durable-streams", "actioncable")


def test_where_a_path_is_served() -> None:
    assert Config.from_environment(environment(URL)).paths("/ws") == ("/ws",)
    assert Config.from_environment(environment(URL, BASE_PATH="/a")).paths("/ws") == ("/ws", "/a/ws")


def test_all_that_is_wrong_is_named_at_once() -> None:
    wrong = {"WS_PORT": "65536", "RING_EVENTS": "0", "POLL_INTERVAL": "fast", "LOG_LEVEL": "loud", "BASE_PATH": "x/"}
    with pytest.raises(ConfigError) as raised:
        Config.from_environment(wrong)
    for name in ("USER_ID", "DATABASE_URL", "TOKEN_KEY", *wrong):
        assert f"\n  {name}: " in str(raised.value)
    assert "'65536' is not a whole number from 0 to 65535" in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("USER_ID", "a" * 254),
        ("USER_ID", "a\nb"),
        ("USER_ID", "a\udcff"),
        ("DATABASE_URL", "mysql://relay:hunter2@db/app"),
        ("DATABASE_URL", "postgresql://[hunter2"),
        ("TOKEN_KEY", "hunter2"),
        ("TOKEN_KEY", "hunter2" * 9 + "\udcff"),
        ("TOKEN_KEY", "-----BEGIN PUBLIC KEY-----\nhunter2hunter2hunter2"),
        ("TOKEN_KEY_PREVIOUS", "hunter2"),
        ("JWKS_URL", "http://issuer.example/hunter2"),
        ("JWKS_URL", "http://10.0.0.1/hunter2"),
        ("JWKS_URL", "http://167772161/hunter2"),
        ("JWKS_URL", "http://127.0.0.1.example.com/hunter2"),
        ("JWKS_URL", "https://user:hunter2@issuer.example/"),
        ("JWKS_URL", "https://issuer.example/#hunter2"),
        ("JWKS_URL", "https://issuer.example:0/hunter2"),
        ("JWKS_URL", "https://issuer.example:hunter2/"),
        ("JWKS_URL", "https://issuer.example/hunter2 "),
        ("JWKS_URL", "file:///hunter2"),
        ("JWKS_URL", "https:///hunter2"),
        ("TOKEN_LEEWAY", "-1"),
        ("TOKEN_MAX_LIFETIME", "0"),
        ("TOKEN_MAX_LIFETIME", "999999999"),
        ("SIGNAL", "carrier-pigeon"),
        ("DATABASE_IDLE_AFTER", "-1"),
        ("WS_PORT", "-1"),
        ("WS_PORT", "1e3"),
        ("WS_PORT", "٣"),
        ("SEND_TIMEOUT", "nan"),
        ("SEND_TIMEOUT", "0"),
        ("BASE_PATH", "/a/"),
        ("BASE_PATH", "/a?b"),
        ("LOG_LEVEL", "INFO"),
        ("ALLOW_QUERY_TOKEN", "yes"),
        ("PROTOCOLS", "actioncable,gopher"),
        ("ALLOWED_ORIGINS", "app.example.com"),
        ("ALLOWED_ORIGINS", "https://app.example.com/"),
        ("ALLOWED_ORIGINS", "https://App.example.com"),
    ],
)
def test_a_wrong_value_is_refused_and_a_secret_one_not_shown(name: str, value: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Config.from_environment(environment(URL, **{"TOKEN_AUDIENCE": "*", name: value}))
    assert f"\n  {name}: " in str(raised.value)
    assert str(raised.value).count("\n") == 1
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://issuer.example/keys?v=1",
        "http://localhost:8080/",
        "http://127.0.0.1/",
        "http://[::1]:1/",
        "http://keys/",
        "http://keys.auth.svc:8080/keys",
        "http://keys.auth.svc.cluster.local/keys",
    ],
)
def test_keys_come_from_https_or_from_inside(url: str) -> None:
    assert Config.from_environment(environment(URL, JWKS_URL=url, TOKEN_AUDIENCE="*")).jwks_url == url


def test_a_key_set_requires_an_audience() -> None:
    with pytest.raises(ConfigError, match=r"\n  TOKEN_AUDIENCE: required with JWKS_URL: .* or \*"):
        Config.from_environment(environment(URL, JWKS_URL="https://issuer.example/keys"))
    for given, audience in {"realtime": "realtime", "*": None}.items():
        read = Config.from_environment(environment(URL, JWKS_URL="https://issuer.example/keys", TOKEN_AUDIENCE=given))
        assert read.token_audience == audience
    # Tokens that only the keys of the user sign are for no other application.
    assert Config.from_environment(environment(URL)).token_audience is None


def test_one_source_of_keys_is_needed() -> None:
    key_set = {"JWKS_URL": "https://a.example/", "TOKEN_AUDIENCE": "realtime"}
    assert Config.from_environment(environment(URL, TOKEN_KEY="", **key_set)).token_keys() == ()
    for changes in ({}, {"TOKEN_KEY_PREVIOUS": KEY}, {"TOKEN_KEY_PREVIOUS": KEY, **key_set}):
        with pytest.raises(ConfigError, match=r"\n  TOKEN_KEY: required"):
            Config.from_environment(environment(URL, **{"TOKEN_KEY": "", **changes}))
    two = Config.from_environment(environment(URL, TOKEN_KEY_PREVIOUS=KEY[::-1]))
    assert two.token_keys() == (KEY, KEY[::-1])


def test_an_empty_variable_is_an_unset_one() -> None:
    assert Config.from_environment(environment(URL, RING_EVENTS="")).ring_events == 2048


def test_a_configuration_never_shows_its_secrets() -> None:
    config = Config.from_environment(environment(URL))
    for text in (repr(config), str(config), f"{config.database_url} {config.token_keys!r}"):
        assert "hunter2" not in text
        assert KEY not in text
    assert repr(Secret("x")) == "Secret(...)"
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.user_id = "bob"  # type: ignore[misc]


@pytest.mark.parametrize("broker", ["nats", "redis", "kafka"])
def test_a_broker_takes_its_url_from_its_variable(broker: str) -> None:
    variables = environment(
        URL, SIGNAL=broker, NATS_URL="nats://a", REDIS_URL="rediss://u:hunter2@b", KAFKA_URL="kafka://c"
    )
    config = Config.from_environment(variables)
    assert config.broker_url is not None
    assert config.broker_url.reveal() == variables[f"{broker.upper()}_URL"]
    assert "hunter2" not in repr(config)
    del variables[f"{broker.upper()}_URL"]
    with pytest.raises(ConfigError, match=f"{broker.upper()}_URL: required with {broker} as signal"):
        Config.from_environment(variables)


def test_without_a_broker_its_url_is_not_looked_at() -> None:
    assert Config.from_environment(environment(URL, NATS_URL="nonsense")).broker_url is None
