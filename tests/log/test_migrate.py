"""Migrations: once each, in order, safe side by side, and clear about what they cannot do."""

from __future__ import annotations

import asyncio
import random

import asyncpg
import pytest

from e2e.patience import PATIENCE_S
from tests.conftest import Database
from userrealtime_operator import migrate as module
from userrealtime_operator.migrate import (
    Migration,
    MigrationError,
    load_migrations,
    migrate,
    pending_migrations,
)

FIRST, SECOND = Migration(1, "first", "select 1"), Migration(2, "second", "select 2")


def test_the_files_are_numbered_without_a_gap() -> None:
    versions = [migration.version for migration in load_migrations()]
    assert versions == list(range(1, len(versions) + 1))
    assert versions


def test_only_what_is_missing_is_pending() -> None:
    assert pending_migrations([FIRST, SECOND], {}) == (FIRST, SECOND)
    assert pending_migrations([FIRST, SECOND], {1: FIRST.digest}) == (SECOND,)
    assert pending_migrations([FIRST, SECOND], {1: FIRST.digest, 2: SECOND.digest}) == ()


def test_a_newer_database_is_left_alone() -> None:
    with pytest.raises(MigrationError, match="schema version 3, newer than this operator's 2"):
        pending_migrations([FIRST, SECOND], {1: FIRST.digest, 2: SECOND.digest, 3: "x"})


def test_a_changed_file_is_noticed() -> None:
    with pytest.raises(MigrationError, match="was applied with other contents"):
        pending_migrations([FIRST], {1: SECOND.digest})


async def test_migrating_twice_changes_nothing(postgres: Database) -> None:
    assert await migrate(postgres.url) == [f"{m.version:04d}_{m.name}" for m in load_migrations()]
    assert await migrate(postgres.url) == []


async def test_migrators_side_by_side(postgres: Database) -> None:
    outcomes = await asyncio.gather(*(migrate(postgres.url) for _ in range(5)))
    assert sorted(len(outcome) for outcome in outcomes) == [0, 0, 0, 0, len(load_migrations())]


COMMIT = next(migration for migration in load_migrations() if migration.name == "commit")
"""It needs the tables that every publishing transaction holds on to."""


async def test_what_publishes_meanwhile_is_waited_for_and_held_up_for_a_moment_only(
    postgres: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOCK_TIMEOUT_S", 1)
    monkeypatch.setattr(module, "load_migrations", lambda: load_migrations()[: COMMIT.version - 1])
    await migrate(postgres.url)
    monkeypatch.setattr(module, "load_migrations", load_migrations)
    slow, quick = await asyncpg.connect(postgres.url), await asyncpg.connect(postgres.url)
    try:
        transaction = slow.transaction()
        await transaction.start()
        await slow.execute("select userrealtime.publish('alice', 'slow')")
        migrating = asyncio.create_task(migrate(postgres.url))
        while not await quick.fetchval("select exists (select from pg_locks where not granted)"):
            assert not migrating.done()
            await asyncio.sleep(0.01)
        for number in range(5):
            await quick.execute("select userrealtime.publish('alice', $1)", f"quick {number}", timeout=PATIENCE_S)
        await slow.execute("select userrealtime.publish('alice', 'slow again')", timeout=PATIENCE_S)
        assert not migrating.done()
        await transaction.commit()
        assert f"{COMMIT.version:04d}_commit" in await asyncio.wait_for(migrating, 60)
        await quick.execute("select userrealtime.publish('alice', 'last')")
        rows = await quick.fetch("select id, event from userrealtime.event order by id")
    finally:
        await slow.close()
        await quick.close()
    names = [*(f"quick {number}" for number in range(5)), "slow", "slow again", "last"]
    assert [tuple(row) for row in rows] == [(number + 1, name) for number, name in enumerate(names)]


async def test_a_transaction_that_does_not_end_is_told_of(postgres: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOCK_TIMEOUT_S", 0.1)
    monkeypatch.setattr(module, "LOCK_ATTEMPTS", 2)
    monkeypatch.setattr(module, "load_migrations", lambda: load_migrations()[: COMMIT.version - 1])
    await migrate(postgres.url)
    monkeypatch.setattr(module, "load_migrations", lambda: load_migrations()[: COMMIT.version])
    connection = await asyncpg.connect(postgres.url)
    try:
        async with connection.transaction():
            await connection.execute("select userrealtime.publish('alice', 'x')")
            with pytest.raises(MigrationError, match="idle in transaction"):
                await migrate(postgres.url)
        assert await migrate(postgres.url) == [f"{COMMIT.version:04d}_commit"]
        assert await connection.fetchval("select head from userrealtime.log where user_id = 'alice'") == 1
    finally:
        await connection.close()


async def test_a_migration_that_ends_a_deadlock_is_tried_again(
    postgres: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    locking = Migration(1, "locking", "lock table first_locked; lock table then_locked;")
    monkeypatch.setattr(module, "load_migrations", lambda: (locking,))
    monkeypatch.setattr(module, "LOCK_TIMEOUT_S", 60)  # so that nothing but a deadlock ends it
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
        assert await asyncio.wait_for(migrating, 30) == ["0001_locking"]
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


@pytest.mark.parametrize(
    "url",
    [
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
