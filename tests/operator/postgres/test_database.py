"""The operator's access to the log, on a real PostgreSQL."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from testing.database import Database as OwnDatabase
from userrealtime_operator.model.policies import Retention
from userrealtime_operator.postgres import database as module
from userrealtime_operator.postgres.database import Database, DatabaseError
from userrealtime_operator.postgres.retention import prune
from userrealtime_operator.postgres.roles import Roles

ONE, OTHER = (str(uuid.UUID(int=number)) for number in (1, 2))
SCOPE = "cluster/users"


@pytest.fixture
async def database(migrated: OwnDatabase) -> AsyncIterator[Database]:
    async with Database(migrated.url) as database:
        yield database


async def left(connection: asyncpg.Connection) -> dict[str, int]:
    return {
        table: await connection.fetchval(f"select count(*) from userrealtime.{table}")
        for table in ("registration", "log", "event", "inbox")
    }


async def test_registering_makes_the_log_once(database: Database, connection: asyncpg.Connection) -> None:
    await database.register(ONE, SCOPE, "alice")
    epoch = await connection.fetchval("select epoch from userrealtime.log where user_id = 'alice'")
    await database.register(ONE, SCOPE, "alice")
    assert await left(connection) == {"registration": 1, "log": 1, "event": 0, "inbox": 0}
    assert await connection.fetchval("select epoch from userrealtime.log where user_id = 'alice'") == epoch
    assert await database.registered(SCOPE) == {ONE}
    assert await database.registered("other/users") == set()


async def test_a_resource_follows_a_cluster_with_a_new_identity(
    database: Database, connection: asyncpg.Connection
) -> None:
    """Everything that is looked up by the scope finds it there: presence, retention, roles and the cleanup."""
    await database.register(ONE, "before/users", "alice")
    await connection.execute("select userrealtime.publish('alice', 'x') from generate_series(1, 20)")
    await connection.execute("select userrealtime.present('alice', 'pod', 0)")
    await connection.execute(
        "insert into userrealtime.role (name, scope, resource, user_id, fingerprint) "
        "values ('urt_x_a', 'before/users', $1, 'alice', 'x')",
        uuid.UUID(ONE),
    )
    await database.register(ONE, SCOPE, "alice")
    assert await database.registered("before/users") == set()
    assert await database.registered(SCOPE) == {ONE}
    assert set((await database.presence(SCOPE))[1]) == {"alice"}
    assert await prune(database, Retention(max_events=10), [SCOPE]) == (10, 0)
    assert await Roles(database).resources(SCOPE) == {ONE}
    await database.forget(ONE)
    assert await left(connection) == {"registration": 0, "log": 0, "event": 0, "inbox": 0}


async def test_the_log_goes_with_the_last_resource(
    database: Database, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DELETE_BATCH", 7)
    for resource in (ONE, OTHER):
        await database.register(resource, SCOPE, "alice")
    await database.register(str(uuid.UUID(int=3)), SCOPE, "bob")
    await connection.execute("select userrealtime.publish('alice', 'x') from generate_series(1, 50)")
    await connection.execute("select userrealtime.publish('bob', 'x')")
    for user in ("alice", "bob"):
        await connection.execute("select userrealtime.submit($1, 'ref', 'x', '{}')", user)
    await database.forget(ONE)
    assert await left(connection) == {"registration": 2, "log": 2, "event": 51, "inbox": 2}
    await database.forget(OTHER)
    assert await left(connection) == {"registration": 1, "log": 1, "event": 1, "inbox": 1}
    await database.forget(OTHER)
    assert await left(connection) == {"registration": 1, "log": 1, "event": 1, "inbox": 1}


async def test_a_log_reused_by_a_new_resource_is_not_removed(
    database: Database, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await database.register(ONE, SCOPE, "alice")
    await connection.execute("select userrealtime.publish('alice', 'of old')")
    emptied = Database._empty

    async def empty(*arguments: Any) -> None:
        await emptied(*arguments)
        await database.register(OTHER, SCOPE, "alice")
        await connection.execute("select userrealtime.publish('alice', 'of now')")

    monkeypatch.setattr(Database, "_empty", empty)
    await database.forget(ONE)
    assert [tuple(row) for row in await connection.fetch("select id, event from userrealtime.event")] == [(2, "of now")]
    assert await database.registered(SCOPE) == {OTHER}


async def test_a_log_that_returns_is_another_one(database: Database, connection: asyncpg.Connection) -> None:
    epochs = []
    for _ in range(2):
        await database.register(ONE, SCOPE, "alice")
        await connection.execute("select userrealtime.publish('alice', 'x')")
        opened = await connection.fetchrow("select * from userrealtime.open('alice')")
        assert opened is not None
        assert opened["head"] == 1
        epochs.append(opened["epoch"])
        await database.forget(ONE)
    assert epochs[0] != epochs[1]


async def test_a_database_without_the_schema_is_explained(postgres: OwnDatabase) -> None:
    async with Database(postgres.url) as database:
        with pytest.raises(DatabaseError, match="run userrealtime-operator migrate"):
            await database.register(ONE, SCOPE, "alice")


async def test_a_database_that_is_away_is_explained_without_the_password() -> None:
    async with Database("postgresql://nobody:hunter2@127.0.0.1:1/none") as database:
        with pytest.raises(DatabaseError) as failure:
            await database.registered(SCOPE)
    assert "hunter2" not in str(failure.value)


async def test_the_pool_survives_a_restart_of_postgres(own_server: OwnDatabase) -> None:
    async with Database(own_server.url) as database:
        await database.register(ONE, SCOPE, "alice")
        own_server.server.restart("immediate")
        # The first call may use the dead connection. The work queue retries, as this test does.
        for _ in range(3):
            try:
                assert await database.registered(SCOPE) == {ONE}
                break
            except DatabaseError:
                continue
        else:
            pytest.fail("the pool did not recover")


async def test_presence_is_that_of_the_scopes_users_with_the_databases_time(
    database: Database, connection: asyncpg.Connection
) -> None:
    assert await database.presence(SCOPE) == (0.0, {})
    await database.register(ONE, SCOPE, "alice")
    await database.register(OTHER, "other/users", "bob")
    await connection.execute(
        "select userrealtime.present('alice', 'pod-1', 2), userrealtime.present('bob', 'pod-2', 0)"
    )
    now, found = await database.presence(SCOPE)
    assert list(found) == ["alice"]
    [row] = found["alice"]
    assert (row.instance, row.clients) == ("pod-1", 2)
    assert row.since == row.seen_at <= now
    assert now == pytest.approx(await connection.fetchval("select extract(epoch from now())::float8"), abs=60)
    assert list((await database.presence("other/users", "bob"))[1]) == ["bob"]
    assert (await database.presence("other/users", "alice"))[1] == {}


async def test_presence_of_a_database_that_is_away_is_not_known() -> None:
    async with Database("postgresql://u:secret@127.0.0.1:1/d") as database:
        with pytest.raises(DatabaseError) as failure:
            await database.presence(SCOPE)
    assert "secret" not in str(failure.value)
