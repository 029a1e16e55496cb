"""docs/lifecycle.md, Backup and restore: the commands of PostgreSQL, and a client that resumes across them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import asyncpg
import pytest

from e2e.patience import PATIENCE_S
from tests.conftest import Database
from tests.relay.support import USER, client, publish, receive, receive_ids, running
from userrealtime_operator.migrate import migrate

NEW_EPOCHS = "update userrealtime.log set epoch = gen_random_uuid()"


def run(database: Database, program: str, *arguments: str) -> None:
    done = subprocess.run(
        [database.server.program(program), *arguments], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stderr


def dump(database: Database, file: Path) -> None:
    run(database, "pg_dump", "--format=custom", f"--file={file}", database.url)


async def restore(database: Database, file: Path, *, new_epochs: bool) -> Database:
    """A second database, made of the dump."""
    restored = Database(database.server, f"{database.name}_restored")
    connection = await asyncpg.connect(database.url)
    await connection.execute(f"create database {restored.name}")
    await connection.close()
    run(database, "pg_restore", "--exit-on-error", "--single-transaction", f"--dbname={restored.url}", str(file))
    if new_epochs:
        connection = await asyncpg.connect(restored.url)
        await connection.execute(NEW_EPOCHS)
        await connection.close()
    return restored


async def test_a_restored_database_is_whole(migrated: Database, connection: asyncpg.Connection, tmp_path: Path) -> None:
    await connection.execute(
        """
        create table orders (id int, customer text);
        create trigger publish_orders after insert on orders
            for each row execute function userrealtime.capture('customer', 'order');
        """
    )
    await publish(connection, 10)
    await connection.execute("select userrealtime.submit($1, 'ref', 'typed', '{}')", USER)
    dump(migrated, tmp_path / "dump")
    restored = await restore(migrated, tmp_path / "dump", new_epochs=True)
    assert await migrate(restored.url) == []
    there = await asyncpg.connect(restored.url)
    await there.execute("insert into orders values (1, $1)", USER)
    ids = await there.fetch("select id from userrealtime.event where user_id = $1 order by id", USER)
    assert [row["id"] for row in ids] == list(range(1, 12))
    inbox = "select ref from userrealtime.inbox where done is null"
    assert [row["ref"] for row in await there.fetch(inbox)] == ["ref"]
    epoch = "select epoch from userrealtime.log where user_id = $1"
    assert await there.fetchval(epoch, USER) != await connection.fetchval(epoch, USER)
    await there.close()


@pytest.mark.parametrize("seen", [5, 10, 20], ids=["before the backup", "at the backup", "lost since"])
async def test_a_client_is_told_that_the_database_went_back(
    migrated: Database, connection: asyncpg.Connection, tmp_path: Path, seen: int
) -> None:
    """Events 11 to 20 are lost with the old database, and their numbers are given out again."""
    await publish(connection, 10)
    dump(migrated, tmp_path / "dump")
    await publish(connection, 10)
    async with running(migrated.url) as relay, client(relay, last_event_id=0) as connected:
        epoch = (await receive(connected))["epoch"]
        assert await receive_ids(connected, 20) == list(range(1, 21))

    restored = await restore(migrated, tmp_path / "dump", new_epochs=True)
    there = await asyncpg.connect(restored.url)
    await publish(there, 30)
    async with running(restored.url) as relay, client(relay, last_event_id=seen, epoch=epoch) as back:
        greeting = await receive(back)
        assert (greeting["type"], greeting["cursor"]) == ("connected", 40)
        reset = await receive(back)
        assert (reset["type"], reset["reason"], reset["cursor"]) == ("reset", "epoch", 40)
        assert reset["epoch"] not in (None, epoch)
        await publish(there)
        assert await receive_ids(back, 41) == [41]
    await there.close()


async def test_a_client_goes_on_where_a_move_has_lost_nothing(
    migrated: Database, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    """A dump taken after the last commit, as for a move to another server, keeps its epochs."""
    await publish(connection, 20)
    async with running(migrated.url) as relay, client(relay, last_event_id=0) as connected:
        epoch = (await receive(connected))["epoch"]
        assert await receive_ids(connected, 15) == list(range(1, 16))
    dump(migrated, tmp_path / "dump")
    moved = await restore(migrated, tmp_path / "dump", new_epochs=False)
    there = await asyncpg.connect(moved.url)
    await publish(there)
    async with running(moved.url) as relay, client(relay, last_event_id=15, epoch=epoch) as back:
        assert (await receive(back))["type"] == "connected"
        assert await receive_ids(back, 21) == list(range(16, 22))
    await there.close()
