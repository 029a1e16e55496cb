"""The database role of an activator: it reports parked users, and reads no event."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import uuid4

import asyncpg
import pytest

from testing.database import Database

ROLE = "parking_activator"


@pytest.fixture
async def activator(migrated: Database, connection: asyncpg.Connection) -> AsyncIterator[asyncpg.Connection]:
    """A connection with the role of an activator, to a log with two users."""
    await connection.execute(f"create role {ROLE} login; select userrealtime.grant_activator('{ROLE}')")
    await connection.executemany(
        "insert into userrealtime.registration (resource, scope, user_id) values ($1, 'here/users', $2)",
        [(uuid4(), "alice"), (uuid4(), "bob")],
    )
    await connection.execute("select userrealtime.publish('alice', 'x'), userrealtime.publish('bob', 'x')")
    await connection.execute("select userrealtime.present('alice', 'pod', 3)")
    session = await asyncpg.connect(migrated.url, user=ROLE)
    try:
        yield session
    finally:
        await session.close()
        await connection.execute(f"drop owned by {ROLE}; drop role {ROLE}")


FORBIDDEN = (
    "select * from userrealtime.event",
    "select * from userrealtime.log",
    "select * from userrealtime.presence",
    "select * from userrealtime.events('alice', 0, 10, 1000)",
    "select userrealtime.publish('alice', 'x')",
    "select userrealtime.submit('alice', 'ref', 'x')",
    "select userrealtime.broadcast('alice', 'x')",
    "select userrealtime.present('alice', 'pod', null)",
    "select userrealtime.announce(null, true)",
    "select userrealtime.renew_lease(1, 5000)",
    "select userrealtime.arm_doorbell()",
    "delete from userrealtime.presence",
)


async def test_the_role_of_an_activator_reads_no_event(activator: asyncpg.Connection) -> None:
    for statement in FORBIDDEN:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await activator.execute(statement)
    heads = await activator.fetch("select * from userrealtime.parked_heads(array['alice', 'bob', 'eve'])")
    assert [(row["user_id"], row["head"], row["earliest"]) for row in heads] == [
        ("alice", 1, 1),
        ("bob", 1, 1),
        ("eve", 0, 1),
    ]
    assert set(heads[0].keys()) == {"user_id", "head", "earliest", "epoch", "wanted"}


async def test_an_activator_reports_only_its_own_rows(
    activator: asyncpg.Connection, connection: asyncpg.Connection
) -> None:
    await activator.execute("select userrealtime.park('waker', array['alice', 'bob', 'eve'], array[2, 1, 7])")
    # The row of a pod with the same name stays as it is.
    await activator.execute("select userrealtime.park('pod', array['alice'], array[9])")
    await activator.execute("select userrealtime.park('pod', array['alice'], array[0])")
    online = await connection.fetch("select user_id, clients, parked from userrealtime.online order by 1")
    assert [tuple(row) for row in online] == [("alice", 5, 2), ("bob", 1, 1)]
    await activator.execute("select userrealtime.park('waker', array['alice', 'bob'], array[0, 0])")
    online = await connection.fetch("select user_id, clients, parked from userrealtime.online")
    assert [tuple(row) for row in online] == [("alice", 3, 0)]


async def test_no_other_role_parks_users(migrated: Database, connection: asyncpg.Connection) -> None:
    await connection.execute("create role parking_stranger")
    try:
        for function in ("park(text, text[], int[])", "parked_heads(text[])", "grant_activator(name)"):
            assert not await connection.fetchval(
                "select has_function_privilege('parking_stranger', $1, 'execute')", f"userrealtime.{function}"
            )
    finally:
        await connection.execute("drop role parking_stranger")
