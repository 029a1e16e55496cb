"""An older database becomes a newer one with all that is in it, and goes on where it was."""

from __future__ import annotations

import json
import re
from pathlib import PurePath
from uuid import uuid4

import asyncpg
import pytest

from e2e import previous
from tests.conftest import Database
from userrealtime_operator import migrate as module
from userrealtime_operator.migrate import Migration, load_migrations, migrate

ALL = load_migrations()
SCHEMA = PurePath("operator/userrealtime_operator/schema")


def older_versions() -> list[Migration]:
    return list(ALL[:-1])


@pytest.mark.parametrize("older", older_versions(), ids=lambda migration: migration.name)
async def test_an_older_database_is_upgraded_with_its_data(
    postgres: Database, monkeypatch: pytest.MonkeyPatch, older: Migration
) -> None:
    monkeypatch.setattr(module, "load_migrations", lambda: ALL[: older.version])
    await migrate(postgres.url)
    connection = await asyncpg.connect(postgres.url)
    resource = uuid4()
    await connection.execute(
        "insert into userrealtime.registration (resource, scope, user_id) values ($1, 'here/users', 'alice')", resource
    )
    await connection.execute("insert into userrealtime.log (user_id) values ('alice')")
    await connection.execute(
        """
        create table orders (id int, customer text);
        create trigger publish_orders after insert on orders
            for each row execute function userrealtime.capture('customer', 'order');
        select userrealtime.publish('alice', 'x', jsonb_build_object('n', n)) from generate_series(1, 1000) n;
        select userrealtime.publish('bob', 'y');
        """
    )
    if older.version >= 2:
        await connection.execute("select userrealtime.submit('alice', 'ref', 'typed', '{}')")
    tables = ["registration", "log", "event"] + (["inbox"] if older.version >= 2 else [])
    before = {table: await contents(connection, table) for table in tables}
    assert len(before["event"]) == 1001

    monkeypatch.undo()
    assert await migrate(postgres.url) == [f"{m.version:04d}_{m.name}" for m in ALL[older.version :]]
    for table, rows in before.items():
        after = await contents(connection, table)
        # Newer versions may add columns; what was there is as it was.
        assert [{key: row[key] for key in rows[0]} for row in after] == rows
    await connection.execute("insert into orders values (1, 'alice')")
    newest = await connection.fetchrow(
        "select id, event from userrealtime.event where user_id = 'alice' order by id desc"
    )
    assert tuple(newest or ()) == (1001, "order.insert")
    await connection.close()


async def contents(connection: asyncpg.Connection, table: str) -> list[dict[str, object]]:
    rows = await connection.fetch(f"select to_jsonb(t) from userrealtime.{table} t order by to_jsonb(t)::text")
    return [json.loads(row[0]) for row in rows]


def test_what_was_released_has_not_changed() -> None:
    """A file that changed after it was applied somewhere could not be upgraded there: its digest says so."""
    with previous.source(previous.revision_or_skip()) as folder:
        released = {file.name: file.read_text() for file in sorted((folder / SCHEMA).glob("*.sql"))}
    assert released
    now = {f"{migration.version:04d}_{migration.name}.sql": migration.sql for migration in ALL}
    assert {name: now.get(name) for name in released} == released
    assert all(re.fullmatch(r"\d{4}_\w+\.sql", name) for name in released)
