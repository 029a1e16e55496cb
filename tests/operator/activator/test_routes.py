"""The route table: which user a URL belongs to."""

from __future__ import annotations

import pytest

from testing.operator.activator import resource
from testing.operator.names import OPAQUE, child_name
from userrealtime_operator.activator.routes import RouteTable
from userrealtime_operator.kube.types import NamespacedName

NAME = child_name("alice")


def found(routes: RouteTable, host: str, path: str = "/ws") -> NamespacedName | None:
    route = routes.find(host, path)
    return route and route.user


@pytest.mark.parametrize(
    "host",
    [NAME, f"{NAME}.users", f"{NAME}.users.svc", f"{NAME}.users.svc.cluster.local:8080", NAME.upper(), f"{NAME}."],
)
def test_by_the_services_name(host: str) -> None:
    routes = RouteTable()
    routes.put(resource())
    assert found(routes, host) == ("users", "alice")


def test_by_the_route() -> None:
    routes = RouteTable()
    routes.put(resource(url=f"https://realtime.example.com/{NAME}"))
    assert found(routes, "realtime.example.com", f"/{NAME}/ws") == ("users", "alice")
    assert found(routes, "Realtime.example.com:443", f"/{NAME}") == ("users", "alice")
    assert found(routes, "realtime.example.com", f"/{NAME}x/ws") is None
    assert found(routes, "realtime.example.com", "/ws") is None
    assert found(routes, "example.com", f"/{NAME}/ws") is None
    assert found(routes, "realtime.example.com", f"/{NAME}" + "/x" * 1000) == ("users", "alice")


@pytest.mark.parametrize("host", ["", ":", "[::1]", f"{NAME}:x", "..", f"x.{NAME}"])
def test_strangers(host: str) -> None:
    routes = RouteTable()
    routes.put(resource())
    assert found(routes, host) is None


def test_an_address_of_two_leads_to_neither() -> None:
    routes = RouteTable()
    routes.put(resource())
    routes.put(resource(namespace="others"))
    assert found(routes, NAME) is None
    assert found(routes, f"{NAME}.others") == ("others", "alice")
    routes.remove(NamespacedName("others", "alice"))
    assert found(routes, NAME) == ("users", "alice")
    assert found(routes, f"{NAME}.others") is None


def test_opaque_names_are_those_of_the_status() -> None:
    """The activator does not have their key."""
    routes = RouteTable()
    item, name = resource(), OPAQUE.child_name("alice")
    routes.put(item)
    item["status"] = {"name": name, "url": f"https://realtime.example.com/{name}"}
    routes.put(item)
    assert found(routes, f"{name}.users.svc") == ("users", "alice")
    assert found(routes, "realtime.example.com", f"/{name}/ws") == ("users", "alice")
    route = routes.find(name, "/ws")
    assert route is not None
    assert route.key == ("users", name)
    assert found(routes, NAME) is None
    assert found(routes, "realtime.example.com", f"/{NAME}/ws") is None


def test_a_user_without_objects_has_no_address() -> None:
    routes = RouteTable()
    item = resource()
    routes.put(item)
    routes.put(item | {"status": {}})
    assert found(routes, NAME) is None
    routes.put({name: value for name, value in item.items() if name != "status"})
    assert found(routes, NAME) is None


def test_a_new_url_takes_the_place_of_the_old() -> None:
    routes = RouteTable()
    routes.put(resource(url="https://a.example.com"))
    routes.put(resource(url="https://b.example.com"))
    assert found(routes, "a.example.com") is None
    assert found(routes, "b.example.com") == ("users", "alice")


def test_the_protocols_of_a_user() -> None:
    table = RouteTable(("pusher",))
    body = resource("alice")
    user = NamespacedName("users", "alice")
    assert table.protocols(user) == ()
    table.put(body)
    assert table.protocols(user) == ("pusher",)
    for protocols in (["socketio", "supabase"], []):
        body["spec"]["protocols"] = protocols
        table.put(body)
        assert table.protocols(user) == tuple(protocols)
    table.remove(user)
    assert table.protocols(user) == ()
