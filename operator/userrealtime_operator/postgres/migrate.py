"""Installs and upgrades the schema of the log: the files in `schema/`.

Tables change by numbered files, each of which is applied once. Functions, triggers and policies are in `repeatable/`: a
file is applied again whenever its text differs from what the database has. The tables `userrealtime.migration` and
`userrealtime.repeatable` record, with digests, what a database has.

All that a database lacks is applied in one transaction. Concurrent migrators are safe: a lock on the table
`userrealtime.migration` admits one, and the others find nothing to do. The roles of pods may not lock that table.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files

import asyncpg

from userrealtime_core.postgres import UnusableUrl, connect

logger = logging.getLogger(__name__)

MINIMUM_POSTGRES = 14
CONNECT_TIMEOUT_S = 10
STATEMENT_TIMEOUT_S = 300
LOCK_TIMEOUT_S = 2.0
"""The limit for one wait. A migration that waits for a lock delays every later transaction on that table."""
LOCK_ATTEMPTS = 30
NEXT_LOCK_TIMEOUT_S = 0.05
"""The same for each table after the first. All of them together take less than `deadlock_timeout` (1 s), so a
transaction that waits for the first of them is never ended to resolve a deadlock."""
LOCK_ORDER = ("pending", "staged", "log", "event")
"""The tables that publishing transactions lock, in their order. The others follow."""
MIGRATOR_TIMEOUT_S = 240
"""How long one migrator waits for another."""

REPEATABLE = (
    "messages",
    "signals",
    "position",
    "publish",
    "capture",
    "read",
    "inbox",
    "presence",
    "parking",
    "broadcast",
    "retention",
    "roles",
)
"""The files of `repeatable/`, in the order in which they are applied: a file uses functions of the files before it."""

UNRELEASED_VERSION = 8
UNRELEASED_FIRST = "log"
"""The name of version 1 before the first release, when the schema was a series of eight files."""

BOOKKEEPING = """
create schema if not exists userrealtime;
create table if not exists userrealtime.migration (
    version int primary key,
    name text not null,
    digest text not null,
    applied_at timestamptz not null default now()
);
create table if not exists userrealtime.repeatable (
    name text collate "C" primary key,
    digest text not null,
    applied_at timestamptz not null default now()
);
"""


class MigrationError(RuntimeError):
    """The schema cannot be brought to this version. The message gives the reason and what to do."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered file of `schema/`. `digest` is the SHA-256 of its text, in hex."""

    version: int
    name: str
    sql: str

    @property
    def digest(self) -> str:
        return _digest(self.sql)

    @property
    def label(self) -> str:
        return f"{self.version:04d}_{self.name}"


@dataclass(frozen=True, slots=True)
class Repeatable:
    """One file of `schema/repeatable/`."""

    name: str
    sql: str

    @property
    def digest(self) -> str:
        return _digest(self.sql)

    @property
    def label(self) -> str:
        return f"repeatable/{self.name}"


@dataclass(frozen=True, slots=True)
class Schema:
    """All files of this version of the operator.

    Attributes:
        migrations: in the order of their versions.
        repeatables: in the order in which they are applied.
        from_unreleased: what upgrades a database of `UNRELEASED_VERSION` to the first of `migrations`.
    """

    migrations: tuple[Migration, ...]
    repeatables: tuple[Repeatable, ...] = ()
    from_unreleased: str = ""


@dataclass(frozen=True, slots=True)
class Applied:
    """What a database has.

    Attributes:
        migrations: version to name and digest.
        repeatables: name to digest.
    """

    migrations: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    repeatables: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_unreleased(self) -> bool:
        return self.migrations.get(1, ("", ""))[0] == UNRELEASED_FIRST


def load_schema() -> Schema:
    """The files of this version of the operator."""
    folder = files(__package__).joinpath("schema")
    migrations = [
        Migration(int(match[1]), match[2], file.read_text())
        for file in folder.iterdir()
        if (match := re.fullmatch(r"(\d{4})_(\w+)\.sql", file.name))
    ]
    return Schema(
        tuple(sorted(migrations, key=lambda migration: migration.version)),
        tuple(Repeatable(name, folder.joinpath("repeatable", f"{name}.sql").read_text()) for name in REPEATABLE),
        folder.joinpath("upgrades", f"{UNRELEASED_VERSION:04d}.sql").read_text(),
    )


def pending_migrations(known: Sequence[Migration], applied: Applied) -> tuple[Migration, ...]:
    """The numbered files that a database still lacks, out of `known`.

    Raises:
        MigrationError: the database is newer than this operator, or has a file that has changed since.
    """
    versions = applied.migrations
    newer = sorted(set(versions) - {migration.version for migration in known})
    if newer:
        raise MigrationError(
            f"the database has schema version {newer[-1]}, newer than this operator's "
            f"{known[-1].version if known else 0}: run an operator of at least that version"
        )
    for migration in known:
        if versions.get(migration.version, ("", migration.digest))[1] != migration.digest:
            raise MigrationError(
                f"schema version {migration.version} ({migration.name}) was applied with other contents: "
                "this operator is not a released one, or the database was prepared by an unreleased one"
            )
    return tuple(migration for migration in known if migration.version not in versions)


def pending_repeatables(known: Sequence[Repeatable], applied: Applied) -> tuple[Repeatable, ...]:
    """The files of `known` that the database lacks or has with another text."""
    return tuple(each for each in known if applied.repeatables.get(each.name) != each.digest)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


async def _applied(connection: asyncpg.Connection) -> Applied:
    migrations = await connection.fetch("select version, name, digest from userrealtime.migration")
    repeatables = await connection.fetch("select name, digest from userrealtime.repeatable")
    return Applied(
        {row["version"]: (row["name"], row["digest"]) for row in migrations},
        {row["name"]: row["digest"] for row in repeatables},
    )


async def _record(connection: asyncpg.Connection, migration: Migration) -> None:
    await connection.execute(
        "insert into userrealtime.migration (version, name, digest) values ($1, $2, $3)",
        migration.version,
        migration.name,
        migration.digest,
    )


async def _upgrade_unreleased(connection: asyncpg.Connection, schema: Schema, applied: Applied) -> Applied:
    """Upgrade a database from before the first release to version 1."""
    newest = max(applied.migrations)
    if newest != UNRELEASED_VERSION:
        raise MigrationError(
            f"the database has version {newest} of the schema from before release 0.1.0; only version "
            f"{UNRELEASED_VERSION} can be upgraded: upgrade it to that version first"
        )
    first = schema.migrations[0]
    await connection.execute(schema.from_unreleased)
    await connection.execute("delete from userrealtime.migration")
    await _record(connection, first)
    return Applied({first.version: (first.name, first.digest)}, applied.repeatables)


async def _keep_books(connection: asyncpg.Connection) -> None:
    try:
        await connection.execute(BOOKKEEPING)
    except (asyncpg.UniqueViolationError, asyncpg.DuplicateSchemaError, asyncpg.DuplicateTableError):
        # Another migrator has created them at the same moment.
        await connection.execute(BOOKKEEPING)


async def _wait_for_other_migrators(connection: asyncpg.Connection) -> None:
    await connection.execute(f"set local lock_timeout = {int(MIGRATOR_TIMEOUT_S * 1000)}")
    try:
        await connection.execute("lock table userrealtime.migration in share row exclusive mode")
    except asyncpg.LockNotAvailableError:
        raise MigrationError(
            f"another process has locked userrealtime.migration for {MIGRATOR_TIMEOUT_S} s: end it, or wait for it, "
            "and run this again"
        ) from None


async def _lock_out_writers(connection: asyncpg.Connection) -> None:
    """Lock all tables before the first change, when no publisher and no pod is in the middle of a transaction.

    A migration that locked tables one after the other, between its changes, would meet publishers that hold one of them
    and wait for another. PostgreSQL resolves such a deadlock by ending either side, which may be the publisher.
    """
    rows = await connection.fetch(
        "select relname from pg_class where relnamespace = 'userrealtime'::regnamespace and relkind in ('r', 'p') "
        "and relname not in ('migration', 'repeatable') order by array_position($1::text[], relname::text), relname",
        list(LOCK_ORDER),
    )
    timeout_s = LOCK_TIMEOUT_S
    for row in rows:
        await connection.execute(
            f"set local lock_timeout = {int(timeout_s * 1000)}; "
            f"lock table userrealtime.{row['relname']} in share row exclusive mode"
        )
        timeout_s = min(NEXT_LOCK_TIMEOUT_S, LOCK_TIMEOUT_S)


async def _apply(connection: asyncpg.Connection, schema: Schema) -> list[str]:
    """Apply what is missing, in one transaction. Returns the labels of the applied files."""
    async with connection.transaction():
        await _wait_for_other_migrators(connection)
        applied, done = await _applied(connection), []
        # The repeatable files alone lock no table that has its triggers and policies.
        if applied.is_unreleased or pending_migrations(schema.migrations, applied):
            await _lock_out_writers(connection)
        await connection.execute(f"set local lock_timeout = {int(LOCK_TIMEOUT_S * 1000)}")
        if applied.is_unreleased:
            applied = await _upgrade_unreleased(connection, schema, applied)
            done.append(f"upgrades/{UNRELEASED_VERSION:04d}")
        for migration in pending_migrations(schema.migrations, applied):
            await connection.execute(migration.sql)
            await _record(connection, migration)
            done.append(migration.label)
        for repeatable in pending_repeatables(schema.repeatables, applied):
            await connection.execute(repeatable.sql)
            await connection.execute(
                "insert into userrealtime.repeatable (name, digest) values ($1, $2) "
                "on conflict (name) do update set digest = excluded.digest, applied_at = now()",
                repeatable.name,
                repeatable.digest,
            )
            done.append(repeatable.label)
        return done


async def _apply_with_retries(connection: asyncpg.Connection, schema: Schema) -> list[str]:
    for attempt in range(1, LOCK_ATTEMPTS + 1):
        try:
            return await _apply(connection, schema)
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
            if attempt < LOCK_ATTEMPTS:
                logger.info("the schema upgrade waits for open transactions")
                await asyncio.sleep(LOCK_TIMEOUT_S * random.uniform(0.5, 1))  # noqa: S311  (jitter)
    raise MigrationError(
        "the schema upgrade needs tables that open transactions have locked: "
        "end the sessions that pg_stat_activity shows as 'idle in transaction', and run this again"
    )


async def _check_database(connection: asyncpg.Connection) -> None:
    encoding = await connection.fetchval("select current_setting('server_encoding')")
    if encoding == "SQL_ASCII":
        raise MigrationError(
            "the encoding of the database is SQL_ASCII, which stores bytes without a check: one event that is not "
            "UTF-8 would stop all clients of its user. Move to a database that is created with: "
            "create database NAME encoding 'UTF8' template template0"
        )
    if encoding != "UTF8":
        logger.warning("the encoding of the database is %s: it rejects events with characters it lacks", encoding)
    if await connection.fetchval("select current_setting('transaction_read_only')::boolean"):
        raise MigrationError(
            "the database is read-only: name the primary server in DATABASE_URL, or several servers with "
            "target_session_attrs=read-write; on the primary, check default_transaction_read_only"
        )


async def _migrate_connected(connection: asyncpg.Connection, schema: Schema) -> list[str]:
    if connection.get_server_version().major < MINIMUM_POSTGRES:
        raise MigrationError(
            f"PostgreSQL {connection.get_server_version().major} is too old: {MINIMUM_POSTGRES} or later is needed"
        )
    await _check_database(connection)
    await _keep_books(connection)
    done = await _apply_with_retries(connection, schema)
    for label in done:
        logger.info("applied %s", label)
    return done


async def migrate(url: str, *, patience_s: float = 0) -> list[str]:
    """Bring the database at `url` to this operator's schema. Returns the labels of the applied files.

    A server that does not answer yet (refused, unknown host, starting up) is retried for `patience_s` seconds. An open
    transaction that holds a lock on a table is waited for, a minute or two at most.

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
            raise MigrationError(f"the database rejected the connection: {error}") from None
    try:
        return await _migrate_connected(connection, load_schema())
    except asyncpg.InsufficientPrivilegeError as error:
        raise MigrationError(
            f"the database role is not allowed to install the schema: {error}. Grant it CREATE on the database"
        ) from None
    finally:
        await connection.close(timeout=CONNECT_TIMEOUT_S)
