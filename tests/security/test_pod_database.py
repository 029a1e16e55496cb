"""An attacker with the database credential of one user's pod, against what all roles of a server share."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from userrealtime_operator.credentials import Credentials, role_names
from userrealtime_operator.database import Database
from userrealtime_operator.migrate import migrate
from userrealtime_operator.roles import Roles

from .support import SCOPE, Installation, installation

MALLORY = "mallory"
LOCKS = (
    "select pg_advisory_lock(hashtext('userrealtime.prepare_roles'))",
    "select pg_advisory_lock(x'7572746d69677261'::bigint)",
    "select pg_advisory_lock('userrealtime.role'::regclass::oid::bigint)",
    "begin; lock userrealtime.event, userrealtime.log in access share mode",
)
"""What the operator and the migrations locked in earlier versions, and what a pod may lock."""


@asynccontextmanager
async def holding(site: Installation, *statements: str) -> AsyncIterator[None]:
    """A session of mallory's pod that has run these statements, and has lifted its time limits."""
    url = await site.relay_url(MALLORY)
    sessions = []
    for statement in statements:
        sessions.append(session := await asyncpg.connect(url))
        await session.execute("set statement_timeout = 0; set idle_in_transaction_session_timeout = 0")
        await session.execute(statement)
    try:
        yield
    finally:
        for session in sessions:
            session.terminate()


async def test_locks_of_a_pod_delay_neither_the_operator_nor_an_upgrade() -> None:
    async with installation() as site, Database(site.operator_url) as database:
        admin = await asyncpg.connect(site.admin_url)
        async with holding(site, *LOCKS):
            # Of an operator that has just started.
            roles = Roles(database)
            for number in range(8):
                credentials = Credentials(role_names("/app", SCOPE, f"user{number}")[0], "good")
                await roles.ensure(credentials, str(uuid.uuid4()), SCOPE, f"user{number}")
            # As if the group were new to this database.
            await admin.execute("revoke select on userrealtime.log from userrealtime_relay")
            await Roles(database).ensure(credentials, str(uuid.uuid4()), SCOPE, "user7")
            assert await admin.fetchval(
                "select has_table_privilege('userrealtime_relay', 'userrealtime.log', 'select')"
            )
            await admin.execute("update userrealtime.repeatable set digest = 'another'")
            assert await migrate(site.operator_url)
        await admin.close()


async def test_the_numbers_of_one_pod_fail_no_query_of_who_is_online() -> None:
    async with installation() as site:
        admin = await asyncpg.connect(site.admin_url)
        await admin.execute("select userrealtime.present('bob', 'pod', 1)")
        thief = await asyncpg.connect(await site.relay_url(MALLORY))
        await thief.execute(
            "select userrealtime.present($1, 'pod-' || n, 2147483647) from generate_series(1, 40) n", MALLORY
        )
        online = await admin.fetch("select user_id, clients from userrealtime.online order by 1")
        assert [tuple(row) for row in online] == [("bob", 1), (MALLORY, 16 * 100_000)]
        await thief.execute(
            "select userrealtime.attend($1, 'other-' || n, false) from generate_series(1, 40) n", MALLORY
        )
        assert await admin.fetchval("select count(*) from userrealtime.presence where user_id = $1", MALLORY) <= 16
        with pytest.raises(asyncpg.CheckViolationError):
            await thief.execute("select userrealtime.present($1, 'pod', -1)", MALLORY)
        await thief.close()
        await admin.close()


async def test_shared_credentials_work_after_separate_ones() -> None:
    """From PostgreSQL 16 on, the operator has become a member of the group by creating it."""
    async with installation() as site, Database(site.operator_url) as database:
        await site.relay_url(MALLORY)
        assert await database.pool.fetchval("select userrealtime.served_user()") is None
        assert await database.pool.fetchval("select userrealtime.submit('alice', 'ref', 'typed')") == 1
        await database.pool.execute("select userrealtime.present('alice', 'pod', 1)")
