"""An attacker with the database credential of one user's pod, on a server that docs/hardening.md has hardened."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from testing.installation import OPERATOR, Installation, installation
from testing.relay.harness import USER, client, receive, running
from userrealtime_core.secret import Secret
from userrealtime_operator.postgres.database import Database
from userrealtime_operator.postgres.migrate import migrate
from userrealtime_operator.postgres.roles import Roles
from userrealtime_operator.postgres.watchdog import Watchdog
from userrealtime_operator.process.metrics import Metrics
from userrealtime_operator.secrets.database_passwords import Credentials
from website.blocks import page_blocks

MALLORY = "mallory"
YOUR_APP = Credentials("your_app", "of the application")
BLOCK, *_OTHERS = (block.text for block in page_blocks()["docs/hardening.md"] if block.language == "sql")
LOCKS = (
    "select pg_advisory_lock(1)",
    "select pg_advisory_lock(1, 2)",
    "select pg_advisory_lock_shared(1)",
    "select pg_advisory_xact_lock(1)",
    "select pg_advisory_xact_lock_shared(1, 2)",
    "select pg_try_advisory_lock(1)",
    "select pg_try_advisory_lock_shared(1)",
    "select pg_try_advisory_xact_lock(1)",
    "select pg_try_advisory_xact_lock_shared(1, 2)",
)
REVOKED = (
    *LOCKS,
    "select count(pg_advisory_lock(i)) from generate_series(1, 1000000) i",
    "select lo_create(0)",
    "select lo_creat(-1)",
    "select lo_from_bytea(0, 'x')",
    "select pg_logical_emit_message(false, 'x', 'y')",
    "create temporary table mine (id int)",
    "create table public.mine (id int)",
    "set temp_file_limit = -1",
    "do $$ begin execute format('alter role %I set temp_file_limit = -1', session_user); end $$",
)


@asynccontextmanager
async def hardened() -> AsyncIterator[Installation]:
    """An installation whose users exist already, with an application. The block was executed twice."""
    async with installation() as site:
        await site.relay_url(MALLORY)
        admin = await asyncpg.connect(site.admin_url)
        await admin.execute(f"""
            create role {YOUR_APP.role} login password '{YOUR_APP.password}';
            grant usage on schema userrealtime to {YOUR_APP.role};
            grant execute on all functions in schema userrealtime to {YOUR_APP.role};
        """)
        for _ in range(2):
            await admin.execute(BLOCK)
        await admin.close()
        yield site


@pytest.fixture(scope="module")
def site() -> Iterator[Installation]:
    with asyncio.Runner() as runner:
        context = hardened()
        yield runner.run(context.__aenter__())
        runner.run(context.__aexit__(None, None, None))


@pytest.mark.parametrize("statement", REVOKED)
async def test_what_the_block_revokes_is_refused(site: Installation, statement: str) -> None:
    thief = await asyncpg.connect(await site.relay_url(MALLORY))
    try:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await thief.execute(statement)
    finally:
        await thief.close()


async def test_temporary_files_are_limited(site: Installation) -> None:
    thief = await asyncpg.connect(await site.relay_url(MALLORY))
    assert await thief.fetchval("show temp_file_limit") == "2GB"
    await thief.close()


@pytest.mark.parametrize("database", ["postgres", "template1"])
async def test_a_pod_connects_to_no_other_database(site: Installation, database: str) -> None:
    url = await site.relay_url(MALLORY)
    await (await asyncpg.connect(url)).close()
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="permission denied for database"):
        await asyncpg.connect(url.replace("/app", f"/{database}"))


async def test_pods_continue_to_work(site: Installation) -> None:
    application = await asyncpg.connect(YOUR_APP.url(site.operator_url))
    async with running(await site.relay_url(USER)) as relay, client(relay) as connection:
        assert (await receive(connection))["type"] == "connected"
        await application.execute("select userrealtime.publish($1, 'test')", USER)
        assert (await receive(connection))["id"] == 1
        await connection.send('{"type": "publish", "ref": "one", "event": "typed", "data": {}}')
        assert (await receive(connection))["type"] == "ack"
    await application.close()


async def test_the_application_keeps_its_rights(site: Installation) -> None:
    application = await asyncpg.connect(YOUR_APP.url(site.operator_url))
    for statement in LOCKS:
        await application.execute(statement)
    await application.execute("create temporary table mine (id int)")
    await application.close()


async def test_the_operator_and_an_upgrade_continue_to_work(site: Installation) -> None:
    admin = await asyncpg.connect(site.admin_url)
    await admin.execute("update userrealtime.repeatable set digest = 'another'")
    assert await migrate(site.operator_url)
    # As if the group were new to this database.
    await admin.execute("revoke select on userrealtime.log from userrealtime_relay")
    assert await site.relay_url("carol")
    async with Database(site.operator_url) as database:
        scopes = await database.pool.fetch("select distinct scope from userrealtime.role")
        for (scope,) in scopes:
            await Roles(database).sweep(scope, await Roles(database).resources(scope), {})
    assert await admin.fetchval("select count(*) from userrealtime.role") == 0
    assert await admin.fetchval("select count(*) from pg_roles where rolname like 'urt%'") == 0
    watchdog = Watchdog(Secret(site.operator_url), Metrics())
    connection = await watchdog.open()
    assert await watchdog.check(connection) == []
    connection.terminate()
    await admin.close()


async def test_the_block_finds_the_operator(site: Installation) -> None:
    """The role that owns the schema, whatever its name is; and it does nothing in another database."""
    admin = await asyncpg.connect(site.admin_url)
    assert await admin.fetchval("select has_database_privilege($1, 'app', 'connect, temporary')", OPERATOR.role)
    assert not await admin.fetchval("select has_database_privilege('pg_monitor', 'app', 'connect')")
    await admin.close()
    elsewhere = await asyncpg.connect(site.server.url())
    with pytest.raises(asyncpg.RaiseError, match="connect to the database of the log"):
        await elsewhere.execute(BLOCK)
    await elsewhere.close()


def test_there_is_one_block_to_paste() -> None:
    assert _OTHERS == []
