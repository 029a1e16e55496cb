"""Retention on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest

from testing.database import Database as OwnDatabase
from userrealtime_operator.model.policies import Retention
from userrealtime_operator.postgres import retention as module
from userrealtime_operator.postgres.database import Database
from userrealtime_operator.postgres.retention import prune

SCOPES = ("cluster/users",)


@pytest.fixture
async def database(migrated: OwnDatabase, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Database]:
    monkeypatch.setattr(module, "BATCH", 7)
    monkeypatch.setattr(module, "USERS_A_PAGE", 2)
    async with Database(migrated.url) as database:
        await database.pool.execute(
            "select userrealtime.publish(u, 'x') from unnest(array['alice', 'bob', 'carol']) u, generate_series(1, 30)"
        )
        yield database


async def kept(connection: asyncpg.Connection) -> list[tuple[str, int, int, int]]:
    rows = await connection.fetch(
        "select user_id, min(id), max(id), count(*) from userrealtime.event group by 1 order by 1"
    )
    return [tuple(row) for row in rows]


async def test_the_newest_are_kept(database: Database, connection: asyncpg.Connection) -> None:
    assert await prune(database, Retention(max_events=10), SCOPES) == (60, 0)
    assert await kept(connection) == [(user, 21, 30, 10) for user in ("alice", "bob", "carol")]
    assert await prune(database, Retention(max_events=10), SCOPES) == (0, 0)


async def test_the_old_go_and_the_log_says_where_it_begins(database: Database, connection: asyncpg.Connection) -> None:
    await connection.execute("update userrealtime.event set at = now() - interval '2 h' where id <= 11")
    # An event with the time of a slow clock is removed together with the earlier ones, never from the middle.
    await connection.execute("update userrealtime.event set at = now() - interval '2 h' where id = 20")
    assert await prune(database, Retention(max_age_s=3600), SCOPES) == (33, 0)
    assert await kept(connection) == [(user, 12, 30, 19) for user in ("alice", "bob", "carol")]
    assert await connection.fetchval("select earliest from userrealtime.open('alice')") == 12


async def test_a_log_may_become_empty_and_goes_on(database: Database, connection: asyncpg.Connection) -> None:
    await connection.execute("update userrealtime.event set at = now() - interval '2 h'")
    await prune(database, Retention(max_age_s=3600), SCOPES)
    assert await kept(connection) == []
    await connection.execute("select userrealtime.publish('alice', 'x')")
    assert await kept(connection) == [("alice", 31, 31, 1)]


async def test_users_of_another_operator_are_left_to_it(database: Database, connection: asyncpg.Connection) -> None:
    await connection.execute(
        "insert into userrealtime.registration values (gen_random_uuid(), 'other/users', 'alice'), "
        "(gen_random_uuid(), 'cluster/users', 'bob')"
    )
    await prune(database, Retention(max_events=1), SCOPES)
    assert [row[0] for row in await kept(connection) if row[3] == 30] == ["alice"]


async def test_messages_go_when_they_were_done_long_ago(database: Database, connection: asyncpg.Connection) -> None:
    await connection.execute("select userrealtime.submit('alice', n::text, 'x') from generate_series(1, 20) n")
    await connection.execute("update userrealtime.inbox set done = now() - interval '2 h' where ref::int <= 15")
    await connection.execute("update userrealtime.inbox set done = now() where ref::int = 16")
    assert await prune(database, Retention(inbox_max_age_s=3600), SCOPES) == (0, 15)
    assert await connection.fetchval("select count(*) from userrealtime.inbox") == 5


async def test_by_default_messages_go_a_week_after_they_were_done_and_events_stay(
    database: Database, connection: asyncpg.Connection
) -> None:
    await connection.execute("update userrealtime.event set at = now() - interval '2 years'")
    await connection.execute("select userrealtime.submit('alice', n::text, 'x') from generate_series(1, 3) n")
    await connection.execute("update userrealtime.inbox set at = now() - interval '2 years'")
    await connection.execute("update userrealtime.inbox set done = now() - interval '6 days' where ref = '1'")
    await connection.execute("update userrealtime.inbox set done = now() - interval '8 days' where ref = '2'")
    assert await prune(database, Retention(inbox_max_age_s=None), SCOPES) == (0, 0)
    assert await prune(database, Retention(), SCOPES) == (0, 1)
    assert await connection.fetchval("select array_agg(ref order by ref) from userrealtime.inbox") == ["1", "3"]
    assert len(await kept(connection)) == 3
