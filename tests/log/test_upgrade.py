"""A database of before the first release is upgraded with its data, and its schema is then that of a new database."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest

from testing.database import Database, create_database
from testing.patience import PATIENCE_S
from userrealtime_operator.postgres.migrate import REPEATABLE, MigrationError, migrate

VERSION_8 = Path(__file__).with_name("schema_8.sql")
TABLES = ("registration", "log", "event", "inbox", "presence")


@pytest.fixture
async def unreleased(postgres: Database) -> Database:
    """A database at version 8 of the schema."""
    connection = await asyncpg.connect(postgres.url)
    await connection.execute(VERSION_8.read_text())
    await connection.close()
    return postgres


async def test_version_8_is_upgraded_with_its_data(unreleased: Database) -> None:
    connection = await asyncpg.connect(unreleased.url)
    await connection.execute(
        "insert into userrealtime.registration (resource, scope, user_id) values ($1, 'here/users', 'alice')", uuid4()
    )
    await connection.execute(
        """
        create table orders (id int, customer text);
        create trigger publish_orders after insert on orders
            for each row execute function userrealtime.capture('customer', 'order');
        select userrealtime.publish('alice', 'x', jsonb_build_object('n', n)) from generate_series(1, 1000) n;
        select userrealtime.publish('bob', 'y');
        select userrealtime.submit('alice', 'ref', 'typed', '{}');
        select userrealtime.present('alice', 'pod', 1);
        """
    )
    before = {table: await contents(connection, table) for table in TABLES}
    assert [len(before[table]) for table in TABLES] == [1, 2, 1001, 1, 1]

    assert await migrate(unreleased.url) == ["upgrades/0008", *(f"repeatable/{name}" for name in REPEATABLE)]
    for table, rows in before.items():
        after = await contents(connection, table)
        # Newer versions may add columns.
        assert [{key: row[key] for key in rows[0]} for row in after] == rows
    await connection.execute("insert into orders values (1, 'alice')")
    newest = await connection.fetchrow(
        "select id, event from userrealtime.event where user_id = 'alice' order by id desc"
    )
    assert tuple(newest or ()) == (1001, "order.insert")
    # The functions that a relay of the earlier version calls.
    await connection.execute("select userrealtime.present('alice', 'pod', 2)")
    await connection.close()
    assert await migrate(unreleased.url) == []


async def test_an_upgrade_never_ends_a_publisher(unreleased: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The migration needs several tables, which other transactions have locked and lock in between."""
    monkeypatch.setattr(random, "uniform", lambda *_: 0.05)  # of the wait before the next attempt
    publisher, pod, watch = [await asyncpg.connect(unreleased.url) for _ in range(3)]
    waits = "select count(*) from pg_locks where not granted"
    try:
        writing = pod.transaction()
        await writing.start()
        await pod.execute("select userrealtime.present('alice', 'pod', 1)")
        transaction = publisher.transaction()
        await transaction.start()
        await publisher.execute("select userrealtime.publish('alice', 'x')")
        migrating = asyncio.create_task(migrate(unreleased.url))
        while not await watch.fetchval(waits):
            assert not migrating.done()
            await asyncio.sleep(0.01)
        committing = asyncio.create_task(transaction.commit())
        await asyncio.sleep(0.5)
        await writing.commit()
        # Later than the check for deadlocks, of whichever of the two waits.
        await asyncio.wait_for(committing, PATIENCE_S)
        await asyncio.wait_for(migrating, PATIENCE_S)
        assert await watch.fetchval("select count(*) from userrealtime.event") == 1
    finally:
        for connection in (publisher, pod, watch):
            await connection.close()


async def test_an_upgraded_schema_is_that_of_a_new_database(unreleased: Database) -> None:
    await migrate(unreleased.url)
    new = await create_database(unreleased.server)
    await migrate(new.url)
    assert schema_of(unreleased) == schema_of(new)


async def test_earlier_unreleased_versions_are_rejected(unreleased: Database) -> None:
    connection = await asyncpg.connect(unreleased.url)
    await connection.execute("delete from userrealtime.migration where version = 8")
    with pytest.raises(MigrationError, match="has version 7 of the schema from before release"):
        await migrate(unreleased.url)
    assert await connection.fetchval("select to_regclass('userrealtime.signal_queue')") is None
    await connection.close()


async def contents(connection: asyncpg.Connection, table: str) -> list[dict[str, object]]:
    rows = await connection.fetch(f"select to_jsonb(t) from userrealtime.{table} t order by to_jsonb(t)::text")
    return [json.loads(row[0]) for row in rows]


def schema_of(database: Database) -> list[str]:
    """The statements of pg_dump. Comments on tables are not upgraded, and are left out."""
    program = str(database.server.program("pg_dump"))
    command = [program, "--schema-only", "--no-comments", "--schema=userrealtime", database.url]
    dump = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    # A random key, which changes with every dump.
    return sorted(line for line in dump.splitlines() if not line.startswith(("--", "\\")))
