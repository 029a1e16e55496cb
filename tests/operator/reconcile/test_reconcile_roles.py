"""Reconciling with a role a user, on a real PostgreSQL and the stand-in for the API server."""

from __future__ import annotations

import base64
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from urllib.parse import urlsplit

import asyncpg
import pytest

from testing.database import Database as OwnDatabase
from testing.operator.fixture import SECRET, ReconcilerFixture
from testing.operator.samples import CONFIG, body
from userrealtime_operator.config import DatabaseAccess
from userrealtime_operator.model.labels import PASSWORD_ROTATION_ANNOTATION
from userrealtime_operator.postgres.database import Database
from userrealtime_operator.postgres.roles import Roles
from userrealtime_operator.process.metrics import Metrics
from userrealtime_operator.reconcile.reconciler import Reconciler


class RoleFixture(ReconcilerFixture):
    """A world with a database."""

    def __init__(self, url: str, database: Database) -> None:
        super().__init__()
        item = body()
        item["metadata"]["uid"] = str(uuid.uuid4())
        self.add(item)
        self.url = url
        self.reconciler = Reconciler(
            replace(CONFIG, database_url=url, database=DatabaseAccess()),
            self.api,
            database,
            self.resource_cache,
            self.child_cache,
            lambda _: None,
            Metrics(),
            now=lambda: self.time,
            roles=Roles(database),
        )

    async def served(self) -> str:
        """Return the user that the database serves to the credentials in alice's Secret."""
        connection = await asyncpg.connect(self.secret_url())
        try:
            return str(await connection.fetchval("select userrealtime.served_user()"))
        finally:
            await connection.close()

    def secret_url(self) -> str:
        return base64.b64decode(self.api.children[SECRET]["data"]["DATABASE_URL"]).decode()


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
    world.api.children[SECRET]["data"]["DATABASE_URL"] = base64.b64encode(b"nonsense").decode()
    await world.reconcile()
    assert urlsplit(world.secret_url()).username != urlsplit(old).username
    assert await world.served() == "alice"
    # Of the pod that is being replaced.
    await (await asyncpg.connect(old)).close()
