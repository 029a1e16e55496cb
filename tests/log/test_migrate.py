"""Migrations: once each, in order, safe side by side, and clear about what they cannot do."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from tests.conftest import Database
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
