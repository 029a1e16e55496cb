"""The operator's queries to the log: the registration of users, and the removal of their rows.

A registration is written when a resource is first reconciled, and a periodic sweep removes it after the resource was
deleted. Therefore no finalizer is needed, and deletions during an outage of the operator are not lost.
"""

from __future__ import annotations

import logging
import os
import ssl
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self
from uuid import UUID

import asyncpg

from userrealtime_core.postgres import UnusableUrl, connect
from userrealtime_core.secret import Secret
from userrealtime_operator.model.presence import Presence

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10
COMMAND_TIMEOUT_S = 60
LOCK_TIMEOUT_S = 5
POOL_SIZE = 4
# An older result is useless.
PRESENCE_TIMEOUT_S = 10
PING_TIMEOUT_S = 5
_PRESENCE = """
    select user_id, instance, clients,
        extract(epoch from since)::float8 as since,
        extract(epoch from seen_at)::float8 as seen_at,
        extract(epoch from active_at)::float8 as active_at,
        parked,
        extract(epoch from statement_timestamp())::float8 as now
    from userrealtime.presence
    where ($2::text is null or user_id = $2)
        and user_id in (select user_id from userrealtime.registration where scope = $1)
"""
# The user of a resource, if no other resource has the same user.
_OF_NO_OTHER = """
    select user_id from userrealtime.registration r where resource = $1 and not exists (
        select from userrealtime.registration o where o.user_id = r.user_id and o.resource <> r.resource)
"""
_REGISTERED = """
    select exists (select from userrealtime.registration where resource = $1 and scope = $2)
        and exists (select from userrealtime.log where user_id = $3)
"""
_ELSEWHERE = """
    select exists (select from userrealtime.registration where user_id = $3 and scope <> $2)
        and not exists (select from userrealtime.registration where resource = $1)
"""
# Rows that are deleted in one transaction. Small transactions hold their locks briefly.
DELETE_BATCH = 5_000


LOG_INTERVAL_S = 60.0
"""An error that is repeated within this time is logged once."""
_logged_at: dict[str, float] = {}


class DatabaseError(RuntimeError):
    """An operation on the database failed. The message never contains the URL.

    Attributes:
        status: the text for the status of a resource. Accounts can read it that may not know the hosts, ports and
            roles of the database, which messages of the server and of the network contain.
    """

    def __init__(self, message: str, *, status: str | None = None) -> None:
        super().__init__(message)
        self.status = message if status is None else status


def explained(error: BaseException) -> DatabaseError:
    """Return an error of asyncpg or of the network with a readable message, and log what its `status` leaves out."""
    if isinstance(error, asyncpg.UndefinedTableError | asyncpg.InvalidSchemaNameError):
        return DatabaseError("the schema is not installed: run userrealtime-operator migrate")
    if isinstance(error, asyncpg.PostgresError | OSError | UnusableUrl) and str(error):
        return hidden(f"{error}", _kind(error))
    return DatabaseError(f"no answer from the database ({type(error).__name__})")


def hidden(message: str, status: str) -> DatabaseError:
    """Return an error whose message is only for the log, and log it."""
    now = time.monotonic()
    if now - _logged_at.get(message, -LOG_INTERVAL_S) >= LOG_INTERVAL_S:
        for old in [each for each, at in _logged_at.items() if now - at >= LOG_INTERVAL_S]:
            del _logged_at[old]
        _logged_at[message] = now
        logger.warning("an operation on the database failed: %s", message)
    return DatabaseError(message, status=f"{status}; the operator's log has the message")


def _kind(error: BaseException) -> str:
    if isinstance(error, asyncpg.PostgresError):
        return f"the database reported {type(error).__name__}"
    if isinstance(error, UnusableUrl):
        return "the URL of the database cannot be used"
    # The message of the network names the address, its number does not. The numbers of a resolver are negative.
    number = error.errno if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) else None
    reason = os.strerror(number) if number is not None and number > 0 else type(error).__name__
    return f"no connection to the database ({reason})"


async def _nothing_to_reset(_connection: object) -> None:
    pass


class Database:
    """A small pool of connections, which are opened on first use. An async context manager."""

    def __init__(self, url: str) -> None:
        self.url = Secret(url)
        # The pool connects on first use, because the operator must start without the database.
        self.pool = asyncpg.create_pool(
            url,
            connect=connect,
            min_size=0,
            max_size=POOL_SIZE,
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=COMMAND_TIMEOUT_S,
            max_inactive_connection_lifetime=60,
            server_settings={"application_name": "userrealtime-operator"},
            # No query changes the state of a session, so the reset, which costs a round trip, is not needed.
            reset=_nothing_to_reset,
        )

    async def __aenter__(self) -> Self:
        await self.pool
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pool.terminate()

    async def register(self, resource: str, scope: str, user_id: str, *, shared: bool = False) -> bool:
        """Register a resource, by its uid, for a user, and create the user's log. `scope` is the namespace's scope.

        A resource that is known in another scope is moved with its roles: the identity of the cluster has changed.

        Args:
            shared: resources of several scopes may be registered for a user.

        Returns:
            Whether it is registered. It is not if a resource of another scope is registered for the user.

        Raises:
            DatabaseError: the database is unavailable or has no schema.
        """
        try:
            async with self.pool.acquire(timeout=CONNECT_TIMEOUT_S) as connection:
                key = UUID(resource), scope, user_id
                if await connection.fetchval(_REGISTERED, *key):
                    return True
                async with connection.transaction():
                    return await self._register(connection, *key, shared=shared)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:  # TimeoutError is an OSError
            raise explained(error) from None

    async def _register(
        self, connection: asyncpg.pool.PoolConnectionProxy, resource: UUID, scope: str, user_id: str, *, shared: bool
    ) -> bool:
        await connection.execute(
            "insert into userrealtime.log (user_id, epoch) values ($1, userrealtime.first_epoch($1)) "
            "on conflict do nothing",
            user_id,
        )
        # Registrations of one user wait for each other here, so that two operators do not both find no other.
        await connection.execute("select from userrealtime.log where user_id = $1 for update", user_id)
        if not shared and await connection.fetchval(_ELSEWHERE, resource, scope, user_id):
            return False
        await connection.execute(
            "with registered as (insert into userrealtime.registration (resource, scope, user_id) "
            "values ($1, $2, $3) on conflict (resource) do update set scope = excluded.scope "
            "where registration.scope <> excluded.scope) "
            "update userrealtime.role set scope = $2 where resource = $1 and scope <> $2",
            resource,
            scope,
            user_id,
        )
        return True

    async def ping(self) -> None:
        """Check that the log is readable.

        Raises:
            DatabaseError: as above.
        """
        try:
            async with self.pool.acquire(timeout=PING_TIMEOUT_S) as connection:
                await connection.execute("select from userrealtime.registration limit 0", timeout=PING_TIMEOUT_S)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise explained(error) from None

    async def registered(self, scope: str) -> set[str]:
        """Return the uids of the registered resources of a scope.

        Raises:
            DatabaseError: as above.
        """
        try:
            rows = await self.pool.fetch("select resource from userrealtime.registration where scope = $1", scope)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise explained(error) from None
        return {str(row["resource"]) for row in rows}

    async def presence(self, scope: str, user_id: str | None = None) -> tuple[float, Mapping[str, Sequence[Presence]]]:
        """Return the presence of the users of a scope, or of one of them, by user id, and the database's time.

        The time is in seconds since 1970. It is 0 without any presence.

        Raises:
            DatabaseError: as above.
        """
        try:
            async with self.pool.acquire(timeout=CONNECT_TIMEOUT_S) as connection:
                rows = await connection.fetch(_PRESENCE, scope, user_id, timeout=PRESENCE_TIMEOUT_S)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise explained(error) from None
        found: dict[str, list[Presence]] = {}
        for user, instance, clients, since, seen_at, active_at, parked, _now in rows:
            found.setdefault(user, []).append(Presence(instance, clients, since, seen_at, active_at, parked))
        return (rows[0]["now"] if rows else 0.0), found

    async def forget(self, resource: str) -> None:
        """Remove the registration of a deleted resource, and the log and inbox of a user without other resources.

        Raises:
            DatabaseError: as above; the next sweep removes the rest.
        """
        try:
            async with self.pool.acquire(timeout=CONNECT_TIMEOUT_S) as connection:
                user_id = await connection.fetchval(_OF_NO_OTHER, UUID(resource))
                if user_id is not None:
                    await self._empty(connection, user_id)
                async with connection.transaction():
                    # A pod of the user can hold a lock on a row of presence.
                    await connection.execute(f"set local lock_timeout = '{LOCK_TIMEOUT_S}s'")
                    # Another resource can have been created for the user in the meantime, and then owns the log.
                    if user_id is not None and await connection.fetchval(_OF_NO_OTHER, UUID(resource)):
                        # A concurrent publish() waits for this row, and then creates a new log.
                        await connection.execute("delete from userrealtime.log where user_id = $1", user_id)
                        await connection.execute("delete from userrealtime.event where user_id = $1", user_id)
                        await connection.execute("delete from userrealtime.inbox where user_id = $1", user_id)
                        await connection.execute("delete from userrealtime.inbox_usage where user_id = $1", user_id)
                        await connection.execute("delete from userrealtime.presence where user_id = $1", user_id)
                    await connection.execute(
                        "delete from userrealtime.registration where resource = $1", UUID(resource)
                    )
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise explained(error) from None

    async def _empty(self, connection: asyncpg.pool.PoolConnectionProxy, user_id: str) -> None:
        # Oldest first, one batch per transaction, up to the current head, so new events do not prolong this.
        [(last, head)] = await connection.fetch(
            "select min(id), max(id) from userrealtime.event where user_id = $1", user_id
        )
        while head is not None and last <= head:
            last += DELETE_BATCH
            await connection.execute("delete from userrealtime.event where user_id = $1 and id < $2", user_id, last)
