"""The versioned schema of the log: what is in `schema/`, applied once each, in order.

A database remembers what was applied, with a digest, in `userrealtime.migration`. Each file is one transaction.
Several migrators at once are safe: an advisory lock lets one through, and the others find nothing to do.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

import asyncpg

from userrealtime_relay.postgres import UnusableUrl, connect

logger = logging.getLogger(__name__)

# Any constant will do, so long as every migrator takes the same one: the ASCII codes of "urtmigra".
ADVISORY_LOCK = int.from_bytes(b"urtmigra")
MINIMUM_POSTGRES = 14
CONNECT_TIMEOUT_S = 10
STATEMENT_TIMEOUT_S = 300
LOCK_TIMEOUT_S = 2.0
"""A migration that waits for a table holds up all who come after it, the application among them: not for longer."""
LOCK_ATTEMPTS = 30

BOOKKEEPING = """
create schema if not exists userrealtime;
create table if not exists userrealtime.migration (
    version int primary key,
    name text not null,
    digest text not null,
    applied_at timestamptz not null default now()
);
"""


class MigrationError(RuntimeError):
    """The schema cannot be brought to this version; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of `schema/`. `digest` is the SHA-256 of its text, in hex."""

    version: int
    name: str
    sql: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def load_migrations() -> tuple[Migration, ...]:
    """The migrations of this version of the operator, in the order of their numbers."""
    found = []
    for file in files(__package__).joinpath("schema").iterdir():
        if match := re.fullmatch(r"(\d{4})_(\w+)\.sql", file.name):
            found.append(Migration(int(match[1]), match[2], file.read_text()))
    return tuple(sorted(found, key=lambda migration: migration.version))


def pending_migrations(known: Sequence[Migration], applied: dict[int, str]) -> tuple[Migration, ...]:
    """Those of `known` that a database still needs, given the digests of what it has by version.

    Raises:
        MigrationError: the database is newer than this operator, or holds a file that has changed since.
    """
    newer = sorted(set(applied) - {migration.version for migration in known})
    if newer:
        raise MigrationError(
            f"the database has schema version {newer[-1]}, newer than this operator's "
            f"{known[-1].version if known else 0}: run an operator of at least that version"
        )
    for migration in known:
        if applied.get(migration.version, migration.digest) != migration.digest:
            raise MigrationError(
                f"schema version {migration.version} ({migration.name}) was applied with other contents: "
                "this operator is not a released one, or the database was prepared by an unreleased one"
            )
    return tuple(migration for migration in known if migration.version not in applied)


async def _apply(connection: asyncpg.Connection, migration: Migration) -> None:
    for attempt in range(1, LOCK_ATTEMPTS + 1):
        try:
            async with connection.transaction():
                await connection.execute(f"set local lock_timeout = {int(LOCK_TIMEOUT_S * 1000)}")
                await connection.execute(migration.sql)
                await connection.execute(
                    "insert into userrealtime.migration (version, name, digest) values ($1, $2, $3)",
                    migration.version,
                    migration.name,
                    migration.digest,
                )
            return
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
            if attempt < LOCK_ATTEMPTS:
                logger.info("schema version %d waits for transactions that are open", migration.version)
                await asyncio.sleep(LOCK_TIMEOUT_S * random.uniform(0.5, 1))  # noqa: S311  (jitter)
    raise MigrationError(
        f"schema version {migration.version} ({migration.name}) needs tables that open transactions hold on to: "
        "end what pg_stat_activity shows as 'idle in transaction', and run this again"
    )


async def _migrate_connected(connection: asyncpg.Connection, migrations: Sequence[Migration]) -> list[str]:
    if connection.get_server_version().major < MINIMUM_POSTGRES:
        raise MigrationError(
            f"PostgreSQL {connection.get_server_version().major} is too old: {MINIMUM_POSTGRES} or later is needed"
        )
    await connection.execute("select pg_advisory_lock($1)", ADVISORY_LOCK)
    try:
        await connection.execute(BOOKKEEPING)
        rows = await connection.fetch("select version, digest from userrealtime.migration")
        applied = {row["version"]: row["digest"] for row in rows}
        done = []
        for migration in pending_migrations(migrations, applied):
            logger.info("applying schema version %d: %s", migration.version, migration.name)
            await _apply(connection, migration)
            done.append(f"{migration.version:04d}_{migration.name}")
        return done
    finally:
        await connection.execute("select pg_advisory_unlock($1)", ADVISORY_LOCK)


async def migrate(url: str, *, patience_s: float = 0) -> list[str]:
    """Bring the database at `url` to this operator's schema; returns the names of what was applied.

    A server that is not there yet (refused, unknown host, starting up) is tried again for `patience_s` seconds.

    A transaction that is open on a table that a migration needs is waited for, a minute or two at most.

    Raises:
        MigrationError: the database cannot be used; the message never contains the URL, which holds a password.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience_s
    while True:
        try:
            connection = await connect(url, timeout=CONNECT_TIMEOUT_S, command_timeout=STATEMENT_TIMEOUT_S)
            break
        except (OSError, TimeoutError, asyncpg.CannotConnectNowError) as error:
            if loop.time() >= deadline:
                raise MigrationError(f"no answer from the database: {error or 'timed out'}") from None
            logger.info("waiting for the database: %s", error or "timed out")
            await asyncio.sleep(random.uniform(0.5, 1.5))  # noqa: S311  (jitter)
        except UnusableUrl as error:
            raise MigrationError(str(error)) from None
        except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise MigrationError(f"the database refused the connection: {error}") from None
    try:
        return await _migrate_connected(connection, load_migrations())
    except asyncpg.InsufficientPrivilegeError as error:
        raise MigrationError(
            f"the database role may not install the schema: {error}. Grant it CREATE on the database"
        ) from None
    finally:
        await connection.close(timeout=CONNECT_TIMEOUT_S)
