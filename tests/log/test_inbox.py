"""The guarantees of the inbox, on a real PostgreSQL, read as described in docs/inbox.md."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import asyncpg
import pytest

from testing.database import Database
from testing.patience import PATIENCE_S

DOCUMENT = Path(__file__).parents[2] / "docs" / "inbox.md"
TAKE, CLEAN = re.findall(r"```sql\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)


async def submit(connection: asyncpg.Connection, ref: str, event: str = "note", data: str = "{}") -> int:
    number: int = await connection.fetchval("select userrealtime.submit('alice', $1, $2, $3)", ref, event, data)
    return number


async def test_a_ref_is_stored_once_even_at_the_same_time(migrated: Database, connection: asyncpg.Connection) -> None:
    others = [await asyncpg.connect(migrated.url) for _ in range(4)]
    for ref in map(str, range(20)):
        numbers = await asyncio.gather(*(submit(other, ref) for other in others))
        assert len(set(numbers)) == 1
    assert await connection.fetchval("select count(*) from userrealtime.inbox") == 20
    # From two users, or again with different contents:
    assert await connection.fetchval("select userrealtime.submit('bob', '0', 'note')") > 20
    assert await submit(connection, "0", "other", "[1]") == await submit(connection, "0")
    assert await connection.fetchval("select event from userrealtime.inbox where user_id = 'alice' and ref = '0'") == (
        "note"
    )
    for other in others:
        await other.close()


async def test_a_sequence_that_is_behind_the_rows_catches_up(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    """Logical replication copies the rows, but not the state of the sequence."""
    await connection.execute(
        "insert into userrealtime.inbox (user_id, ref, event, data) "
        "select 'alice', 'old' || n, 'note', '{}' from generate_series(1, 1000) n"
    )
    await connection.execute("alter table userrealtime.inbox alter column id restart with 1")
    others = [await asyncpg.connect(migrated.url) for _ in range(4)]
    numbers = await asyncio.gather(*(submit(other, f"new{n}") for n, other in enumerate(others)))
    assert len(set(numbers)) == 4
    assert min(numbers) > 1000
    assert await submit(connection, "old7") == 7
    assert await connection.fetchval("select count(*) from userrealtime.inbox") == 1004
    for other in others:
        await other.close()


async def test_a_rollback_leaves_nothing(connection: asyncpg.Connection) -> None:
    transaction = connection.transaction()
    await transaction.start()
    await submit(connection, "r")
    await transaction.rollback()
    assert await connection.fetchval("select count(*) from userrealtime.inbox") == 0


async def test_each_new_message_notifies_its_id(migrated: Database, connection: asyncpg.Connection) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    await connection.add_listener("userrealtime_inbox", lambda *got: heard.put_nowait(got[3]))
    other = await asyncpg.connect(migrated.url)
    first = await submit(other, "1", data='"' + "x" * 10_000 + '"')
    assert await submit(other, "1") == first
    second = await submit(other, "2")
    async with asyncio.timeout(PATIENCE_S):
        assert [await heard.get(), await heard.get()] == [str(first), str(second)]
    await other.close()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("'', 'r', 'e'", "user_id"),
        ("'alice', '', 'e'", "ref"),
        ("'alice', null, 'e'", "ref"),
        ("'alice', repeat('x', 254), 'e'", "ref"),
        ("'alice', E'a\\nb', 'e'", "ref"),
        ("'alice', 'r', ''", "event"),
        ("'alice', 'r', 'e', null", "data"),
        ("'alice', 'r', 'e', to_jsonb(repeat('x', 1000000))", "data"),
    ],
)
async def test_what_cannot_be_stored_is_refused(connection: asyncpg.Connection, arguments: str, complaint: str) -> None:
    with pytest.raises(asyncpg.PostgresError, match=f"userrealtime.submit: {complaint}"):
        await connection.execute(f"select userrealtime.submit({arguments})")


async def test_nobody_else_may_use_it(connection: asyncpg.Connection) -> None:
    await connection.execute("create role stranger; grant usage on schema userrealtime to stranger; set role stranger")
    for attempt in ("select userrealtime.submit('alice', 'r', 'e')", "select * from userrealtime.inbox"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(attempt)
    await connection.execute("reset role; drop owned by stranger; drop role stranger")


async def test_workers_share_the_queue_and_a_dead_one_returns_its_items(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    for number in range(50):
        await submit(connection, str(number))
    dying = await asyncpg.connect(migrated.url)
    await dying.execute("begin")
    held = {row["id"] for row in await dying.fetch(TAKE)}
    assert held == set(range(1, 11))

    async def work() -> list[int]:
        worker = await asyncpg.connect(migrated.url)
        taken: list[int] = []
        while True:
            async with worker.transaction():
                rows = await worker.fetch(TAKE)
                taken += [row["id"] for row in rows]
                await asyncio.sleep(0)
            if not rows:
                await worker.close()
                return taken

    shares = await asyncio.gather(*(work() for _ in range(3)))
    assert sorted(number for share in shares for number in share) == list(range(11, 51))
    dying.terminate()
    async with asyncio.timeout(PATIENCE_S):
        while sorted(await work()) != list(range(1, 11)):
            await asyncio.sleep(0.05)


async def test_what_is_done_is_removed_later(connection: asyncpg.Connection) -> None:
    await submit(connection, "new")
    await submit(connection, "old")
    assert len(await connection.fetch(TAKE)) == 2
    await connection.execute("update userrealtime.inbox set done = now() - interval '8 days' where ref = 'old'")
    await connection.execute(CLEAN)
    assert [row["ref"] for row in await connection.fetch("select ref from userrealtime.inbox")] == ["new"]
