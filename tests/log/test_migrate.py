"""Migrations: each is applied once and in order, several migrators are safe, and errors give advice."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from importlib.resources import files

import asyncpg
import pytest

from testing.database import Database
from testing.patience import PATIENCE_S
from testing.relay.harness import USER, client, receive, running
from testing.relay.http_client import request
from userrealtime_operator.postgres import migrate as module
from userrealtime_operator.postgres.migrate import (
    REPEATABLE,
    Applied,
    Migration,
    MigrationError,
    Repeatable,
    Schema,
    load_schema,
    migrate,
    pending_migrations,
    pending_repeatables,
)

FIRST, SECOND = Migration(1, "first", "select 1"), Migration(2, "second", "select 2")
ALL = [
    *(migration.label for migration in load_schema().migrations),
    *(repeatable.label for repeatable in load_schema().repeatables),
]


def applied(*migrations: Migration) -> Applied:
    return Applied({each.version: (each.name, each.digest) for each in migrations})


def test_versions_have_no_gap() -> None:
    versions = [migration.version for migration in load_schema().migrations]
    assert versions == list(range(1, len(versions) + 1))
    assert versions


def test_every_repeatable_file_is_applied() -> None:
    folder = files("userrealtime_operator.postgres").joinpath("schema", "repeatable")
    assert sorted(file.name for file in folder.iterdir()) == sorted(f"{name}.sql" for name in REPEATABLE)


def test_pending_migrations_are_those_that_the_database_lacks() -> None:
    assert pending_migrations([FIRST, SECOND], applied()) == (FIRST, SECOND)
    assert pending_migrations([FIRST, SECOND], applied(FIRST)) == (SECOND,)
    assert pending_migrations([FIRST, SECOND], applied(FIRST, SECOND)) == ()


def test_a_newer_database_is_rejected() -> None:
    newer = applied(FIRST, SECOND, Migration(3, "third", "select 3"))
    with pytest.raises(MigrationError, match="schema version 3, newer than this operator's 2"):
        pending_migrations([FIRST, SECOND], newer)


def test_a_changed_file_is_rejected() -> None:
    with pytest.raises(MigrationError, match="was applied with other contents"):
        pending_migrations([FIRST], applied(Migration(1, "first", "select 0")))


def test_a_repeatable_file_is_pending_when_its_text_has_changed() -> None:
    before, after = Repeatable("read", "select 1"), Repeatable("read", "select 2")
    assert pending_repeatables([after], Applied({}, {"read": before.digest})) == (after,)
    assert pending_repeatables([after], Applied({}, {"read": after.digest})) == ()
    assert pending_repeatables([after], Applied()) == (after,)


async def test_migrating_twice_changes_nothing(postgres: Database) -> None:
    assert await migrate(postgres.url) == ALL
    assert await migrate(postgres.url) == []


async def test_no_index_depends_on_the_version_of_a_collation(migrated: Database) -> None:
    """An upgrade of the server's operating system can change the order of text, and an index then misses rows."""
    connection = await asyncpg.connect(migrated.url)
    try:
        found = await connection.fetch(
            """
            select i.indexrelid::regclass::text as index, c.collname as collation
            from pg_index i
            join pg_class r on r.oid = i.indexrelid
            cross join lateral unnest(i.indcollation) as used
            join pg_collation c on c.oid = used
            where r.relnamespace = 'userrealtime'::regnamespace
            """
        )
    finally:
        await connection.close()
    assert len(found) > 10
    assert [row["index"] for row in found if row["collation"] != "C"] == []


async def test_several_migrators_apply_everything_once(postgres: Database) -> None:
    outcomes = await asyncio.gather(*(migrate(postgres.url) for _ in range(5)))
    assert sorted(len(outcome) for outcome in outcomes) == [0, 0, 0, 0, len(ALL)]


async def test_repeatable_files_can_be_applied_during_publishing(migrated: Database) -> None:
    """Functions, triggers and policies are replaced in place, with the rights that were granted on them."""
    connection = await asyncpg.connect(migrated.url)
    role = f"publisher_{migrated.name}"
    await connection.execute(
        f"create role {role} login; grant usage on schema userrealtime to {role};"
        f"grant execute on function userrealtime.publish to {role}; select userrealtime.prepare_roles()"
    )
    publisher = await asyncpg.connect(migrated.url.replace("postgres@", f"{role}@"))
    try:
        async with publisher.transaction():
            await publisher.execute("select userrealtime.publish('alice', 'before')")
            await connection.execute("update userrealtime.repeatable set digest = 'another'")
            assert await migrate(migrated.url) == [f"repeatable/{name}" for name in REPEATABLE]
            await publisher.execute("select userrealtime.publish('alice', 'after')")
        events = await connection.fetch("select id, event from userrealtime.event order by id")
        assert [tuple(row) for row in events] == [(1, "before"), (2, "after")]
    finally:
        await publisher.close()
        await connection.execute(f"drop owned by {role}; drop role {role}")
        await connection.close()


LOCKING = Migration(2, "locking", "lock table userrealtime.pending in access exclusive mode")
"""The migration needs a table that every publishing transaction locks."""


def with_locking() -> Schema:
    schema = load_schema()
    return Schema((*schema.migrations, LOCKING), schema.repeatables)


async def test_an_upgrade_waits_for_publishers_and_delays_them_only_briefly(
    migrated: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOCK_TIMEOUT_S", 1)
    monkeypatch.setattr(module, "load_schema", with_locking)
    slow, quick = await asyncpg.connect(migrated.url), await asyncpg.connect(migrated.url)
    try:
        transaction = slow.transaction()
        await transaction.start()
        await slow.execute("select userrealtime.publish('alice', 'slow')")
        migrating = asyncio.create_task(migrate(migrated.url))
        while not await quick.fetchval("select exists (select from pg_locks where not granted)"):
            assert not migrating.done()
            await asyncio.sleep(0.01)
        for number in range(5):
            await quick.execute("select userrealtime.publish('alice', $1)", f"quick {number}", timeout=PATIENCE_S)
        await slow.execute("select userrealtime.publish('alice', 'slow again')", timeout=PATIENCE_S)
        assert not migrating.done()
        await transaction.commit()
        assert await asyncio.wait_for(migrating, 60) == [LOCKING.label]
        await quick.execute("select userrealtime.publish('alice', 'last')")
        rows = await quick.fetch("select id, event from userrealtime.event order by id")
    finally:
        await slow.close()
        await quick.close()
    names = [*(f"quick {number}" for number in range(5)), "slow", "slow again", "last"]
    assert [tuple(row) for row in rows] == [(number + 1, name) for number, name in enumerate(names)]


async def test_an_open_transaction_that_does_not_end_is_reported(
    migrated: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOCK_TIMEOUT_S", 0.1)
    monkeypatch.setattr(module, "LOCK_ATTEMPTS", 2)
    monkeypatch.setattr(module, "load_schema", with_locking)
    connection = await asyncpg.connect(migrated.url)
    try:
        async with connection.transaction():
            await connection.execute("select userrealtime.publish('alice', 'x')")
            with pytest.raises(MigrationError, match="idle in transaction"):
                await migrate(migrated.url)
        assert await migrate(migrated.url) == [LOCKING.label]
        assert await connection.fetchval("select head from userrealtime.log where user_id = 'alice'") == 1
    finally:
        await connection.close()


async def test_an_upgrade_that_a_deadlock_ended_is_retried(postgres: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    locking = Migration(1, "locking", "lock table first_locked; lock table then_locked;")
    monkeypatch.setattr(module, "load_schema", lambda: Schema((locking,)))
    monkeypatch.setattr(module, "LOCK_TIMEOUT_S", 60)  # only a deadlock ends it
    connection, watch = await asyncpg.connect(postgres.url), await asyncpg.connect(postgres.url)
    try:
        await connection.execute("create table first_locked (); create table then_locked ()")
        await connection.execute("set deadlock_timeout = '1min'")  # the other one finds it
        # The wait before the next attempt is as long as the time limit of a lock.
        monkeypatch.setattr(random, "uniform", lambda *_: 0.01)
        async with connection.transaction():
            await connection.execute("lock table then_locked")
            migrating = asyncio.create_task(migrate(postgres.url))
            while not await watch.fetchval("select exists (select from pg_locks where not granted)"):
                assert not migrating.done()
                await asyncio.sleep(0.01)
            await connection.execute("lock table first_locked", timeout=PATIENCE_S)
            assert not migrating.done()
        assert await asyncio.wait_for(migrating, 30) == [locking.label]
    finally:
        await connection.close()
        await watch.close()


async def test_a_role_that_may_not_create_is_told_what_it_lacks(postgres: Database, postgres_server: object) -> None:
    owner = await asyncpg.connect(postgres.url)
    role = f"weak_{postgres.name}"
    await owner.execute(f"create role {role} login")
    try:
        with pytest.raises(MigrationError, match="Grant it CREATE on the database"):
            await migrate(postgres.url.replace("postgres@", f"{role}@"))
    finally:
        await owner.execute(f"drop role {role}")
        await owner.close()


@pytest.fixture
async def other_database(postgres: Database) -> AsyncIterator[tuple[asyncpg.Connection, Database]]:
    """A connection to `postgres`, and the name of a further database for it to create."""
    other = Database(postgres.server, f"{postgres.name}_other")
    owner = await asyncpg.connect(postgres.url)
    yield owner, other
    await owner.execute(f"drop database if exists {other.name} with (force)")
    await owner.close()


async def test_a_database_that_does_not_check_its_bytes_is_rejected(
    other_database: tuple[asyncpg.Connection, Database],
) -> None:
    owner, other = other_database
    options = "template template0 lc_collate 'C' lc_ctype 'C'"
    await owner.execute(f"create database {other.name} encoding 'SQL_ASCII' {options}")
    with pytest.raises(MigrationError, match="create database NAME encoding 'UTF8'"):
        await migrate(other.url)


async def test_a_database_of_another_encoding_works_for_its_characters(
    other_database: tuple[asyncpg.Connection, Database], caplog: pytest.LogCaptureFixture
) -> None:
    owner, other = other_database
    options = "template template0 lc_collate 'C' lc_ctype 'C'"
    await owner.execute(f"create database {other.name} encoding 'LATIN1' {options}")
    assert await migrate(other.url) == ALL
    assert "the encoding of the database is LATIN1" in caplog.text
    async with running(other.url) as relay:
        for text, status in (("caf\u00e9", 200), ("\U0001f600", 400)):
            body = json.dumps({"ref": text, "event": "note", "data": text}).encode()
            assert (await request(relay, "/publish", method="POST", body=body)).status == status
        there = await asyncpg.connect(other.url)
        await there.execute("select userrealtime.publish($1, 'note', to_jsonb($2::text))", USER, "caf\u00e9")
        await there.close()
        async with client(relay, last_event_id=0) as alice:
            await receive(alice)
            assert (await receive(alice))["data"] == "caf\u00e9"


async def test_a_read_only_database_is_rejected(other_database: tuple[asyncpg.Connection, Database]) -> None:
    owner, other = other_database
    await owner.execute(f"create database {other.name}")
    await owner.execute(f"alter database {other.name} set default_transaction_read_only = on")
    with pytest.raises(MigrationError, match="read-only: name the primary server"):
        await migrate(other.url)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://nobody:hunter2@127.0.0.1:1/none?channel_binding=require",
        "postgresql://nobody:hunter2@127.0.0.1:1/none",
        "postgresql://nobody:hunter2@127.0.0.1:port/none",
        "mysql://nobody:hunter2@127.0.0.1/none",
    ],
)
async def test_failures_are_explained_without_the_password(url: str) -> None:
    with pytest.raises(MigrationError) as failure:
        await migrate(url)
    assert "hunter2" not in str(failure.value)
    assert failure.value.__suppress_context__
