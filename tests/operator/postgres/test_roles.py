"""Roles of relays on a real PostgreSQL: their rights, and how they are created, replaced and dropped."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from testing.database import Database as OwnDatabase
from testing.operator.attacks import REFUSED
from testing.patience import PATIENCE_S
from userrealtime_core.secret import Secret
from userrealtime_core.wire.submission import Submission
from userrealtime_operator.postgres.database import Database, DatabaseError
from userrealtime_operator.postgres.migrate import migrate
from userrealtime_operator.postgres.roles import Roles
from userrealtime_operator.secrets.database_passwords import Credentials, role_names
from userrealtime_relay.log.log import Log

ONE, OTHER = (str(uuid.UUID(int=number)) for number in (1, 2))
SCOPE = "cluster/users"
TEST = uuid.uuid4()


@pytest.fixture
async def database(migrated: OwnDatabase) -> AsyncIterator[Database]:
    async with Database(migrated.url) as database:
        yield database


async def made(
    roles: Roles,
    user: str = "alice",
    resource: str = ONE,
    scope: str = SCOPE,
    password: str = "good",  # noqa: S107
    turn: int = 0,
) -> Credentials:
    credentials = Credentials(role_names(f"test/{TEST}", scope, user)[turn], password)
    await roles.ensure(credentials, resource, scope, user)
    return credentials


@pytest.fixture
async def alice(migrated: OwnDatabase, database: Database) -> AsyncIterator[asyncpg.Connection]:
    """A connection as alice's role, in a database with two users and an application."""
    roles = Roles(database)
    bob = await made(roles, "bob", OTHER)
    credentials = await made(roles)
    await database.pool.execute("""
        create table public.orders (id int); insert into public.orders values (1);
        create sequence public.numbers;
        select userrealtime.publish(u, 'of ' || u) from unnest(array['alice', 'bob']) u;
        select userrealtime.submit(u, 'ref', 'x'), userrealtime.present(u, 'pod', 1)
        from unnest(array['alice', 'bob']) u
    """)
    connection = await asyncpg.connect(credentials.url(migrated.url))
    # A table for the statements of a test.
    await connection.execute(f"set test.bob = '{bob.role}'")
    yield connection
    await connection.close()


async def test_a_relay_works_with_its_own_role(migrated: OwnDatabase, database: Database) -> None:
    credentials = await made(Roles(database))
    log = await Log.connect(Secret(credentials.url(migrated.url)), "alice")
    try:
        await database.pool.execute("select userrealtime.publish('alice', 'x'), userrealtime.publish('bob', 'y')")
        opened, channel = await log.open()
        assert (opened.head, opened.earliest) == (1, 1)
        assert len(await log.page(0, max_events=10, max_bytes=1000)) == 1
        assert await log.submit(Submission("ref", "e", "{}")) == await log.submit(Submission("ref", "e", "{}"))
        await log.listen(channel, lambda: None)
    finally:
        log.abandon()


async def test_what_is_not_alices_is_not_seen(alice: asyncpg.Connection) -> None:
    assert [row[0] for row in await alice.fetch("select event from userrealtime.event")] == ["of alice"]
    assert [row[0] for row in await alice.fetch("select user_id from userrealtime.log")] == ["alice"]
    nothing = await alice.fetchval("select userrealtime.first_epoch('bob')")
    assert tuple((await alice.fetchrow("select * from userrealtime.open('bob')")) or ())[:3] == (0, 1, nothing)
    rows = await alice.fetch("select epoch, id from userrealtime.events('bob', 0, 10, 1000)")
    assert [tuple(row) for row in rows] == [(nothing, None)]


@pytest.mark.parametrize("statement", REFUSED)
async def test_what_a_role_may_not_do_is_refused(alice: asyncpg.Connection, statement: str) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await alice.execute(statement)


async def test_row_security_cannot_be_put_off(alice: asyncpg.Connection) -> None:
    await alice.execute("set row_security = off")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await alice.fetch("select * from userrealtime.event")


async def test_acting_as_the_group_gives_nothing_more(alice: asyncpg.Connection) -> None:
    try:
        await alice.execute("set role userrealtime_relay")
    except asyncpg.InsufficientPrivilegeError:
        return
    assert [row[0] for row in await alice.fetch("select event from userrealtime.event")] == ["of alice"]


async def test_a_role_that_is_known_no_more_sees_nothing(alice: asyncpg.Connection, database: Database) -> None:
    await database.pool.execute("delete from userrealtime.role")
    assert await alice.fetch("select * from userrealtime.event") == []
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await alice.execute("select userrealtime.submit('alice', 'other', 'x')")


async def test_the_policies_leave_the_application_its_rights(database: Database, migrated: OwnDatabase) -> None:
    await database.pool.execute("""
        drop role if exists reporting; create role reporting login;
        grant usage on schema userrealtime to reporting; grant select on userrealtime.event to reporting;
        select userrealtime.publish('alice', 'x'), userrealtime.publish('bob', 'y')
    """)
    connection = await asyncpg.connect(Credentials("reporting", "x").url(migrated.url))
    try:
        assert await connection.fetchval("select count(*) from userrealtime.event") == 2
    finally:
        await connection.close()


async def test_reading_goes_by_the_index_and_asks_once_who_asks(alice: asyncpg.Connection, database: Database) -> None:
    await database.pool.execute(
        "select userrealtime.publish(u, 'x') from unnest(array['alice', 'bob']) u, generate_series(1, 5000)"
    )
    await database.pool.execute("analyze userrealtime.event")
    rows = await alice.fetch(
        "explain (analyze, costs off, timing off) select * from userrealtime.event "
        "where user_id = 'alice' and id > 4990 order by id limit 500"
    )
    plan = "\n".join(row[0] for row in rows)
    assert "Index Cond: ((user_id = 'alice'" in plan
    assert "AND (id > 4990))" in plan
    assert "InitPlan" in plan
    assert "Seq Scan on event" not in plan


async def test_a_role_is_made_once_and_healed(database: Database, connection: asyncpg.Connection) -> None:
    roles = Roles(database)
    credentials = await made(roles)
    verifier = "select rolpassword from pg_authid where rolname = $1"
    first = await connection.fetchval(verifier, credentials.role)
    await made(roles)
    assert await connection.fetchval(verifier, credentials.role) == first
    await made(roles, password="another")
    assert await connection.fetchval(verifier, credentials.role) != first
    for damage in ("alter role {} nologin", "revoke userrealtime_relay from {}", "drop role {}"):
        await connection.execute(damage.format(credentials.role))
        if "revoke" not in damage:
            assert await roles.broken(SCOPE) == {ONE}
        await made(roles)
        assert await connection.fetchval(
            "select rolcanlogin and not rolsuper and not rolcreaterole and not rolcreatedb and not rolbypassrls "
            "and pg_has_role(oid, 'userrealtime_relay', 'member') from pg_roles where rolname = $1",
            credentials.role,
        )


async def test_a_password_is_asked_for(own_server: OwnDatabase) -> None:
    async with Database(own_server.url) as database:
        await database.pool.execute("""
            do $$ begin execute format(
                'copy (values (''host all postgres all trust''), (''host all all all scram-sha-256'')) to %L',
                current_setting('hba_file'));
            end $$
        """)
        await database.pool.execute("select pg_reload_conf()")
        roles = Roles(database)
        credentials = await made(roles, password="a first one")
        other = await made(roles, password="a second one", turn=1)
        # Both roles work, because two pods exist during a replacement.
        for each in (credentials, other):
            connection = await asyncpg.connect(each.url(own_server.url))
            assert await connection.fetchval("select userrealtime.served_user()") == "alice"
            await connection.close()
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(Credentials(credentials.role, "a second one").url(own_server.url))


async def test_roles_go_with_their_resources_and_no_others(
    database: Database, connection: asyncpg.Connection, migrated: OwnDatabase
) -> None:
    roles = Roles(database)
    gone, kept = await made(roles), await made(roles, "bob", OTHER)
    elsewhere = await made(roles, "carol", str(uuid.UUID(int=3)), scope="other/users")
    session = await asyncpg.connect(gone.url(migrated.url))
    ended = asyncio.Event()
    session.add_termination_listener(lambda _: ended.set())
    await session.execute("create temp table left_behind (id int)")
    await roles.sweep(SCOPE, await roles.resources(SCOPE) - {OTHER}, {})
    left = {row[0] for row in await connection.fetch("select rolname from pg_roles")}
    assert gone.role not in left
    assert {kept.role, elsewhere.role} <= left
    async with asyncio.timeout(PATIENCE_S):
        await ended.wait()


async def test_a_retired_role_is_dropped_when_its_time_has_come(
    database: Database, connection: asyncpg.Connection
) -> None:
    roles = Roles(database)
    old, new = await made(roles), await made(roles, turn=1)
    await roles.sweep(SCOPE, set(), {ONE: new.role})
    names = "select name from userrealtime.role order by 1"
    assert [row[0] for row in await connection.fetch(names)] == [old.role, new.role]
    await connection.execute(
        "update userrealtime.role set drop_after = now() - interval '1 s' where drop_after < 'infinity'"
    )
    await roles.sweep(SCOPE, set(), {})
    assert [row[0] for row in await connection.fetch(names)] == [new.role]


@asynccontextmanager
async def held(migrated: OwnDatabase, role: str) -> AsyncIterator[asyncpg.Connection]:
    """Yield the connection of another operator, with a transaction that locks the row of a role."""
    connection = await asyncpg.connect(migrated.url)
    try:
        async with connection.transaction():
            await connection.execute("select from userrealtime.role where name = $1 for update", role)
            yield connection
    finally:
        await connection.close()


async def waits_for_a_row(connection: asyncpg.Connection) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await connection.fetchval(
            "select exists (select from pg_stat_activity where wait_event_type = 'Lock')"
        ):
            await asyncio.sleep(0.01)


async def test_a_role_reused_by_a_new_resource_is_not_dropped(
    database: Database, connection: asyncpg.Connection, migrated: OwnDatabase
) -> None:
    roles = Roles(database)
    credentials = await made(roles)
    async with held(migrated, credentials.role) as other:
        sweep = asyncio.create_task(roles.sweep(SCOPE, {ONE}, {}))
        await waits_for_a_row(connection)
        await other.execute("update userrealtime.role set resource = $1", uuid.UUID(OTHER))
    await sweep
    assert await roles.resources(SCOPE) == {OTHER}
    assert await roles.broken(SCOPE) == set()
    await (await asyncpg.connect(credentials.url(migrated.url))).close()


async def test_a_role_that_is_being_dropped_is_made_anew(
    database: Database, connection: asyncpg.Connection, migrated: OwnDatabase
) -> None:
    roles = Roles(database)
    credentials = await made(roles)
    async with held(migrated, credentials.role) as other:
        making = asyncio.create_task(made(roles, resource=OTHER, password="another"))
        await waits_for_a_row(connection)
        await other.execute(f"drop owned by {credentials.role}; drop role {credentials.role}")
        await other.execute("delete from userrealtime.role")
    await (await asyncpg.connect((await making).url(migrated.url))).close()
    assert await roles.resources(SCOPE) == {OTHER}
    assert await roles.broken(SCOPE) == set()


async def test_a_role_that_cannot_be_dropped_is_revoked_and_keeps_no_other(
    database: Database, connection: asyncpg.Connection, migrated: OwnDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    roles = Roles(database)
    stuck, gone = await made(roles), await made(roles, "bob", OTHER)
    await connection.execute("drop database if exists of_a_relay")
    await connection.execute(f"create database of_a_relay owner {stuck.role}")
    revoked = "select name from userrealtime.revoked_role"
    try:
        await roles.sweep(SCOPE, {ONE, OTHER}, {})
        assert await connection.fetch("select from userrealtime.role") == []
        assert [row[0] for row in await connection.fetch(revoked)] == [stuck.role]
        assert stuck.role in caplog.text
        assert gone.role not in {row[0] for row in await connection.fetch("select rolname from pg_roles")}
        with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
            await asyncpg.connect(stuck.url(migrated.url))
    finally:
        await connection.execute("drop database of_a_relay")
    await roles.sweep(SCOPE, set(), {})
    assert await connection.fetch(revoked) == []
    assert stuck.role not in {row[0] for row in await connection.fetch("select rolname from pg_roles")}


async def test_a_revoked_role_serves_again_with_another_password(
    database: Database, connection: asyncpg.Connection, migrated: OwnDatabase
) -> None:
    roles = Roles(database)
    credentials = await made(roles)
    await connection.execute("drop database if exists of_a_relay")
    await connection.execute(f"create database of_a_relay owner {credentials.role}")
    try:
        await roles.sweep(SCOPE, {ONE}, {})
        await made(roles, resource=OTHER, password="another")
        session = await asyncpg.connect(credentials.url(migrated.url))
        assert await session.fetchval("select userrealtime.served_user()") == "alice"
        await session.close()
        await roles.sweep(SCOPE, set(), {})
        assert await roles.resources(SCOPE) == {OTHER}
        assert await roles.broken(SCOPE) == set()
    finally:
        await connection.execute("drop database of_a_relay")


async def operator_of(server: OwnDatabase, attributes: str) -> str:
    """A database whose owner is an operator that is no superuser; its URL."""
    connection = await asyncpg.connect(server.url)
    try:
        await connection.execute(f"create role keeper login {attributes}")
        await connection.execute("create database kept owner keeper")
    finally:
        await connection.close()
    url = Credentials("keeper", "x").url(server.server.url("kept"))
    await migrate(url)
    return url


async def test_an_operator_needs_no_more_than_createrole(own_server: OwnDatabase) -> None:
    url = await operator_of(own_server, "createrole")
    async with Database(url) as database:
        roles = Roles(database)
        credentials = await made(roles)
        session = await asyncpg.connect(credentials.url(url))
        assert await session.fetchval("select userrealtime.served_user()") == "alice"
        await roles.sweep(SCOPE, {ONE}, {})
        assert await database.pool.fetchval("select count(*) from pg_roles where rolname = $1", credentials.role) == 0
        session.terminate()


async def test_an_operator_without_the_right_is_told_what_to_grant(own_server: OwnDatabase) -> None:
    async with Database(await operator_of(own_server, "")) as database:
        with pytest.raises(DatabaseError, match="grant it CREATEROLE, or set database"):
            await made(Roles(database))


async def test_several_pods_may_log_in_as_often_as_they_must(database: Database) -> None:
    roles = Roles(database)
    credentials = await made(roles)
    for pods in (1, 3, 2):
        await roles.ensure(credentials, ONE, SCOPE, "alice", pods)
        limit = await database.pool.fetchval("select rolconnlimit from pg_roles where rolname = $1", credentials.role)
        assert limit == 6 * pods


async def test_a_server_that_lets_in_named_roles_only_is_reported(own_server: OwnDatabase) -> None:
    async with Database(own_server.url) as database:
        file = Path(await database.pool.fetchval("show hba_file"))

        async def let_in(*users: str) -> None:
            before = await database.pool.fetchval("select clock_timestamp()")
            lines = "".join(f"host all {user} 127.0.0.1/32 trust\n" for user in users)
            await asyncio.to_thread(file.write_text, lines)
            await database.pool.execute("select pg_reload_conf()")
            loaded = False
            async with asyncio.timeout(PATIENCE_S):
                while not loaded:  # by the backend that serves new connections
                    connection = await asyncpg.connect(own_server.url)
                    loaded = await connection.fetchval("select pg_conf_load_time() >= $1", before)
                    await connection.close()

        roles = Roles(database)
        await let_in("postgres")
        for _ in range(2):  # also when the role exists
            with pytest.raises(
                DatabaseError, match=r"no pg_hba.conf entry.*\+userrealtime_relay as the user"
            ) as caught:
                await made(roles, password="hunter2")
            assert "hunter2" not in str(caught.value)
        await let_in("postgres", "+userrealtime_relay")
        credentials = await made(roles, password="hunter2")
        await (await asyncpg.connect(credentials.url(own_server.url))).close()
        # A user that is created later.
        await let_in("postgres")
        with pytest.raises(DatabaseError, match="cannot log in"):
            await made(roles, "bob", OTHER)
        with pytest.raises(DatabaseError, match="cannot log in"):
            await made(roles, "bob", OTHER)


async def test_a_server_without_a_free_connection_is_left_to_the_pod(
    migrated: OwnDatabase, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object, **__: object) -> asyncpg.Connection:
        raise asyncpg.TooManyConnectionsError

    monkeypatch.setattr("userrealtime_operator.postgres.roles.connect", refuse)
    credentials = await made(Roles(database))
    await (await asyncpg.connect(credentials.url(migrated.url))).close()
