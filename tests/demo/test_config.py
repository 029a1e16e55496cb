from __future__ import annotations

import pytest

from examples.demo.config import ConfigError, read

GOOD = {
    "PUBLIC_URL": "http://localhost:8081/demo/",
    "DATABASE_URL": "postgresql://demo:hidden-password@db/app",
    "SESSION_KEY": "0123456789abcdef" * 2,
}


def test_what_is_given_is_read() -> None:
    config = read(GOOD)
    assert (config.origin, config.path) == ("http://localhost:8081", "/demo")
    assert (config.namespace, config.port, config.secure) == ("users", 8000, False)
    assert config.socket_origin == "ws://localhost:8081"
    other = read({**GOOD, "PUBLIC_URL": "https://demo.example.com", "NAMESPACE": "people", "PORT": "9000"})
    assert (other.origin, other.path, other.secure) == ("https://demo.example.com", "", True)
    assert (other.namespace, other.port, other.socket_origin) == ("people", 9000, "wss://demo.example.com")


def test_secrets_are_not_shown() -> None:
    shown = repr(read(GOOD))
    assert "hidden-password" not in shown
    assert GOOD["SESSION_KEY"] not in shown


@pytest.mark.parametrize("name", GOOD)
def test_what_is_missing_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is not set"):
        read({**GOOD, name: " "})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PUBLIC_URL", "localhost:8081/demo"),
        ("PUBLIC_URL", "ftp://localhost/demo"),
        ("PUBLIC_URL", "http:///demo"),
        ("PUBLIC_URL", "http://localhost/demo?a=b"),
        ("SESSION_KEY", "short"),
        ("PORT", "0"),
        ("PORT", "65536"),
        ("PORT", "http"),
    ],
)
def test_what_is_wrong_is_named(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name):
        read({**GOOD, name: value})
