"""The database roles of users' pods: created with their first password, revoked when they are replaced or the resource
is deleted.

The schema contains the privileges (`repeatable/roles.sql`). A role that already exists, for example after a restore of
the database, is reused: its name is a hash of database, scope and user.

Revoking and dropping are separate steps, since the holder of a password can prevent a role from being dropped (by an
object in another database) but not from being revoked:

1. The mapping to the user moves to `revoked_role`, in a transaction that touches nothing a pod can lock. From then on
   the role reads and writes nothing of the user.
2. Sessions are terminated, the role loses its login and the membership in the group.
3. The role is dropped. If that fails, the next sweep retries.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg

from userrealtime_core import audit
from userrealtime_core.postgres import CONNECTION_ERRORS, connect
from userrealtime_operator.secrets.database_passwords import Credentials, scram_verifier

from .database import CONNECT_TIMEOUT_S, LOCK_TIMEOUT_S, Database, DatabaseError, explained, hidden

logger = logging.getLogger(__name__)

GROUP = "userrealtime_relay"
LIMITED_CREATEROLE = 16
"""The first version of PostgreSQL in which CREATEROLE does not include the predefined roles."""
# A pod holds one connection, and briefly two more to detect a pooler. During a replacement there are two pods.
CONNECTION_LIMIT = 6
"""Connections for each of a user's pods."""
TRANSACTION_LIMIT_S = 30
"""For pods. The settings are defaults that a role may change; the watchdog enforces the limit."""
SETTINGS = {
    "statement_timeout": f"{TRANSACTION_LIMIT_S}s",
    "idle_in_transaction_session_timeout": f"{TRANSACTION_LIMIT_S}s",
}
RETIREMENT_S = 40
"""How long a role is kept after the rollout that replaced it. This is longer than any pod drains."""
DISABLE_LOCK_TIMEOUT_MS = 100
DISABLE_ATTEMPTS = 20
TERMINATION_TIMEOUT_S = 2
UNLINK_BATCH = 500
UNLINK_BATCHES = 40
_OVER = "scope = $1 and (resource = any($2::uuid[]) or drop_after < now())"
_SESSIONS = "select exists (select from pg_stat_activity where usename = $1)"
_REJECTIONS = (
    asyncpg.InvalidAuthorizationSpecificationError,  # pg_hba.conf
    asyncpg.ProtocolViolationError,  # PgBouncer
    asyncpg.InternalServerError,  # Supavisor
)
_FAULTS = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError)
_Connection = asyncpg.pool.PoolConnectionProxy


@dataclass(frozen=True, slots=True)
class RoleCause:
    """Why a role is needed, for the audit log.

    Attributes:
        resource_name: the name of the UserRealtime.
        field_managers: the programs that changed it, by their own statement.
        requested_by: the account that changed it, if the API server has verified it.
    """

    resource_name: str | None = None
    reason: str = ""
    rotated: bool = False
    field_managers: Sequence[str] = ()
    requested_by: str | None = None


class PasswordChanged(DatabaseError):
    """The password of a role differs from the password that the operator set: a role can change its password."""


class Roles:
    """The relays' roles in one database. `ensure` is cheap to repeat."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._prepared = False
        self._admitted = False  # a role of a pod has logged in
        self._rejected: set[str] = set()

    async def ensure(
        self,
        credentials: Credentials,
        resource: str,
        scope: str,
        user_id: str,
        pods: int = 1,
        series: str = "",
        *,
        alone: bool = False,
        cause: RoleCause = RoleCause(),
    ) -> None:
        """Create or correct the role that serves `user_id` with this password, for this number of pods.

        A role that exists with another password or for another resource is revoked first, which ends its sessions.
        The user's other role is revoked if it belongs to another `series`, or with `alone`.

        Raises:
            DatabaseError: the database is unavailable, the operator cannot create roles, or the server rejects the
                role.
        """
        limit = CONNECTION_LIMIT * pods
        is_new = False
        try:
            async with self._database.pool.acquire(timeout=CONNECT_TIMEOUT_S) as connection:
                if not self._prepared:
                    async with connection.transaction():
                        await _limit_locks(connection)
                        await connection.execute("select userrealtime.prepare_roles()")
                    self._prepared = True
                    _warn_of_old_server(connection.get_server_version().major)
                known = await connection.fetchrow(
                    "select r.resource = $2 and r.user_id = $3 and r.fingerprint = $4 as same, "
                    "r.name is null as unknown, r.resource = $2 as same_resource, "
                    "r.series is not distinct from $5 and r.drop_after is null and p.rolcanlogin "
                    "and p.rolconnlimit = $6 and pg_has_role(p.oid, $7, 'member') and exists ("
                    "  select from pg_auth_members m where m.roleid = p.oid and m.member = current_user::regrole "
                    "  and coalesce((to_jsonb(m) ->> 'inherit_option')::boolean, true)) as complete "
                    "from pg_roles p left join userrealtime.role r on r.name = p.rolname where p.rolname = $1",
                    credentials.role,
                    UUID(resource),
                    user_id,
                    credentials.fingerprint,
                    series,
                    limit,
                    GROUP,
                )
                if known is not None and not known["same"]:
                    await _revoke(connection, credentials.role, scope, _difference(known))
                    if await connection.fetchval(_SESSIONS, credentials.role):
                        raise hidden(
                            f"the sessions of database role {credentials.role} did not end; retrying",
                            "the sessions of a database role did not end; retrying",
                        )
                if known is None or not (known["same"] and known["complete"]):
                    async with connection.transaction():
                        await _limit_locks(connection)
                        await _make(connection, credentials, resource, scope, user_id, series, cause, connections=limit)
                    is_new = True
                    event = "role-created"
                    if known is not None and known["same"]:
                        event = "role-corrected"
                    elif cause.rotated:
                        event = "role-rotated"
                    _record(
                        event,
                        credentials.role,
                        scope,
                        {"user_id": user_id, "resource": resource, "resource_name": cause.resource_name},
                        reason=cause.reason,
                        field_managers=list(cause.field_managers),
                        requested_by=cause.requested_by,
                    )
                earlier = await connection.fetchval(
                    "select exists (select from userrealtime.role "
                    "where name = $1 and ($3 or series is distinct from $2))",
                    other := other_name(credentials.role),
                    series,
                    alone,
                )
                if earlier:
                    await _revoke(connection, other, scope, "password-changed" if alone else "secret-replaced")
        except asyncpg.InsufficientPrivilegeError as error:
            advice = "grant it CREATEROLE, or set database.credentials to shared"
            raise hidden(
                f"the operator's database role cannot create roles ({error}): {advice}",
                f"the operator's database role cannot create roles: {advice}",
            ) from None
        except _FAULTS as error:
            self._prepared = False  # the preparation may have to be repeated
            raise explained(error) from None
        if is_new or not self._admitted or credentials.role in self._rejected:
            await self._check_login(credentials, is_new)

    async def _check_login(self, credentials: Credentials, is_new: bool) -> None:
        """Check the login of a role. Only a rejection is an error; the pod retries after other failures.

        Raises:
            DatabaseError: the server, or a pooler in front of it, rejects the role.
            PasswordChanged: it rejects the password of this role.
        """
        self._rejected.discard(credentials.role)
        try:
            connection = await connect(credentials.url(self._database.url.reveal()), timeout=CONNECT_TIMEOUT_S)
        except _REJECTIONS as error:
            self._rejected.add(credentials.role)
            # The server accepts other roles, so this role has another password.
            if isinstance(error, asyncpg.InvalidPasswordError) and self._admitted and not is_new:
                raise PasswordChanged(
                    f"the password of database role {credentials.role} was changed",
                    status="the password of the user's database role was changed",
                ) from None
            advice = (
                f"allow all members of {GROUP}, for example with +{GROUP} as the user in pg_hba.conf, or set "
                "database.credentials to shared"
            )
            raise hidden(
                f"the database role {credentials.role} cannot log in ({error}): {advice}",
                f"the database role of the user cannot log in: {advice}",
            ) from None
        except CONNECTION_ERRORS as error:
            logger.info("cannot check the login of role %s: %s", credentials.role, type(error).__name__)
        else:
            self._admitted = True
            connection.terminate()

    async def newest(self, names: Sequence[str]) -> str | None:
        """Return the most recently created role among `names`, or None.

        Raises:
            DatabaseError: the database is away.
        """
        try:
            name: str | None = await self._database.pool.fetchval(
                "select name from userrealtime.role where name = any($1) "
                "order by drop_after is not null, name desc limit 1",
                list(names),
            )
        except _FAULTS as error:
            raise explained(error) from None
        return name

    async def rejects_password(self, credentials: Credentials) -> bool:
        """Return whether the server rejects the password of a role. False after any other failure."""
        try:
            connection = await connect(credentials.url(self._database.url.reveal()), timeout=CONNECT_TIMEOUT_S)
        except asyncpg.InvalidPasswordError:
            return True
        except CONNECTION_ERRORS:
            return False
        connection.terminate()
        return False

    async def resources(self, scope: str) -> set[str]:
        """Return the uids of the resources of a scope that have roles.

        Raises:
            DatabaseError: the database is away.
        """
        try:
            rows = await self._database.pool.fetch("select resource from userrealtime.role where scope = $1", scope)
        except _FAULTS as error:
            raise explained(error) from None
        return {str(row["resource"]) for row in rows}

    async def broken(self, scope: str) -> set[str]:
        """Return the uids of resources with a role that does not exist on the server or cannot log in.

        Raises:
            DatabaseError: the database is away.
        """
        try:
            rows = await self._database.pool.fetch(
                "select resource from userrealtime.role r where scope = $1 and drop_after is null and not exists "
                "(select from pg_roles p where p.rolname = r.name and p.rolcanlogin)",
                scope,
            )
        except _FAULTS as error:
            raise explained(error) from None
        return {str(row["resource"]) for row in rows}

    async def retire(self, resource: str, kept: str) -> None:
        """Schedule the revocation of the other role of a resource for when the last pod with it has ended.

        Raises:
            DatabaseError: the database is away. A sweep does the same.
        """
        try:
            await self._database.pool.execute(
                "update userrealtime.role set drop_after = now() + make_interval(secs => $3) "
                "where resource = $1 and name <> $2 and drop_after is null",
                UUID(resource),
                kept,
                RETIREMENT_S,
            )
        except _FAULTS as error:
            raise explained(error) from None

    async def expire(self, scopes: Sequence[str]) -> None:
        """Revoke and drop the roles whose revocation is due.

        Raises:
            DatabaseError: the database is away.
        """
        try:
            async with self._database.pool.acquire(timeout=CONNECT_TIMEOUT_S) as connection:
                for name in await _take(connection, "scope = any($1) and drop_after < now()", list(scopes)):
                    await _finish(connection, name)
        except _FAULTS as error:
            raise explained(error) from None

    async def sweep(self, scope: str, gone: Set[str], settled: Mapping[str, str]) -> None:
        """Revoke and drop the roles of a scope that belong to deleted resources (`gone`) or whose revocation is due.

        For resources in `settled`, which use one role now, the revocation of the other role is scheduled.

        A role that cannot be dropped is logged, and the next sweep retries.

        Raises:
            DatabaseError: the database is away.
        """
        try:
            async with self._database.pool.acquire(timeout=CONNECT_TIMEOUT_S) as connection:
                await connection.execute(
                    "update userrealtime.role r set drop_after = now() + make_interval(secs => $4) "
                    "from unnest($2::uuid[], $3::text[]) as settled (resource, name) "
                    "where r.scope = $1 and r.resource = settled.resource and r.name <> settled.name "
                    "and r.drop_after is null",
                    scope,
                    [UUID(resource) for resource in settled],
                    list(settled.values()),
                    RETIREMENT_S,
                )
                await _take(connection, _OVER, scope, [UUID(resource) for resource in gone])
                rows = await connection.fetch("select name from userrealtime.revoked_role where scope = $1", scope)
                for row in rows:
                    await _finish(connection, row["name"])
        except _FAULTS as error:
            raise explained(error) from None


def other_name(name: str) -> str:
    """Return the other one of a user's two roles."""
    return name[:-1] + ("b" if name.endswith("a") else "a")


def _warn_of_old_server(version: int) -> None:
    if version < LIMITED_CREATEROLE:
        logger.warning(
            "PostgreSQL %d lets a role with CREATEROLE give itself roles such as pg_execute_server_program, so the "
            "operator's database URL gives access to the server's files and programs: upgrade to PostgreSQL %d, or set "
            "database.credentials to shared and revoke CREATEROLE",
            version,
            LIMITED_CREATEROLE,
        )


async def _limit_locks(connection: _Connection) -> None:
    """Limit the wait for locks, because a pod can lock its role by an open transaction that changes it."""
    await connection.execute(f"set local lock_timeout = '{LOCK_TIMEOUT_S}s'")


async def _exists(connection: _Connection, name: str) -> bool:
    return bool(await connection.fetchval("select exists (select from pg_roles where rolname = $1)", name))


async def _make(
    connection: _Connection,
    credentials: Credentials,
    resource: str,
    scope: str,
    user_id: str,
    series: str,
    cause: RoleCause,
    *,
    connections: int,
) -> None:
    # First, because a concurrent sweep of the role's previous resource must see the new owner or be finished.
    await connection.execute(
        "insert into userrealtime.role (name, scope, resource, user_id, fingerprint, series, resource_name) "
        "values ($1, $2, $3, $4, $5, $6, $7) "
        "on conflict (name) do update set scope = excluded.scope, resource = excluded.resource, "
        "user_id = excluded.user_id, fingerprint = excluded.fingerprint, drop_after = null, "
        "series = excluded.series, resource_name = excluded.resource_name",
        credentials.role,
        scope,
        UUID(resource),
        user_id,
        credentials.fingerprint,
        series,
        cause.resource_name,
    )
    await connection.execute("delete from userrealtime.revoked_role where name = $1", credentials.role)
    # Quoting is not needed: names are hex digits and underscores, and a verifier is base64, `$` and `:`.
    name, verifier = credentials.role, scram_verifier(credentials.password, os.urandom(16))
    exists = await _exists(connection, name)
    attributes = f"login inherit connection limit {connections} password '{verifier}'"
    statements = [
        f"{'alter' if exists else 'create'} role {name} {attributes}",
        *([f"alter role {name} reset all"] if exists else []),
        *(f"alter role {name} set {setting} = '{value}'" for setting, value in SETTINGS.items()),
        f"grant {GROUP} to {name}",
        # Since PostgreSQL 16, the creator of a role cannot act as the role, which terminating its sessions requires.
        # Granted now, because the grant needs a lock, and an attacker can exhaust the locks of the server.
        f"grant {name} to current_user",
    ]
    await connection.execute("; ".join(statements))  # in one message


async def _take(connection: _Connection, condition: str, *arguments: object) -> list[str]:
    """Take the user from the roles for which an SQL condition holds, and return the names of those roles."""
    # The deletion itself evaluates the condition, because a user can be created again and take over the role.
    rows = await connection.fetch(
        f"with revoked as (delete from userrealtime.role where {condition} returning *), "  # noqa: S608
        "stored as (insert into userrealtime.revoked_role (name, scope) select name, scope from revoked "
        "on conflict (name) do update set scope = excluded.scope) "
        "select *, coalesce(drop_after < now(), false) as replaced from revoked",
        *arguments,
    )
    for row in rows:
        _record(
            "role-revoked", row["name"], row["scope"], dict(row), reason="rotated" if row["replaced"] else "deleted"
        )
    return [row["name"] for row in rows]


async def _revoke(connection: _Connection, name: str, scope: str, reason: str) -> None:
    """Revoke a role, regardless of its resource."""
    row = await connection.fetchrow(
        "with revoked as (delete from userrealtime.role where name = $1 returning *), "
        "stored as (insert into userrealtime.revoked_role (name, scope) values ($1, $2) on conflict do nothing) "
        "select * from revoked",
        name,
        scope,
    )
    _record("role-revoked", name, scope, dict(row) if row is not None else None, reason=reason)
    await _finish(connection, name)


def _difference(known: asyncpg.Record) -> str:
    """Return why a role that exists must be revoked before it is used."""
    if known["unknown"]:
        return "not-registered"
    return "other-password" if known["same_resource"] else "other-resource"


def _record(event: str, role: str, scope: str, row: Mapping[str, Any] | None, **fields: object) -> None:
    """Write a line of the audit log about a role. `row` has the columns of userrealtime.role, if they are known."""
    about = row or {"user_id": None, "resource": None, "resource_name": None}
    audit.record(
        event,
        f"database role {role}: {event.removeprefix('role-')}",
        role=role,
        user=about["user_id"],
        namespace=scope.partition("/")[2],
        resource=about["resource_name"],
        uid=about["resource"] and str(about["resource"]),
        **fields,
    )


async def _finish(connection: _Connection, name: str) -> None:
    """Remove all remaining rights of a revoked role, then drop it. Errors are only logged."""
    try:
        async with connection.transaction():
            if await _is_revoked(connection, name):
                await _disable(connection, name)
        for _ in range(UNLINK_BATCHES):
            async with connection.transaction():
                if not await _is_revoked(connection, name) or await _unlink(connection, name) < UNLINK_BATCH:
                    break
        else:
            logger.warning("database role %s, which is revoked, owns many large objects: continued later", name)
            return
        async with connection.transaction():
            if await _is_revoked(connection, name):
                await _drop(connection, name)
    except asyncpg.PostgresError as error:
        logger.warning("cannot drop database role %s, which is revoked; the next sweep retries: %s", name, error)


async def _is_revoked(connection: _Connection, name: str) -> bool:
    """Return whether a role must be dropped. Until the end of the transaction, it cannot be reused."""
    await _limit_locks(connection)
    rows = await connection.fetch("select from userrealtime.revoked_role where name = $1 for update", name)
    return bool(rows)


async def _disable(connection: _Connection, name: str) -> None:
    if not await _exists(connection, name):
        return
    if not await connection.fetchval("select pg_has_role($1, 'usage')", name):
        await connection.execute(f"grant {name} to current_user")
    for attempt in range(1, DISABLE_ATTEMPTS + 1):
        try:
            async with connection.transaction():
                # In one message, because an open transaction of the role can lock it, and the role can log in again.
                await connection.execute(
                    f"set local lock_timeout = '{DISABLE_LOCK_TIMEOUT_MS}ms'; "  # noqa: S608
                    f"select pg_terminate_backend(pid) from pg_stat_activity where usename = '{name}'; "
                    f"alter role {name} nologin connection limit 0"
                )
            break
        except (asyncpg.LockNotAvailableError, asyncpg.InternalServerError):  # the latter: "concurrently updated"
            if attempt == DISABLE_ATTEMPTS:
                raise
    await _limit_locks(connection)
    try:
        async with connection.transaction():
            await connection.execute(f"revoke {GROUP} from {name}")
    except asyncpg.PostgresError as error:  # another role granted it; without the mapping it has no effect
        logger.warning("cannot revoke %s from database role %s: %s", GROUP, name, error)


async def _terminate(connection: _Connection, name: str) -> None:
    """Terminate the sessions of a role, and wait until they have ended."""
    await connection.execute(
        "select pg_terminate_backend(pid, $2) from pg_stat_activity where usename = $1",
        name,
        TERMINATION_TIMEOUT_S * 1000,
    )


async def _unlink(connection: _Connection, name: str) -> int:
    """Delete some of the large objects of a role, and return their number."""
    # In batches, because each large object needs an entry in the lock table of the server.
    return int(
        await connection.fetchval(
            "select count(lo_unlink(o.oid)) from (select m.oid from pg_largeobject_metadata m "
            "join pg_roles r on r.oid = m.lomowner where r.rolname = $1 limit $2) o",
            name,
            UNLINK_BATCH,
        )
    )


async def _drop(connection: _Connection, name: str) -> None:
    if await _exists(connection, name):
        # This includes sessions that were logging in when the role lost its login.
        await _terminate(connection, name)
        await connection.execute(f"drop owned by {name}")
        await connection.execute(f"drop role {name}")
    await connection.execute("delete from userrealtime.revoked_role where name = $1", name)
    logger.info("dropped database role %s", name)
