"""Which user an address leads to."""

from __future__ import annotations

import pytest

from tests.operator.activator.support import resource
from userrealtime_operator.activator.directory import Directory
from userrealtime_operator.model.naming import child_name
from userrealtime_operator.reconcile.rollouts import User

NAME = child_name("alice")


def found(directory: Directory, host: str, path: str = "/ws") -> User | None:
    target = directory.find(host, path)
    return target and target.user


@pytest.mark.parametrize(
    "host",
    [NAME, f"{NAME}.users", f"{NAME}.users.svc", f"{NAME}.users.svc.cluster.local:8080", NAME.upper(), f"{NAME}."],
)
def test_by_the_services_name(host: str) -> None:
    directory = Directory()
    directory.put(resource())
    assert found(directory, host) == ("users", "alice")


def test_by_the_route() -> None:
    directory = Directory()
    directory.put(resource(url=f"https://realtime.example.com/{NAME}"))
    assert found(directory, "realtime.example.com", f"/{NAME}/ws") == ("users", "alice")
    assert found(directory, "Realtime.example.com:443", f"/{NAME}") == ("users", "alice")
    assert found(directory, "realtime.example.com", f"/{NAME}x/ws") is None
    assert found(directory, "realtime.example.com", "/ws") is None
    assert found(directory, "example.com", f"/{NAME}/ws") is None
    assert found(directory, "realtime.example.com", f"/{NAME}" + "/x" * 1000) == ("users", "alice")


@pytest.mark.parametrize("host", ["", ":", "[::1]", f"{NAME}:x", "..", f"x.{NAME}"])
def test_strangers(host: str) -> None:
    directory = Directory()
    directory.put(resource())
    assert found(directory, host) is None


def test_an_address_of_two_leads_to_neither() -> None:
    directory = Directory()
    directory.put(resource())
    directory.put(resource(namespace="others"))
    assert found(directory, NAME) is None
    assert found(directory, f"{NAME}.others") == ("others", "alice")
    directory.remove(User("others", "alice"))
    assert found(directory, NAME) == ("users", "alice")
    assert found(directory, f"{NAME}.others") is None


def test_a_new_url_takes_the_place_of_the_old() -> None:
    directory = Directory()
    directory.put(resource(url="https://a.example.com"))
    directory.put(resource(url="https://b.example.com"))
    assert found(directory, "a.example.com") is None
    assert found(directory, "b.example.com") == ("users", "alice")
