"""The operator's side of the log: which users are served from it, and the end of a user's log.

A registration is written when a resource is first reconciled, and swept when the resource is gone, however it went:
no finalizer is needed, and what was missed while the operator was away is made up for by the next sweep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self
from uuid import UUID

import asyncpg

from userrealtime_core.postgres import UnusableUrl, connect
from userrealtime_core.secret import Secret
from userrealtime_operator.model.presence import Presence

CONNECT_TIMEOUT_S = 10
COMMAND_TIMEOUT_S = 60
LOCK_TIMEOUT_S = 5
POOL_SIZE = 4
# What is older when it comes is of no use.
PRESENCE_TIMEOUT_S = 10
PING_TIMEOUT_S = 5
_PRESENCE = """
    select user_id, instance, clients,
        extract(epoch from since)::float8 as since,
        extract(epoch from seen_at)::float8 as seen_at,
        extract(epoch from statement_timestamp())::float8 as now
    from userrealtime.presence
    where ($2::text is null or user_id = $2)
        and user_id in (select user_id from userrealtime.registration where scope = $1)
"""
# The user of a resource, if no other serves that user.
_OF_NO_OTHER = """
    select user_id from userrealtime.registration r where resource = $1 and not exists (
        select from userrealtime.registration o where o.user_id = r.user_id and o.resource <> r.resource)
"""
# Rows deleted in one transaction, so that no lock lasts long.
DELETE_BATCH = 5_000


class DatabaseError(RuntimeError):
    """The database cannot be used; the message never holds the URL."""


def explained(error: BaseException) -> DatabaseError:
    """An error of asyncpg or of the network, in words for a person."""
    if isinstance(error, asyncpg.UndefinedTableError | asyncpg.InvalidSchemaNameError):
        return DatabaseError("the schema is not installed: run userrealtime-operator migrate")
    if isinstance(error, asyncpg.PostgresError | OSError | UnusableUrl) and str(error):
        return DatabaseError(str(error))
    return DatabaseError(f"no answer from the database ({type(error).__name__})")


async def _nothing_to_reset(_connection: object) -> None:
    pass


class Database:
    """A small pool of connections, opened when first needed. An async context manager."""

    def __init__(self, url: str) -> None:
        self.url = Secret(url)
        # Made here, connected at the first use: a database that is away must not keep the operator from starting.
        self.pool = asyncpg.create_pool(
            url,
            connect=connect,
            min_size=0,
            max_size=POOL_SIZE,
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=COMMAND_TIMEOUT_S,
            max_inactive_connection_lifetime=60,
            server_settings={"application_name": "userrealtime-operator"},
            # Nothing here changes what a session is, so each use of a connection saves a round trip.
            reset=_nothing_to_reset,
        )

    async def __aenter__(self) -> Self:
        await self.pool
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pool.terminate()

    async def register(self, resource: str, scope: str, user_id: str) -> None:
        """Note that a resource, by its uid, serves a user, and make the user's log. `scope` is where the resource is.

        Raises:
            DatabaseError: the database is away, or has not the schema.
        """
        try:
            async with self.pool.acquire(timeout=CONNECT_TIMEOUT_S) as connection:
                await connection.execute(
                    "with registered as (insert into userrealtime.registration (resource, scope, user_id) "
                    "values ($1, $2, $3) on conflict do nothing) "
                    "insert into userrealtime.log (user_id, epoch) values ($3, userrealtime.first_epoch($3)) "
                    "on conflict do nothing",
                    UUID(resource),
                    scope,
                    user_id,
                )
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:  # TimeoutError is an OSError
            raise explained(error) from None

    async def ping(self) -> None:
        """Returns if the log can be read.

        Raises:
            DatabaseError: as above.
        """
        try:
            async with self.pool.acquire(timeout=PING_TIMEOUT_S) as connection:
                await connection.execute("select from userrealtime.registration limit 0", timeout=PING_TIMEOUT_S)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise explained(error) from None

    async def registered(self, scope: str) -> set[str]:
        """The uids of the resources of a scope that are registered.

        Raises:
            DatabaseError: as above.
        """
        try:
            rows = await self.pool.fetch("select resource from userrealtime.registration where scope = $1", scope)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise explained(error) from None
        return {str(row["resource"]) for row in rows}

    async def presence(self, scope: str, user_id: str | None = None) -> tuple[float, Mapping[str, Sequence[Presence]]]:
        """What relays have said of the users of a scope, or of one of them, by user id; and the time, by the database's
        clock in seconds since 1970, or 0 where nothing was said.

        Raises:
            DatabaseError: as above.
        """
        try:
            async with self.pool.acquire(timeout=CONNECT_TIMEOUT_S) as connection:
                rows = await connection.fetch(_PRESENCE, scope, user_id, timeout=PRESENCE_TIMEOUT_S)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise explained(error) from None
        found: dict[str, list[Presence]] = {}
        for user, instance, clients, since, seen_at, _now in rows:
            found.setdefault(user, []).append(Presence(instance, clients, since, seen_at))
        return (rows[0]["now"] if rows else 0.0), found

    async def forget(self, resource: str) -> None:
        """Remove the registration of a resource that is gone and, if it was the user's last, the user's log and inbox.

        Raises:
            DatabaseError: as above; what is left is removed the next time.
        """
        try:
            async with self.pool.acquire(timeout=CONNECT_TIMEOUT_S) as connection:
                user_id = await connection.fetchval(_OF_NO_OTHER, UUID(resource))
                if user_id is not None:
                    await self._empty(connection, user_id)
                async with connection.transaction():
                    # A pod of the user can hold a row of presence.
                    await connection.execute(f"set local lock_timeout = '{LOCK_TIMEOUT_S}s'")
                    # Another resource may have been made for the user meanwhile, and have the log by now.
                    if user_id is not None and await connection.fetchval(_OF_NO_OTHER, UUID(resource)):
                        # Whoever publishes now waits for this row, and then begins a new log.
                        await connection.execute("delete from userrealtime.log where user_id = $1", user_id)
                        await connection.execute("delete from userrealtime.event where user_id = $1", user_id)
                        await connection.execute("delete from userrealtime.inbox where user_id = $1", user_id)
                        await connection.execute("delete from userrealtime.presence where user_id = $1", user_id)
                    await connection.execute(
                        "delete from userrealtime.registration where resource = $1", UUID(resource)
                    )
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise explained(error) from None

    async def _empty(self, connection: asyncpg.pool.PoolConnectionProxy, user_id: str) -> None:
        # Oldest first, a batch a transaction, up to the head as it is now: new events do not keep this going.
        [(last, head)] = await connection.fetch(
            "select min(id), max(id) from userrealtime.event where user_id = $1", user_id
        )
        while head is not None and last <= head:
            last += DELETE_BATCH
            await connection.execute("delete from userrealtime.event where user_id = $1 and id < $2", user_id, last)
