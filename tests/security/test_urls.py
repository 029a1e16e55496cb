"""A reader of URLs, DNS names or access logs with a list of possible userIds, and without the key of opaque names."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest

from testing.operator.fixture import ReconcilerFixture
from testing.operator.names import NAMES, NAMES_KEY, OPAQUE
from testing.operator.samples import CONFIG, SECRETS, body, resource
from userrealtime_operator.activator.routes import RouteTable
from userrealtime_operator.config import Activator, Config, Names, RouteDefaults, RouteType
from userrealtime_operator.kube.types import NamespacedName
from userrealtime_operator.manifests.children import desired_objects
from userrealtime_operator.model.naming import Naming
from userrealtime_operator.model.resource import parse_resource
from userrealtime_operator.sleep.state import Endpoints

USER_ID = "Zoe.Quux@example.org"
READABLE = ("zoe", "quux", "example")
ANNOUNCE_URL = "http://waker.system.svc:8081"


def configuration(kind: RouteType, url: str) -> Config:
    gateway: Any = {"name": "public"}
    return replace(
        CONFIG,
        route=RouteDefaults(type=kind, url=url, gateway=gateway),
        activator=Activator("system", "waker", announce_url=ANNOUNCE_URL),
        names=Names(opaque=True, key=NAMES_KEY),
    )


def without_annotations(value: object) -> object:
    """Return an object without its annotations, and without the variable with the userId, which no URL contains."""
    if isinstance(value, dict):
        return {name: without_annotations(part) for name, part in value.items() if name != "annotations"}
    if isinstance(value, list):
        return [without_annotations(part) for part in value if part != {"name": "USER_ID", "value": USER_ID}]
    return value


@pytest.mark.parametrize("url", ["https://{name}.realtime.test", "https://realtime.test/{name}"])
@pytest.mark.parametrize("kind", [*RouteType])
def test_opaque_names_and_urls_contain_no_part_of_the_user_id(kind: RouteType, url: str) -> None:
    config = configuration(kind, url)
    user = parse_resource(body("user-1", userId=USER_ID), config.names.naming())
    endpoints = Endpoints("IPv4", ("10.0.0.1",), 8080)
    objects = desired_objects(user, config, SECRETS, activators=endpoints)
    assert {item["metadata"]["name"].removesuffix("-activator").removesuffix("-credentials") for item in objects} == {
        OPAQUE.child_name(USER_ID)
    }
    text = json.dumps(without_annotations([*objects]))
    assert f"{ANNOUNCE_URL}/users/{OPAQUE.child_name(USER_ID)}" in text
    for part in READABLE:
        assert part not in text.lower(), part
    # The check finds the readable part of names without a key.
    readable = resource("user-1", userId=USER_ID)
    assert "zoe-quux" in json.dumps(
        without_annotations([*desired_objects(readable, config, SECRETS, activators=endpoints)])
    )


def test_a_list_of_user_ids_gives_no_opaque_name() -> None:
    """A readable name can be computed from the userId."""
    seen = OPAQUE.child_name(USER_ID)
    guessed = [USER_ID, USER_ID.lower(), *(f"{USER_ID}{end}" for end in ("", "\n", "\0"))]
    for user_id in guessed:
        digest = hashlib.sha256(user_id.encode()).digest()
        assert base64.b32encode(digest).decode().lower()[:8] not in seen
        assert NAMES.child_name(user_id) != seen
        assert Naming("\0" * 32).child_name(user_id) != seen
    assert NAMES.child_name(USER_ID) in [NAMES.child_name(user_id) for user_id in guessed]


def test_the_key_is_not_in_the_objects_of_users() -> None:
    config = configuration(RouteType.INGRESS, "https://realtime.test/{name}")
    objects = desired_objects(parse_resource(body(), config.names.naming()), config, SECRETS)
    for key in (NAMES_KEY, base64.b64encode(NAMES_KEY.encode()).decode()):
        assert key not in json.dumps([*objects])
    assert NAMES_KEY not in repr(config)


async def test_readable_objects_and_urls_are_removed_when_the_key_is_added() -> None:
    world = ReconcilerFixture()
    world.api.resources.clear()
    world.add(body("user-1", userId="zoe.quux"))
    await world.reconciler.reconcile("users", "user-1")
    assert all("zoe-quux" in key.name for key in world.api.children)
    world.restart(naming=OPAQUE)
    await world.reconciler.reconcile("users", "user-1")
    await world.reconciler.remove_orphans("users", NAMES.child_name("zoe.quux"))
    assert world.api.children
    assert not [key for key in world.api.children if "zoe" in key.name]
    status = world.api.resources["users", "user-1"]["status"]
    assert status["url"].endswith(OPAQUE.child_name("zoe.quux"))
    assert "zoe" not in json.dumps(status)
    # The activator finds the user by the new name alone, from the status.
    routes = RouteTable()
    routes.put(world.api.resources["users", "user-1"])
    route = routes.find(OPAQUE.child_name("zoe.quux"), "/ws")
    assert route is not None
    assert route.user == NamespacedName("users", "user-1")
    assert routes.find(NAMES.child_name("zoe.quux"), "/ws") is None
