"""An attacker with a database password that was replaced, or that belongs to a deleted user: it gives no access."""

from __future__ import annotations

import asyncio
import copy
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import timedelta

import asyncpg
import pytest

from testing.audit import AuditLines
from testing.installation import SCOPE, Installation, installation
from testing.operator.fixture import CREDENTIALS, SECRET
from testing.operator.names import child_name
from testing.operator.roles import RoleFixture
from testing.operator.samples import CONFIG
from testing.patience import PATIENCE_S
from userrealtime_operator.config import AdmissionPolicy
from userrealtime_operator.kube.types import ObjectKey
from userrealtime_operator.postgres import roles as roles_module
from userrealtime_operator.postgres.database import Database
from userrealtime_operator.postgres.roles import RoleCause, Roles
from userrealtime_operator.reconcile.rollouts import Rollouts
from userrealtime_operator.secrets.database_passwords import Credentials, read_credentials, role_names
from userrealtime_operator.secrets.token_keys import SERIES

USER = "alice"
ONE, OTHER = (str(uuid.UUID(int=number)) for number in (1, 2))
_REFUSED = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidPasswordError,
    asyncpg.TooManyConnectionsError,
)


async def ended(session: asyncpg.Connection) -> None:
    """Wait until the client notices that the server has ended its session."""
    async with asyncio.timeout(PATIENCE_S):
        while not session.is_closed():
            await asyncio.sleep(0.01)


class Site:
    """An installation, its operator, and a superuser that observes it."""

    def __init__(self, installation: Installation, database: Database, admin: asyncpg.Connection) -> None:
        self.installation, self.admin = installation, admin
        self.database, self.roles = database, Roles(database)

    async def given(self, turn: int = 0, resource: str = ONE, series: str = "first") -> Credentials:
        """Create a new password of the user, which the user's pod and an attacker have."""
        credentials = Credentials(role_names("/app", SCOPE, USER)[turn], uuid.uuid4().hex)
        await self.roles.ensure(credentials, resource, SCOPE, USER, series=series)
        return credentials

    async def connect(self, credentials: Credentials, database: str = "app") -> asyncpg.Connection:
        url = self.installation.server.url(database)
        return await asyncpg.connect(credentials.url(url), timeout=PATIENCE_S)

    async def keep_from_being_dropped(self, credentials: Credentials) -> None:
        """Own an object in another database, which PostgreSQL permits every role."""
        connection = await self.connect(credentials, "postgres")
        await connection.execute("select lo_create(0)")
        await connection.close()

    async def rotate(self, old: Credentials, turn: int) -> Credentials:
        """Rotate to another password, and let the time of the old one end."""
        new = await self.given(turn)
        await self.roles.retire(ONE, new.role)
        await self.admin.execute(
            "update userrealtime.role set drop_after = now() - interval '1 s' where name = $1", old.role
        )
        await self.roles.sweep(SCOPE, set(), {})
        return new

    async def expect_useless(self, credentials: Credentials) -> None:
        with pytest.raises(_REFUSED):
            await self.connect(credentials)
        assert (
            await self.admin.fetchval("select count(*) from pg_stat_activity where usename = $1", credentials.role) == 0
        )
        assert not await self.admin.fetchval(
            "select exists (select from userrealtime.role where name = $1) "
            "or exists (select from pg_roles where rolname = $1 "
            "  and (rolcanlogin or pg_has_role(oid, 'userrealtime_relay', 'member')))",
            credentials.role,
        )

    async def expect_useful(self, credentials: Credentials) -> None:
        connection = await self.connect(credentials)
        assert await connection.fetchval("select userrealtime.served_user()") == USER
        await connection.close()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with installation() as installed, Database(installed.operator_url) as database:
        admin = await asyncpg.connect(installed.admin_url)
        await admin.execute("select userrealtime.publish($1, 'test')", USER)
        yield Site(installed, database, admin)
        await admin.close()


@pytest.mark.parametrize("stuck", [False, True], ids=["droppable", "undroppable"])
async def test_a_replaced_password_opens_nothing(site: Site, stuck: bool) -> None:
    old = await site.given()
    if stuck:
        await site.keep_from_being_dropped(old)
    session = await site.connect(old)
    new = await site.rotate(old, 1)
    await site.expect_useless(old)
    await ended(session)
    await site.expect_useful(new)
    if stuck:
        assert [row[0] for row in await site.admin.fetch("select name from userrealtime.revoked_role")] == [old.role]


async def test_an_old_password_is_invalid_for_a_recreated_user(site: Site) -> None:
    first = await site.given()
    second = await site.rotate(first, 1)
    for each in (first, second):
        with suppress(*_REFUSED):
            await site.keep_from_being_dropped(each)
    session = await site.connect(second)
    await site.roles.sweep(SCOPE, {ONE}, {})
    await ended(session)
    third = await site.given(resource=OTHER, series="second")
    await site.admin.execute("select userrealtime.publish($1, 'of the second life')", USER)
    await site.expect_useful(third)
    await site.expect_useless(second)
    with pytest.raises(_REFUSED):
        await site.connect(first)


async def test_a_password_that_the_attacker_has_set_is_replaced(site: Site) -> None:
    old = await site.given()
    await site.keep_from_being_dropped(old)
    session = await site.connect(old)
    await session.execute(f"alter role {old.role} password 'of the attacker'")
    new = await site.given()  # the same role
    await ended(session)
    await site.expect_useful(new)
    for password in (old.password, "of the attacker"):
        with pytest.raises(_REFUSED):
            await site.connect(Credentials(old.role, password))


async def test_another_series_revokes_the_roles_of_the_one_before_at_once(site: Site) -> None:
    old = await site.given()
    await site.keep_from_being_dropped(old)
    session = await site.connect(old)
    new = await site.given(1, series="second")
    await ended(session)
    await site.expect_useless(old)
    await site.expect_useful(new)


@asynccontextmanager
async def resisting(site: Site, credentials: Credentials) -> AsyncIterator[None]:
    """Run connections that log in repeatedly and lock their role."""

    async def resist() -> None:
        while True:
            with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                connection = await site.connect(credentials)
                try:
                    await connection.execute("set idle_in_transaction_session_timeout = 0; set lock_timeout = 0; begin")
                    await connection.execute(f"alter role {credentials.role} set work_mem = '64kB'")
                    await connection.execute("select pg_sleep(3600)")
                finally:
                    connection.terminate()
            await asyncio.sleep(0.01)

    tasks = [asyncio.create_task(resist()) for _ in range(3)]
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not await site.admin.fetchval(
                "select exists (select from pg_stat_activity where usename = $1 and query like '%pg_sleep%')",
                credentials.role,
            ):
                await asyncio.sleep(0.01)
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_an_attacker_who_locks_the_role_does_not_keep_it(site: Site) -> None:
    old = await site.given()
    await site.keep_from_being_dropped(old)
    async with resisting(site, old):
        new = await site.rotate(old, 1)
        # The role has no access to the user's data, even if it can log in until a later sweep.
        assert await site.admin.fetch("select from userrealtime.role where name = $1", old.role) == []
        for _ in range(5):
            await site.roles.sweep(SCOPE, set(), {})
    await site.expect_useless(old)
    await site.expect_useful(new)


async def test_many_large_objects_use_up_no_locks(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    old = await site.given()
    session = await site.connect(old)
    for _ in range(20):  # more than the lock table has room for
        await session.execute("select count(lo_create(0)) from generate_series(1, 1500)")
    monkeypatch.setattr(roles_module, "UNLINK_BATCHES", 30)
    await site.roles.sweep(SCOPE, {ONE}, {})
    await site.expect_useless(old)
    left = "select count(*) from pg_largeobject_metadata"
    assert await site.admin.fetchval(left) == 20 * 1500 - 30 * roles_module.UNLINK_BATCH
    monkeypatch.undo()
    await site.roles.sweep(SCOPE, set(), {})
    assert await site.admin.fetchval(left) == 0
    assert await site.admin.fetch("select from userrealtime.revoked_role") == []


class EmergencyFixture(RoleFixture):
    """A user whose pod serves, while no other rollout may begin."""

    def __init__(self, site: Site) -> None:
        super().__init__(site.installation.operator_url, site.database)
        self.reconciler._rollouts = Rollouts(0)
        self.pods = ObjectKey("Deployment", "users", child_name("alice"))

    @classmethod
    async def serving(cls, site: Site) -> EmergencyFixture:
        world = cls(site)
        await world.reconcile()
        world.become_available()
        await world.reconcile()
        return world

    def credentials(self) -> Credentials:
        found = read_credentials(self.api.children[CREDENTIALS], "DATABASE_URL")
        assert found is not None
        return found

    def generation(self) -> int:
        return int(self.api.children[self.pods]["metadata"]["generation"])


@pytest.mark.parametrize("how", ["deleted", "emptied", "without its series", "other key"])
async def test_the_emergency_procedure_ends_sessions_immediately(site: Site, how: str) -> None:
    world = await EmergencyFixture.serving(site)
    old, generation = world.credentials(), world.generation()
    await site.keep_from_being_dropped(old)
    session = await site.connect(old)
    secret = world.api.children[SECRET]
    if how == "deleted":
        del world.api.children[SECRET]
    elif how == "emptied":
        secret["data"] = {}
    elif how == "without its series":
        del secret["metadata"]["annotations"][SERIES]
    else:
        secret["data"] = {**secret["data"], "TOKEN_KEY": ""}
    await world.reconcile()
    assert world.credentials().role != old.role
    assert world.generation() == generation + 1
    await ended(session)
    await site.expect_useless(old)
    await site.expect_useful(world.credentials())


async def test_a_crash_between_the_two_secrets_does_not_keep_the_old_password(site: Site) -> None:
    world = await EmergencyFixture.serving(site)
    old, url = world.credentials(), world.secret_url()
    await site.keep_from_being_dropped(old)
    before = copy.deepcopy(world.api.children[CREDENTIALS])
    del world.api.children[SECRET]
    await world.reconcile()
    # As if the operator had ended after it created the Secret with the new keys.
    world.api.children[CREDENTIALS] = before
    world.restart_with_roles()
    await world.reconcile()
    assert world.secret_url() != url
    assert world.credentials().role != old.role
    await site.expect_useless(old)
    await site.expect_useful(world.credentials())


async def test_a_deleted_or_planted_secret_with_urls_gets_another_role(site: Site) -> None:
    world = await EmergencyFixture.serving(site)
    keys, old = world.keys(), world.credentials()
    planted = world.api.children.pop(CREDENTIALS)
    await world.reconcile()
    new = world.credentials()
    assert (new.role != old.role, world.keys() == keys) == (True, True)
    await site.expect_useful(new)
    # A copy of the stolen contents, created by somebody else.
    planted["metadata"] = {**planted["metadata"], "uid": "planted"}
    del planted["metadata"]["ownerReferences"]
    world.api.children[CREDENTIALS] = planted
    await world.reconcile()
    assert world.credentials() not in (old, new)
    assert world.api.children[CREDENTIALS]["metadata"]["ownerReferences"]
    await site.expect_useful(world.credentials())


async def test_a_foreign_password_change_is_detected_and_replaced(site: Site) -> None:
    world = await EmergencyFixture.serving(site)
    old, generation = world.credentials(), world.generation()
    thief = await site.connect(old)
    await thief.execute(f"alter role {old.role} password 'of the attacker'")
    session = await site.connect(Credentials(old.role, "of the attacker"))
    world.become_available(pods=0)  # it cannot connect any more
    for _ in range(3):
        await world.reconcile()
        world.time += timedelta(seconds=10)
    assert world.credentials().role != old.role
    assert world.generation() == generation + 1
    await ended(session)
    for password in (old.password, "of the attacker"):
        await site.expect_useless(Credentials(old.role, password))
    await site.expect_useful(world.credentials())
    # Once, and not again while the new pod is not ready.
    new = world.credentials()
    for _ in range(3):
        await world.reconcile()
        world.time += timedelta(seconds=10)
    assert world.credentials() == new


async def test_a_changed_password_is_noticed_by_an_operator_that_starts(site: Site) -> None:
    world = await EmergencyFixture.serving(site)
    old = world.credentials()
    thief = await site.connect(old)
    await thief.execute(f"alter role {old.role} password 'of the attacker'")
    roles = world.restart_with_roles()
    await world.reconcile()
    assert world.condition("DatabaseReady")[1] == "RoleUnavailable"
    # The login of another user's role shows that the server accepts logins.
    await roles.ensure(Credentials(role_names("/app", SCOPE, "bob")[0], "of bob"), OTHER, SCOPE, "bob")
    for _ in range(2):
        await world.reconcile()
    assert world.credentials().role != old.role
    assert world.condition("DatabaseReady")[0] == "True"
    await ended(thief)
    await site.expect_useful(world.credentials())


async def test_the_audit_log_has_each_role_and_why_it_was_revoked(site: Site) -> None:
    cause = RoleCause("alice", "requested", rotated=True, field_managers=("signup",), requested_by="bob")
    names = role_names("/app", SCOPE, USER)
    with AuditLines() as lines:
        await site.roles.ensure(Credentials(names[0], "one"), ONE, SCOPE, USER, cause=RoleCause("alice", "new-secret"))
        await site.roles.ensure(Credentials(names[1], "two"), ONE, SCOPE, USER, cause=cause)
        await site.roles.retire(ONE, names[1])
        await site.admin.execute(
            "update userrealtime.role set drop_after = now() - interval '1 s' where name = $1", names[0]
        )
        await site.roles.expire([SCOPE])
        await site.roles.ensure(Credentials(names[0], "three"), ONE, SCOPE, USER, series="other", cause=cause)
        await site.roles.sweep(SCOPE, {ONE}, {})
    assert [(line["event"], line["role"], line["reason"]) for line in lines.all] == [
        ("role-created", names[0], "new-secret"),
        ("role-rotated", names[1], "requested"),
        ("role-revoked", names[0], "rotated"),
        ("role-rotated", names[0], "requested"),
        ("role-revoked", names[1], "secret-replaced"),
        ("role-revoked", names[0], "deleted"),
    ]
    assert {(line["user"], line["namespace"], line["resource"], line["uid"]) for line in lines.all} == {
        (USER, "users", "alice", ONE)
    }
    assert lines.all[1]["field_managers"] == ["signup"]
    assert [line.get("requested_by") for line in lines.all[:2]] == [None, "bob"]


@pytest.mark.parametrize("verified", [True, False])
async def test_the_audit_log_has_the_requester_if_the_api_server_verifies_it(site: Site, verified: bool) -> None:
    world = RoleFixture(site.installation.server.url("app"), site.database)
    world.restart_with_roles(config=replace(CONFIG, admission_policy=AdmissionPolicy(enabled=verified)))
    world.api.resources["users", "alice"]["metadata"]["annotations"] = {"userrealtime.dev/requested-by": "bob"}
    with AuditLines() as lines:
        await world.reconcile()
    [line] = lines.of("role-created")
    assert line.get("requested_by") == ("bob" if verified else None)
