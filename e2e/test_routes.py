"""The types of routes: the same scenarios with an Ingress or an HTTPRoute per user, and with the shared edge."""

from __future__ import annotations

import asyncio
import json
import urllib.error
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from testing.client import http_get
from testing.cluster import addons
from testing.patience import PATIENCE_S
from testing.system import System, upgrade
from testing.waiting import eventually

from . import test_delivery, test_faults

MakeUser = Callable[..., str]

# The hosts end in `localhost`, which is this machine. Each route replaces the one before it, of which the first is the
# Ingress by path of all other tests.
ROUTES: dict[str, dict[str, Any]] = {
    "HTTPRoute by path": {"type": "HTTPRoute", "gateway": addons.GATEWAY, "url": "http://localhost:PORT/{name}"},
    "HTTPRoute by host": {"type": "HTTPRoute", "gateway": addons.GATEWAY, "url": "http://{name}.localhost:PORT"},
    "Ingress by host": {"url": "http://{name}.localhost:PORT"},
    "Edge by path": {"type": "Edge", "url": "http://localhost:PORT/{namespace}/{name}"},
    "Edge by host": {"type": "Edge", "url": "http://{name}.localhost:PORT"},
}
BEFORE = "routed-before"


@pytest.fixture(scope="module")
def before(system: System) -> Iterator[None]:
    """A user from before the routes. The usual route is restored at the end."""
    system.apply_user(BEFORE)
    system.wait_ready(BEFORE)
    yield
    system.delete_user(BEFORE)
    upgrade(system, system.values)


@pytest.fixture(scope="module", params=list(ROUTES.values()), ids=list(ROUTES))
def routed(request: pytest.FixtureRequest, system: System, before: None) -> System:
    """The system with another kind of route."""
    port = urlsplit(system.cluster.ingress_url).port or 80
    route = {**request.param, "url": request.param["url"].replace("PORT", str(port))}
    upgrade(system, {**system.values, "route": route})
    return system


def test_a_user_from_before_has_the_new_route_alone(routed: System, request: pytest.FixtureRequest) -> None:
    kind = request.node.callspec.id.split(" ")[0]
    name = routed.get("urt", BEFORE)["status"]["name"]
    wanted = {
        "Ingress": f"ingress.networking.k8s.io/{name}",
        "HTTPRoute": f"httproute.gateway.networking.k8s.io/{name}",
        "Edge": "",
    }[kind]

    def as_wanted() -> bool:
        selector = ("-l", f"app.kubernetes.io/instance={name}", "-o", "name")
        return routed.kubectl("get", "ingresses,httproutes", *selector).strip() == wanted

    eventually(as_wanted, f"only {wanted or 'no object'}")
    by_host = request.node.callspec.id.endswith("host")
    eventually(lambda: (f"//{name}." in routed.get("urt", BEFORE)["status"]["url"]) == by_host, "the new URL")


async def test_rows_tokens_streams_polls_and_killed_pods(
    routed: System, users: MakeUser, database: asyncpg.Connection, database_url: str, standard_clients: Path
) -> None:
    """The scenarios run at the same time: one of them waits for the limit of a client that sends no token."""
    other = await asyncpg.connect(database_url, timeout=PATIENCE_S)
    replaced = test_faults.test_clients_that_connect_while_a_pod_is_replaced_get_no_error
    streams_and_polls = test_delivery.test_streams_and_polls_come_through_the_ingress_as_well
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(test_delivery.test_a_row_reaches_its_user_and_nobody_else(routed, users, database))
            group.create_task(test_delivery.test_tokens(routed, users))
            group.create_task(streams_and_polls(routed, users, other))
            group.create_task(test_faults.test_the_relays_pod_is_killed_twice(routed, users, database_url))
            group.create_task(replaced(routed, users, database_url, standard_clients))
    finally:
        await other.close(timeout=PATIENCE_S)


async def test_a_stranger_gets_an_answer(routed: System, request: pytest.FixtureRequest) -> None:
    """A URL without a user is answered immediately with an error, and never by another user's relay."""
    name = routed.get("urt", BEFORE)["status"]["name"]
    url = routed.get("urt", BEFORE)["status"]["url"].replace(name, f"{name}x") + "/poll"
    with pytest.raises(urllib.error.HTTPError) as caught:
        await asyncio.to_thread(http_get, url, {})
    with caught.value as answer:
        assert answer.code in (404, 503)
        if request.node.callspec.id.startswith("Edge"):
            assert "no such user" in json.load(answer)["error"]
