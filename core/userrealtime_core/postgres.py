"""Connections to Postgres. No error message contains the URL, which holds a password."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Final

import asyncpg

from .database_url import supported_url, validate_database_url
from .secret import Secret

CONNECTION_ERRORS: Final = (
    OSError,
    TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)
"""What any use of a connection may raise. The connection is then unusable."""

PROBE_TIMEOUT: Final = 2.0
"""Seconds in which a notification must pass through a pooler."""

_UNPARSABLE: Final = "DATABASE_URL cannot be parsed: percent-encode what is special in its user and password"
_NO_AUTHORITIES: Final = (
    "sslmode in DATABASE_URL asks for a server of a trusted authority, and none is trusted: "
    "name a file of certificates in PGSSLROOTCERT (the chart's value trust does)"
)
_SSLMODE: Final = "sslmode in DATABASE_URL must be disable, allow, prefer, require, verify-ca or verify-full"


class UnusableUrl(asyncpg.InterfaceError):
    """The URL cannot be used. The message gives the reason and what to do."""


async def connect(dsn: str | None = None, *arguments: Any, **options: Any) -> asyncpg.Connection:
    """As `asyncpg.connect`, with the parameters of libpq in the URL.

    Raises:
        UnusableUrl: the URL is at fault.
        OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError: the server is away, or refuses.
    """
    if dsn is not None and (flaw := validate_database_url(dsn)) is not None:
        raise UnusableUrl(flaw)
    try:
        return await asyncpg.connect(dsn and supported_url(dsn), *arguments, **options)
    except OSError:
        raise  # a certificate that is not to be trusted is a ValueError as well
    except ValueError as error:  # which may quote the URL
        text = str(error)
        if isinstance(error, asyncpg.ClientConfigurationError) and text.startswith("root certificate"):
            raise UnusableUrl(_NO_AUTHORITIES) from None
        if isinstance(error, asyncpg.ClientConfigurationError) and text.startswith("`sslmode`"):
            raise UnusableUrl(_SSLMODE) from None
        raise UnusableUrl(_UNPARSABLE) from None


async def open_session(
    url: Secret, *, name: str, connect_timeout: float, query_timeout: float, **options: Any
) -> asyncpg.Connection:
    """A connection under an application name. Every query on it has a time limit. Errors as `connect`.

    Args:
        connect_timeout, query_timeout: in seconds.
    """
    return await connect(
        url.reveal(),
        timeout=connect_timeout,
        command_timeout=query_timeout,
        server_settings={"application_name": name},
        **options,
    )


async def fetch_alone(
    connection: asyncpg.Connection, settings: str, query: str, *arguments: object
) -> list[asyncpg.Record]:
    """The rows of a query in a separate transaction, with these `set local` statements and an unnamed statement.

    It leaves nothing behind on the backend, which a transaction pooler gives to another client next.
    """
    async with connection.transaction():
        await connection.execute(settings)
        statement = await connection.prepare(query, name="")
        return await statement.fetch(*arguments)


async def is_direct(connection: asyncpg.Connection, settings: str) -> bool:
    """Whether no transaction pooler is in between: the backend has not changed since the connection was made."""
    [row] = await fetch_alone(connection, settings, "select pg_backend_pid()")
    return bool(row[0] == connection.get_server_pid())


async def receives_notifications(open_one: Callable[[], Awaitable[asyncpg.Connection]]) -> bool:
    """Whether notifications pass what is in between, as they do through a pooler of sessions.

    One connection waits for a notification that another one sends: a connection gets its own notifications with the
    answer to its query, even through a pooler of transactions.
    """
    channel = f"userrealtime_probe_{secrets.token_hex(8)}"
    received = asyncio.Event()

    def notified(*_: object) -> None:
        received.set()

    listener = await open_one()
    try:
        async with listener.transaction():
            await listener.add_listener(channel, notified)
        sender = await open_one()
        try:
            await sender.execute(f"notify {channel}")
        finally:
            sender.terminate()
        try:
            async with asyncio.timeout(PROBE_TIMEOUT):
                await received.wait()
        except TimeoutError:
            pass
        # Otherwise the pooled backend would go on listening.
        async with listener.transaction():
            await listener.remove_listener(channel, notified)
    finally:
        listener.terminate()
    return received.is_set()
