"""Reconciling with a separate database role for each user, on a real PostgreSQL and a fake API server."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import asyncpg
import pytest

from testing.database import Database as OwnDatabase
from testing.operator.fixture import CREDENTIALS, SECRET
from testing.operator.names import NAMES, OPAQUE
from testing.operator.roles import RoleFixture
from userrealtime_operator.model.labels import PASSWORD_ROTATION_ANNOTATION
from userrealtime_operator.model.naming import CREDENTIALS_SUFFIX
from userrealtime_operator.postgres.database import Database


@pytest.fixture
async def world(migrated: OwnDatabase) -> AsyncIterator[RoleFixture]:
    async with Database(migrated.url) as database:
        yield RoleFixture(migrated.url, database)


async def test_a_user_gets_a_role_and_then_nothing_is_written(world: RoleFixture) -> None:
    await world.reconcile()
    assert await world.served() == "alice"
    world.become_available()
    await world.reconcile()
    assert await world.reconcile() == []


async def test_a_password_is_replaced_on_request_beside_the_old_one(
    world: RoleFixture, connection: asyncpg.Connection
) -> None:
    await world.reconcile()
    old = world.secret_url()
    world.api.resources["users", "alice"]["metadata"]["annotations"] = {PASSWORD_ROTATION_ANNOTATION: "1"}
    await world.reconcile()
    assert world.secret_url() == old  # the first rollout is under way
    world.become_available()
    await world.reconcile()
    assert world.secret_url() != old
    assert await world.served() == "alice"
    await (await asyncpg.connect(old)).close()
    world.become_available()
    await world.reconcile()
    retired = "select drop_after is not null from userrealtime.role order by drop_after nulls last"
    assert [row[0] for row in await connection.fetch(retired)] == [True, False]


async def test_a_dropped_role_comes_back(world: RoleFixture, connection: asyncpg.Connection) -> None:
    await world.reconcile()
    await connection.execute(f"drop role {world.secret_url().split('//')[1].split(':')[0]}")
    await world.reconciler.sweep("users")
    uid = world.api.resources["users", "alice"]["metadata"]["uid"]
    assert not world.reconciler.is_registered(uid)
    await world.reconcile()
    assert await world.served() == "alice"


async def test_a_role_goes_with_its_resource(world: RoleFixture) -> None:
    await world.reconcile()
    url = world.secret_url()
    world.api.resources.clear()
    await world.reconciler.sweep("users")
    with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
        await asyncpg.connect(url)


async def test_a_damaged_password_is_replaced_by_one_of_the_other_role(world: RoleFixture) -> None:
    await world.reconcile()
    world.become_available()
    await world.reconcile()
    old = world.secret_url()
    world.api.children[CREDENTIALS]["data"]["DATABASE_URL"] = base64.b64encode(b"nonsense").decode()
    await world.reconcile()
    assert urlsplit(world.secret_url()).username != urlsplit(old).username
    assert await world.served() == "alice"
    # the role of the pod that is being replaced
    await (await asyncpg.connect(old)).close()


async def test_the_one_secret_of_an_earlier_version_keeps_its_role(
    world: RoleFixture, connection: asyncpg.Connection
) -> None:
    await world.reconcile()
    world.become_available()
    await world.reconcile()
    old = world.secret_url()
    world.api.children[SECRET]["data"] |= world.api.children.pop(CREDENTIALS)["data"]
    # Earlier versions did not store the series of a role.
    await connection.execute("update userrealtime.role set series = null")
    pod = await asyncpg.connect(old)
    world.restart_with_roles()
    await world.reconcile()
    assert world.secret_url() == old
    assert world.api.children[SECRET]["data"].keys() == {"TOKEN_KEY"}
    assert await pod.fetchval("select userrealtime.served_user()") == "alice"
    await pod.close()
    assert await world.reconcile() == []


async def test_with_new_names_the_role_is_replaced_and_the_log_stays(
    world: RoleFixture, connection: asyncpg.Connection
) -> None:
    await world.reconcile()
    world.become_available()
    await world.reconcile()
    old = world.secret_url()
    await connection.execute("select userrealtime.publish('alice', 'note', '{}')")
    kept = "select epoch, head from userrealtime.log where user_id = 'alice'"
    before = await connection.fetchrow(kept)
    assert before is not None
    world.restart_with_roles(OPAQUE)
    await world.reconcile()
    await world.reconciler.remove_orphans("users", NAMES.child_name("alice"))
    await world.reconciler.sweep("users")
    with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
        await asyncpg.connect(old)
    [secret] = [key for key in world.api.children if key.name == OPAQUE.child_name("alice") + CREDENTIALS_SUFFIX]
    new = base64.b64decode(world.api.children[secret]["data"]["DATABASE_URL"]).decode()
    pod = await asyncpg.connect(new)
    assert await pod.fetchval("select userrealtime.served_user()") == "alice"
    await pod.close()
    assert await connection.fetchrow(kept) == before
