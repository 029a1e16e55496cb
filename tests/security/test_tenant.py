"""An attacker who may create UserRealtime resources, and Secrets, in a served namespace."""

from __future__ import annotations

import asyncio
import base64
import copy
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from testing.installation import SCOPE, Installation, installation
from testing.operator.fixture import SECRET, ReconcilerFixture
from testing.operator.names import child_name
from testing.operator.samples import CONFIG, body
from userrealtime_operator.kube.types import Object, ObjectKey
from userrealtime_operator.postgres.database import Database
from userrealtime_operator.reconcile.reconciler import ELSEWHERE_RETRY_S

ALICE, MALLORY = child_name("alice"), child_name("mallory")
ALICES_URL = f"https://realtime.example.com/{ALICE}"
OTHER_SCOPE = "cluster/team-b"


@pytest.fixture
def world() -> ReconcilerFixture:
    return ReconcilerFixture()


def kinds(world: ReconcilerFixture, name: str) -> set[str]:
    return {key.kind for key in world.api.children if key.name == child_name(name)}


# --- the status of a resource


@pytest.mark.parametrize("how", ["refused", "unresolved", "password", "no rights", "no database"])
async def test_the_status_names_neither_host_nor_role(
    site: Installation,
    world: ReconcilerFixture,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    how: str,
) -> None:
    """The message of the error, which has these names, is in the operator's log."""
    parts = urlsplit(site.operator_url)
    internal = "no.internal.invalid"
    admin = await asyncpg.connect(site.admin_url)
    await admin.execute("create role internal_role login password 'x'")
    await admin.close()
    server = f"{parts.hostname}:{parts.port}"
    url, secret = {
        "refused": (f"postgresql://realtime:x@127.0.0.1:1{parts.path}", "127.0.0.1"),
        "unresolved": (f"postgresql://realtime:x@{internal}:5432{parts.path}", "5432"),
        "password": (f"postgresql://realtime:wrong@{server}{parts.path}", "realtime"),
        "no rights": (f"postgresql://internal_role:x@{server}{parts.path}", "schema userrealtime"),
        "no database": (f"postgresql://internal_role:x@{server}/internal_database", "internal_database"),
    }[how]
    item = body("alice")
    item["metadata"]["uid"] = str(uuid.uuid4())
    world.add(item)
    async with Database(url) as database:
        monkeypatch.setattr(world.database, "register", database.register)
        await world.reconciler.reconcile("users", "alice")
    for condition in ("DatabaseReady", "Ready"):
        status, reason, message = world.condition(condition)
        assert (status, reason) == ("False", "DatabaseUnavailable")
        assert message.endswith("the operator's log has the message")
        assert not [each for each in (secret, "127.0.0.1", internal, str(parts.port), 'realtime"') if each in message]
    assert how == "unresolved" or secret in caplog.text


# --- a userId of another namespace


@pytest.fixture
async def site() -> AsyncIterator[Installation]:
    async with installation() as site:
        yield site


async def test_a_user_belongs_to_one_namespace(site: Installation) -> None:
    first, second, third = (str(uuid.uuid4()) for _ in range(3))
    async with Database(site.operator_url) as database:
        assert await database.register(first, SCOPE, "alice")
        assert not await database.register(second, OTHER_SCOPE, "alice")
        assert await database.registered(OTHER_SCOPE) == set()
        assert await database.register(second, OTHER_SCOPE, "bob")
        # The sharing that the platform allows.
        assert await database.register(third, OTHER_SCOPE, "alice", shared=True)
        # And what is registered stays so when it is not allowed any more.
        assert await database.register(third, OTHER_SCOPE, "alice")
        # The refused resource has not kept the log from being removed.
        await database.forget(third)
        await database.forget(first)
        assert await database.pool.fetch("select from userrealtime.log where user_id = 'alice'") == []
        assert await database.register(third, OTHER_SCOPE, "alice")


async def test_of_two_namespaces_at_the_same_time_one_gets_the_user(site: Installation) -> None:
    admin = await asyncpg.connect(site.admin_url)
    async with Database(site.operator_url) as one, Database(site.operator_url) as other:
        for number in range(20):
            user = f"user{number}"
            results = await asyncio.gather(
                *(
                    database.register(str(uuid.uuid4()), f"{scope}/{number}", user)
                    for scope, database in (("one", one), ("other", other), ("third", one))
                )
            )
            assert sorted(results) == [False, False, True]
            assert await admin.fetchval("select count(*) from userrealtime.registration where user_id = $1", user) == 1
    await admin.close()


async def test_a_user_of_another_namespace_gets_no_objects(world: ReconcilerFixture) -> None:
    world.database.elsewhere = True
    assert await world.reconcile() == ["status"]
    assert world.condition("Ready")[:2] == ("False", "UserServedElsewhere")
    assert world.condition("DatabaseReady")[:2] == ("False", "NotRegistered")
    assert world.api.children == {}
    assert await world.reconciler.reconcile("users", "alice") == ELSEWHERE_RETRY_S
    world.database.elsewhere = False
    await world.reconcile()
    assert "Deployment" in kinds(world, "alice")
    assert world.condition("DatabaseReady")[0] == "True"


async def test_the_platform_may_share_users(world: ReconcilerFixture) -> None:
    world.database.elsewhere = True
    world.restart(replace(CONFIG, database=replace(CONFIG.database, shared_users=True)))
    await world.reconcile()
    assert "Deployment" in kinds(world, "alice")


async def test_a_second_resource_of_a_user_is_not_registered(world: ReconcilerFixture) -> None:
    """It would keep the log of the first."""
    await world.reconcile()
    world.add(body("second", userId="alice"))
    assert await world.reconciler.reconcile("users", "second") is None
    assert world.condition("Ready", "second")[:2] == ("False", "DuplicateUserId")
    assert world.database.known == {"uid-of-alice": "alice"}


# --- images and URLs


async def test_an_image_that_is_not_allowed_does_not_run(world: ReconcilerFixture) -> None:
    world.add(body(relay={"image": "evil.example/steals-tokens"}))
    await world.reconcile()
    assert world.condition("Ready")[:2] == ("False", "ImageNotAllowed")
    assert world.api.children == {}


async def test_an_image_that_is_no_longer_allowed_stops(world: ReconcilerFixture) -> None:
    world.add(body(relay={"image": "mine:2"}))
    await world.reconcile()
    assert "Deployment" in kinds(world, "alice")
    world.restart(replace(CONFIG, relay=replace(CONFIG.relay, allowed_images=())))
    assert "delete Deployment" in await world.reconcile()
    assert await world.reconcile() == []
    assert {"Secret", "Service"} <= kinds(world, "alice")
    world.add(body())
    await world.reconcile()
    assert "Deployment" in kinds(world, "alice")


@pytest.mark.parametrize("url", ["https://login.example.org", "https://realtime.example.com.evil.example/x"])
async def test_a_host_that_is_not_allowed_gets_no_route(world: ReconcilerFixture, url: str) -> None:
    await world.reconcile()
    assert "Ingress" in kinds(world, "alice")
    world.add(body(route={"enabled": True, "url": url}))
    assert "delete Ingress" in await world.reconcile()
    assert world.condition("Ready")[:2] == ("False", "RouteNotAllowed")
    assert "url" not in world.api.resources["users", "alice"]["status"]


OVERLAPPING = (
    ALICES_URL,
    f"{ALICES_URL}/ws",
    "https://realtime.example.com",
    f"http://realtime.example.com:80/{ALICE}",
)


@pytest.mark.parametrize("url", OVERLAPPING)
async def test_a_url_of_another_user_is_refused(world: ReconcilerFixture, url: str) -> None:
    await world.serve("alice")
    world.add(body("mallory", route={"enabled": True, "url": url}))
    await world.reconcile("mallory")
    assert world.condition("Ready", "mallory")[:2] == ("False", "RouteConflict")
    assert kinds(world, "mallory") == set()
    assert await world.reconcile("alice") == []
    assert world.condition("Ready")[0] == "True"


@pytest.mark.parametrize("url", OVERLAPPING)
@pytest.mark.parametrize("restarted", [False, True])
async def test_a_url_that_was_taken_in_advance_is_lost_to_its_user(
    world: ReconcilerFixture, url: str, restarted: bool
) -> None:
    world.add(older(body("mallory", route={"enabled": True, "url": url})))
    await world.reconcile("mallory")
    assert "Ingress" in kinds(world, "mallory")
    if restarted:
        restart(world)
    await world.reconcile("alice")
    assert "Ingress" in kinds(world, "alice")
    assert world.woken == ["mallory"]
    assert "delete Ingress" in await world.reconcile("mallory")
    assert world.condition("Ready", "mallory")[:2] == ("False", "RouteConflict")


async def test_a_restarted_operator_gives_no_url_away(world: ReconcilerFixture) -> None:
    await world.serve("alice")
    world.add(older(body("mallory", route={"enabled": True, "url": ALICES_URL + "/ws"})))
    restart(world)
    await world.reconcile("mallory")
    assert world.condition("Ready", "mallory")[:2] == ("False", "RouteConflict")
    assert kinds(world, "mallory") == set()
    assert await world.reconcile("alice") == []


async def test_a_url_is_free_after_its_user_has_left(world: ReconcilerFixture) -> None:
    await world.serve("alice")
    world.add(body("mallory", route={"enabled": True, "url": ALICES_URL + "/ws"}))
    await world.reconcile("mallory")
    del world.api.resources["users", "alice"]
    await world.reconcile("alice")
    assert world.woken == ["mallory"]
    await world.reconcile("mallory")
    assert "Ingress" in kinds(world, "mallory")


def older(item: Object) -> Object:
    return {**item, "metadata": {**item["metadata"], "creationTimestamp": "2020-01-01T00:00:00Z"}}


def restart(world: ReconcilerFixture) -> None:
    """As a new leader: with all resources, before any of them is reconciled."""
    world.restart()
    world.reconciler.resume_rollouts(world.api.resources.values())


# --- Secrets


def planted(**metadata: Any) -> Object:
    data = {name: base64.b64encode(b"a key that the attacker has chosen").decode() for name in ("TOKEN_KEY",)}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": ALICE, "namespace": "users", "resourceVersion": "7", "uid": "planted", **metadata},
        "type": "Opaque",
        "data": data,
    }


@pytest.mark.parametrize("known", [True, False], ids=["cached", "not cached"])
@pytest.mark.parametrize(
    "annotations", [{}, {"userrealtime.dev/token-key-series": "one"}], ids=["bare", "with annotations"]
)
async def test_a_planted_secret_is_not_adopted(
    world: ReconcilerFixture, known: bool, annotations: dict[str, str]
) -> None:
    world.api.children[SECRET] = secret = planted(annotations=annotations)
    world.stale = None if known else {}
    await world.reconcile()
    world.stale = None
    keys = world.keys()
    assert keys.keys() == {"TOKEN_KEY"}
    assert keys["TOKEN_KEY"] != base64.b64decode(secret["data"]["TOKEN_KEY"]).decode()
    metadata = world.api.children[SECRET]["metadata"]
    assert metadata["ownerReferences"][0]["uid"] == "uid-of-alice"
    assert metadata["annotations"]["userrealtime.dev/token-key-series"] != "one"
    await world.reconcile()
    assert world.keys() == keys


@pytest.mark.parametrize(("uid", "adopted"), [("planted", True), ("another", False)])
async def test_a_resource_can_adopt_a_secret_by_its_uid(world: ReconcilerFixture, uid: str, adopted: bool) -> None:
    world.api.children[SECRET] = secret = copy.deepcopy(planted())
    world.api.resources["users", "alice"]["metadata"]["annotations"] = {"userrealtime.dev/adopt-secret": uid}
    await world.reconcile()
    chosen = base64.b64decode(secret["data"]["TOKEN_KEY"]).decode()
    assert (world.keys()["TOKEN_KEY"] == chosen) is adopted
    assert ObjectKey("Deployment", "users", ALICE) in world.api.children
