"""One database role a user: made when its password is first to be used, swept when the resource is gone.

The rights are in the schema (`0003_roles.sql`). A role that exists already, from a database that was set back for
instance, is taken over: its name is a hash of database, scope and user, so it can be nobody else's.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Set
from uuid import UUID

import asyncpg

from .credentials import Credentials, scram_verifier
from .database import CONNECT_TIMEOUT_S, Database, DatabaseError, explained

logger = logging.getLogger(__name__)

GROUP = "userrealtime_relay"
# A pod holds one connection, and two more for a moment when it finds a pooler; two pods serve while one is replaced.
CONNECTION_LIMIT = 6
"""For each of a user's pods."""
SETTINGS = {"statement_timeout": "30s", "idle_in_transaction_session_timeout": "30s"}
RETIREMENT_S = 600
"""How long a role outlives the rollout that put another in its place: longer than any pod drains."""
_OVER = "select name from userrealtime.role where scope = $1 and (resource = any($2::uuid[]) or drop_after < now())"
_FAULTS = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError)


class Roles:
    """The relays' roles in one database. `ensure` is cheap to repeat."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._prepared = False

    async def ensure(self, credentials: Credentials, resource: str, scope: str, user_id: str, pods: int = 1) -> None:
        """Have a role that serves `user_id` with this password, in so many pods. Writes nothing where there is one.

        Raises:
            DatabaseError: the database is away, or this operator may not make roles.
        """
        try:
            async with self._database.pool.acquire(timeout=CONNECT_TIMEOUT_S) as connection:
                if not self._prepared:
                    await connection.execute("select userrealtime.prepare_roles()")
                    self._prepared = True
                as_wanted = await connection.fetchval(
                    "select exists (select from userrealtime.role r "
                    "where r.name = $1 and r.resource = $2 and r.user_id = $3 and r.fingerprint = $4 "
                    "and r.drop_after is null and p.rolcanlogin and p.rolconnlimit = $5 "
                    "and pg_has_role(p.oid, $6, 'member')) from pg_roles p where p.rolname = $1",
                    credentials.role,
                    UUID(resource),
                    user_id,
                    credentials.fingerprint,
                    CONNECTION_LIMIT * pods,
                    GROUP,
                )
                if not as_wanted:
                    async with connection.transaction():
                        await _make(
                            connection,
                            credentials,
                            resource,
                            scope,
                            user_id,
                            connections=CONNECTION_LIMIT * pods,
                        )
        except asyncpg.InsufficientPrivilegeError as error:
            raise DatabaseError(
                f"the operator's database role may not make roles ({error}): grant it CREATEROLE, "
                "or set database.credentials to shared"
            ) from None
        except _FAULTS as error:
            self._prepared = False  # what was prepared may be what is missing
            raise explained(error) from None

    async def resources(self, scope: str) -> set[str]:
        """The uids of the resources of a scope that have roles.

        Raises:
            DatabaseError: the database is away.
        """
        try:
            rows = await self._database.pool.fetch("select resource from userrealtime.role where scope = $1", scope)
        except _FAULTS as error:
            raise explained(error) from None
        return {str(row["resource"]) for row in rows}

    async def broken(self, scope: str) -> set[str]:
        """The uids of resources of which a role is missing on the server, or may not log in.

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

    async def sweep(self, scope: str, gone: Set[str], settled: Mapping[str, str]) -> None:
        """Drop the roles of a scope that belong to resources that are `gone`, or whose time is over: resources that
        have `settled` for one role need their others no more once the last pod that knew them has drained.

        One that cannot be dropped is logged, and tried again by the next sweep.

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
                uids = [UUID(resource) for resource in gone]
                rows = await connection.fetch(_OVER, scope, uids)
                for row in rows:
                    try:
                        async with connection.transaction():
                            # A user who is made anew takes the role over, which may be this very moment.
                            if not await connection.fetch(
                                _OVER + " and name = $3 for update", scope, uids, row["name"]
                            ):
                                continue
                            await _drop(connection, row["name"])
                    except asyncpg.PostgresError as error:
                        logger.warning("cannot drop database role %s, will try again: %s", row["name"], error)
                    else:
                        logger.info("dropped database role %s", row["name"])
        except _FAULTS as error:
            raise explained(error) from None


async def _exists(connection: asyncpg.pool.PoolConnectionProxy, name: str) -> bool:
    return bool(await connection.fetchval("select exists (select from pg_roles where rolname = $1)", name))


async def _make(
    connection: asyncpg.pool.PoolConnectionProxy,
    credentials: Credentials,
    resource: str,
    scope: str,
    user_id: str,
    *,
    connections: int,
) -> None:
    # First, so that a sweep of the resource that had the role before either sees whose it is now, or is done with it.
    await connection.execute(
        "insert into userrealtime.role (name, scope, resource, user_id, fingerprint) values ($1, $2, $3, $4, $5) "
        "on conflict (name) do update set scope = excluded.scope, resource = excluded.resource, "
        "user_id = excluded.user_id, fingerprint = excluded.fingerprint, drop_after = null",
        credentials.role,
        scope,
        UUID(resource),
        user_id,
        credentials.fingerprint,
    )
    # Quoting is not needed: names are hex digits and underscores, and a verifier is base64, `$` and `:`.
    name, verifier = credentials.role, scram_verifier(credentials.password, os.urandom(16))
    exists = await _exists(connection, name)
    attributes = f"login inherit connection limit {connections} password '{verifier}'"
    statements = [
        f"{'alter' if exists else 'create'} role {name} {attributes}",
        *([f"alter role {name} reset all"] if exists else []),
        *(f"alter role {name} set {setting} = '{value}'" for setting, value in SETTINGS.items()),
        f"grant {GROUP} to {name}",
    ]
    await connection.execute("; ".join(statements))  # in one message


async def _drop(connection: asyncpg.pool.PoolConnectionProxy, name: str) -> None:
    if await _exists(connection, name):
        # Who made a role may not yet act as it (since PostgreSQL 16), which ending its sessions takes.
        await connection.execute(f"grant {name} to current_user")
        await connection.execute(f"alter role {name} nologin")
        await connection.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = $1", name)
        await connection.execute(f"drop owned by {name}")
        await connection.execute(f"drop role {name}")
    await connection.execute("delete from userrealtime.role where name = $1", name)
