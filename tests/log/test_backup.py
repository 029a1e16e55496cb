"""docs/lifecycle.md, Backup and restore: the commands of PostgreSQL, and a client that resumes across them."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import asyncpg
import pytest

from testing.database import Database
from testing.local.postgres import LocalPostgres
from testing.patience import PATIENCE_S
from testing.relay.harness import USER, client, publish, receive, receive_ids, running
from userrealtime_operator.postgres.migrate import migrate

NEW_EPOCHS = "select userrealtime.renew_epochs()"


def run(database: Database, program: str, *arguments: str) -> None:
    done = subprocess.run(
        [database.server.program(program), *arguments], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stderr


def dump(database: Database, file: Path) -> None:
    run(database, "pg_dump", "--format=custom", f"--file={file}", database.url)


async def restore(database: Database, file: Path, *, new_epochs: bool) -> Database:
    """A second database, restored from the dump."""
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
    """Events 11 to 20 are lost with the old database, and their numbers are assigned again."""
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


async def test_a_backup_role_can_dump_everything(
    migrated: Database, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    await publish(connection, 3)
    role = f"backup_{migrated.name}"
    await connection.execute(f"create role {role} login in role pg_read_all_data")
    url = migrated.url.replace("postgres@", f"{role}@")
    try:
        # Otherwise `bypassrls` and `--enable-row-security` would not be needed.
        with pytest.raises(AssertionError, match="affected by row-level security"):
            run(migrated, "pg_dump", f"--file={tmp_path / 'refused'}", url)
        run(migrated, "pg_dump", "--enable-row-security", f"--file={tmp_path / 'with_policies'}", url)
        await connection.execute(f"alter role {role} bypassrls")
        run(migrated, "pg_dump", f"--file={tmp_path / 'without'}", url)
    finally:
        await connection.execute(f"drop owned by {role}; drop role {role}")
    for name in ("with_policies", "without"):
        rows = (tmp_path / name).read_text().partition("COPY userrealtime.event ")[2].partition("\\.")[0]
        assert rows.count(f"\n{USER}\t") == 3


async def test_logical_replication_keeps_epochs_numbers_and_inbox() -> None:
    with LocalPostgres(settings={"wal_level": "logical"}) as server:
        old, new = Database(server, "old"), Database(server, "new")
        owner = await asyncpg.connect(server.url())
        for database in (old, new):
            await owner.execute(f"create database {database.name}")
            await migrate(database.url)
        there, here = await asyncpg.connect(old.url), await asyncpg.connect(new.url)
        await publish(there, 3)
        for number in range(5):
            await there.execute("select userrealtime.submit($1, $2, 'typed', '{}')", USER, f"old{number}")
        await there.execute(
            "create publication moved for table userrealtime.event, userrealtime.log, userrealtime.inbox, "
            "userrealtime.registration, userrealtime.role, userrealtime.presence"
        )
        await there.execute("select pg_create_logical_replication_slot('moved', 'pgoutput')")
        await here.execute(
            f"create subscription moved connection '{old.url}' publication moved "
            "with (create_slot = false, slot_name = 'moved')"
        )
        await publish(there, 2)
        async with asyncio.timeout(PATIENCE_S):
            while await here.fetchval("select coalesce(max(head), 0) from userrealtime.log") < 5:
                await asyncio.sleep(0.05)
            while await here.fetchval("select count(*) from userrealtime.inbox") < 5:
                await asyncio.sleep(0.05)
        await here.execute("drop subscription moved")
        # The sequence of the inbox was not copied.
        assert await here.fetchval("select not is_called from userrealtime.inbox_id_seq")
        await publish(here, 1)
        rows = await here.fetch("select id from userrealtime.event where user_id = $1 order by id", USER)
        assert [row["id"] for row in rows] == [1, 2, 3, 4, 5, 6]
        epochs = [await each.fetchval("select epoch from userrealtime.log") for each in (there, here)]
        assert epochs[0] == epochs[1]
        assert await here.fetchval("select userrealtime.submit($1, 'new', 'typed', '{}')", USER) > 5
        assert await here.fetchval("select userrealtime.submit($1, 'old3', 'typed', '{}')", USER) == 4
        for each in (owner, there, here):
            await each.close()


async def test_a_subscriber_publishes_the_rows_that_replication_writes() -> None:
    with LocalPostgres(settings={"wal_level": "logical"}) as server:
        source, subscriber = Database(server, "source"), Database(server, "subscriber")
        owner = await asyncpg.connect(server.url())
        for database in (source, subscriber):
            await owner.execute(f"create database {database.name}")
        await migrate(subscriber.url)
        there, here = await asyncpg.connect(source.url), await asyncpg.connect(subscriber.url)
        for each in (there, here):
            await each.execute("create table orders (id int primary key, customer text)")
        await here.execute(
            """
            create trigger publish_orders after insert or update or delete on orders
                for each row execute function userrealtime.capture('customer', 'order');
            alter table orders enable always trigger publish_orders;
            """
        )
        await there.execute("insert into orders values (1, 'alice')")
        await there.execute("create publication orders for table orders")
        await there.execute("select pg_create_logical_replication_slot('orders', 'pgoutput')")
        await here.execute(
            f"create subscription orders connection '{source.url}' publication orders "
            "with (create_slot = false, slot_name = 'orders')"
        )
        published = "select user_id, id, event from userrealtime.event order by user_id, id"
        async with asyncio.timeout(PATIENCE_S):
            while not await here.fetch(published):  # the copy of the table
                await asyncio.sleep(0.05)
            await there.execute("insert into orders values (2, 'alice'), (3, 'bob')")
            await there.execute("update orders set customer = 'bob' where id = 1")
            while len(events := await here.fetch(published)) < 5:
                await asyncio.sleep(0.05)
        assert [tuple(event) for event in events] == [
            ("alice", 1, "order.insert"),
            ("alice", 2, "order.insert"),
            ("alice", 3, "order.delete"),
            ("bob", 1, "order.insert"),
            ("bob", 2, "order.insert"),
        ]
        assert await here.fetchval("select count(*) from userrealtime.pending") == 0
        await here.execute("drop subscription orders")
        for each in (owner, there, here):
            await each.close()
