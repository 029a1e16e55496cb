"""An attacker with the database credential of one user's pod, against what all roles of a server share."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from testing.installation import SCOPE, Installation, installation
from testing.operator.names import child_name
from testing.operator.roles import RoleFixture
from testing.operator.samples import body
from testing.patience import PATIENCE_S
from userrealtime_core.secret import Secret
from userrealtime_operator.kube.types import ObjectKey
from userrealtime_operator.model.naming import CREDENTIALS_SUFFIX
from userrealtime_operator.postgres import migrate as migrations
from userrealtime_operator.postgres.database import Database, DatabaseError
from userrealtime_operator.postgres.migrate import Migration, Schema, load_schema, migrate
from userrealtime_operator.postgres.roles import Roles
from userrealtime_operator.postgres.watchdog import Watchdog
from userrealtime_operator.process.metrics import Metrics
from userrealtime_operator.secrets.database_passwords import Credentials, read_credentials, role_names

MALLORY = "mallory"
LOCKS = (
    "select pg_advisory_lock(hashtext('userrealtime.prepare_roles'))",
    "select pg_advisory_lock(x'7572746d69677261'::bigint)",
    "select pg_advisory_lock('userrealtime.role'::regclass::oid::bigint)",
    "begin; lock userrealtime.event, userrealtime.log in access share mode",
)
"""The locks that the operator and the migrations took in earlier versions, which a pod may hold."""


@pytest.fixture(scope="module")
def installed() -> Iterator[Installation]:
    """A shared installation for the tests that leave nothing behind."""
    with asyncio.Runner() as runner:
        context = installation()
        yield runner.run(context.__aenter__())
        runner.run(context.__aexit__(None, None, None))


@asynccontextmanager
async def holding(site: Installation, *statements: str) -> AsyncIterator[None]:
    """Yield a session of mallory's pod that has run these statements and removed its time limits."""
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
            # the roles of an operator that has just started
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


@asynccontextmanager
async def watching(site: Installation, **options: float) -> AsyncIterator[tuple[Watchdog, asyncpg.Connection, Metrics]]:
    metrics = Metrics()
    watchdog = Watchdog(Secret(site.operator_url), metrics, **options)
    connection = await watchdog.open()
    try:
        yield watchdog, connection, metrics
    finally:
        connection.terminate()


async def expect_ended(session: asyncpg.Connection) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not session.is_closed():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("select pg_advisory_lock(1)", "advisory_lock"),
        ("select pg_advisory_lock_shared(1, 2)", "advisory_lock"),
        ("begin; select pg_advisory_xact_lock(1)", "advisory_lock"),
        ("begin; select 1", "transaction"),
        ("listen anything; begin; select 1", "transaction"),
        ("begin; lock userrealtime.event in access share mode", "transaction"),
        (
            "begin; do $$ begin for n in 1..300 loop execute format('create temp table t%s ()', n); end loop; end $$",
            "locks",
        ),
    ],
)
@pytest.mark.parametrize("database", ["app", "postgres"])
async def test_a_session_that_holds_what_is_shared_is_ended(
    installed: Installation, statement: str, reason: str, database: str
) -> None:
    if "userrealtime" in statement and database != "app":
        statement = "begin; lock pg_class in access share mode"
    url = (await installed.relay_url(MALLORY)).replace("/app", f"/{database}")
    offender, honest = await asyncpg.connect(url), await asyncpg.connect(await installed.relay_url("bob"))
    application = await asyncpg.connect(installed.admin_url)
    await application.execute("begin; select pg_advisory_xact_lock(2)")
    limit = 0.0 if reason == "transaction" else 600.0
    async with watching(installed, transaction_limit_s=limit) as (watchdog, connection, metrics):
        assert await watchdog.check(connection) == []
        await offender.execute("set statement_timeout = 0; set idle_in_transaction_session_timeout = 0")
        await offender.execute(statement)
        assert [each.reason for each in await watchdog.check(connection)] == [reason]
        await expect_ended(offender)
        assert f'userrealtime_operator_pod_sessions_ended_total{{reason="{reason}"}} 1.0' in metrics.expose().decode()
        assert await watchdog.check(connection) == []
    assert await honest.fetchval("select userrealtime.served_user()") == "bob"
    for each in (honest, application):
        await each.close()


async def test_a_full_lock_table_is_emptied() -> None:
    async with installation() as site:
        admin = await asyncpg.connect(site.admin_url)
        async with watching(site) as (watchdog, connection, _):
            for _ in range(2):
                thief = await asyncpg.connect(await site.relay_url(MALLORY))
                with pytest.raises(asyncpg.OutOfMemoryError):
                    await thief.execute("select count(pg_advisory_lock(i)) from generate_series(1, 10000000) i")
                with pytest.raises(asyncpg.OutOfMemoryError):
                    await admin.execute("select userrealtime.publish('bob', 'test')")
                assert [each.reason for each in await watchdog.check(connection)] == ["advisory_lock"]
                await expect_ended(thief)
                await admin.execute("select userrealtime.publish('bob', 'test')")
        await admin.close()


async def test_a_transaction_of_a_pod_does_not_stop_an_upgrade(monkeypatch: pytest.MonkeyPatch) -> None:
    schema = load_schema()
    probe = Migration(len(schema.migrations) + 1, "probe", "alter table userrealtime.event add column probe int")
    known = Schema((*schema.migrations, probe), schema.repeatables, schema.from_unreleased)
    async with (
        installation() as site,
        holding(site, "begin; lock userrealtime.event, userrealtime.log in access share mode"),
        watching(site, transaction_limit_s=0.0) as (watchdog, connection, _),
    ):
        monkeypatch.setattr(migrations, "load_schema", lambda: known)
        monkeypatch.setattr(migrations, "LOCK_TIMEOUT_S", 0.5)
        migrating = asyncio.create_task(migrate(site.operator_url))
        async with asyncio.timeout(PATIENCE_S):
            while not await connection.fetchval("select exists (select from pg_locks where not granted)"):
                assert not migrating.done()
                await asyncio.sleep(0.01)
        assert [each.reason for each in await watchdog.check(connection)] == ["transaction"]
        assert await migrating == [probe.label]


async def test_a_session_of_a_revoked_role_is_ended() -> None:
    """The session logged in while the role was revoked."""
    async with installation() as site, watching(site) as (watchdog, connection, metrics):
        admin = await asyncpg.connect(site.admin_url)
        session = await asyncpg.connect(await site.relay_url(MALLORY))
        await admin.execute(
            "with revoked as (delete from userrealtime.role returning name, scope) "
            "insert into userrealtime.revoked_role select name, scope, now() - interval '1 day' from revoked"
        )
        assert await session.fetchval("select userrealtime.served_user()") == ""
        assert [each.reason for each in await watchdog.check(connection)] == ["revoked"]
        await expect_ended(session)
        assert "userrealtime_operator_undroppable_roles 1.0" in metrics.expose().decode()
        await admin.close()


async def test_the_watchdog_runs_by_itself() -> None:
    async with installation() as site:
        thief = await asyncpg.connect(await site.relay_url(MALLORY))
        await thief.execute("select pg_advisory_lock(1)")
        task = asyncio.create_task(Watchdog(Secret(site.operator_url), Metrics()).run())
        await expect_ended(thief)
        task.cancel()


async def test_a_held_row_delays_the_erasure_of_no_user() -> None:
    async with installation() as site, Database(site.operator_url) as database:
        admin = await asyncpg.connect(site.admin_url)
        world = RoleFixture(site.operator_url, database)
        world.api.resources.clear()
        for name in (MALLORY, "bob", "carol"):
            item = body(name)
            item["metadata"]["uid"] = str(uuid.uuid4())
            world.add(item)
            await world.reconcile(name)
            await admin.execute("select userrealtime.publish($1, 'test')", name)
        secret = world.api.children[ObjectKey("Secret", "users", child_name(MALLORY) + CREDENTIALS_SUFFIX)]
        credentials = read_credentials(secret, "DATABASE_URL")
        assert credentials is not None
        elsewhere = await asyncpg.connect(credentials.url(site.server.url("postgres")))
        await elsewhere.execute("select lo_create(0)")
        thief = await asyncpg.connect(credentials.url(site.operator_url))
        await thief.execute("select userrealtime.present($1, 'pod', 0)", MALLORY)
        await thief.execute("set idle_in_transaction_session_timeout = 0; begin")
        await thief.execute("select userrealtime.present($1, 'pod', 0)", MALLORY)
        world.api.resources.clear()
        await world.reconciler.sweep("users")
        assert await admin.fetchval("select count(*) from userrealtime.event") == 0
        assert await admin.fetchval("select count(*) from userrealtime.registration") == 0
        await expect_ended(thief)
        await expect_ended(elsewhere)
        await admin.close()


async def test_the_wait_for_a_locked_row_has_a_limit() -> None:
    async with installation() as site, Database(site.operator_url) as database:
        admin = await asyncpg.connect(site.admin_url)
        resource = str(uuid.uuid4())
        await database.register(resource, SCOPE, "bob")
        await admin.execute("select userrealtime.present('bob', 'pod', 0)")
        async with admin.transaction():
            await admin.execute("select userrealtime.present('bob', 'pod', 1)")
            with pytest.raises(DatabaseError, match="lock timeout"):
                await database.forget(resource)
        await database.forget(resource)
        assert await database.registered(SCOPE) == set()
        await admin.close()
