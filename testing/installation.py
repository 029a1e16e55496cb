"""An installation as docs/go-live.md requires: an operator that is not a superuser, and passwords."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg

from testing.local.postgres import LocalPostgres
from userrealtime_operator.postgres.database import Database
from userrealtime_operator.postgres.migrate import migrate
from userrealtime_operator.postgres.roles import Roles
from userrealtime_operator.secrets.database_passwords import Credentials, role_names

SCOPE = "cluster/users"
OPERATOR = Credentials("realtime", "of the operator")
APPLICATION = "app"

_SETUP = f"""
create role {OPERATOR.role} login createrole password '{OPERATOR.password}';
do $$ begin execute format(
    'copy (values (''host all postgres all trust''), (''host all all all scram-sha-256'')) to %L',
    current_setting('hba_file')); end $$;
select pg_reload_conf()
"""


@dataclass(frozen=True)
class Installation:
    """A migrated database, and ways into it.

    Attributes:
        server: of the database.
        operator_url: with the operator's credentials.
        admin_url: with the credentials of a superuser, for the observations of a test.
    """

    server: LocalPostgres
    operator_url: str
    admin_url: str

    async def relay_url(self, user: str) -> str:
        """Return the URL in a user's Secret, which is the stolen credential of the user's pod."""
        credentials = Credentials(role_names("/app", SCOPE, user)[0], uuid.uuid4().hex)
        async with Database(self.operator_url) as database:
            await Roles(database).ensure(credentials, str(uuid.uuid4()), SCOPE, user)
        return credentials.url(self.operator_url)


@asynccontextmanager
async def installation(settings: Mapping[str, str] | None = None) -> AsyncIterator[Installation]:
    """An installation on a separate server, because an attacker may exhaust the shared resources of a server."""
    with LocalPostgres(settings=dict(settings or {})) as server:
        admin = await asyncpg.connect(server.url())
        await admin.execute(_SETUP)
        await admin.execute(f"create database {APPLICATION}")
        await admin.execute(f"grant create on database {APPLICATION} to {OPERATOR.role}")
        await admin.close()
        operator_url = OPERATOR.url(server.url(APPLICATION))
        await migrate(operator_url)
        yield Installation(server, operator_url, server.url(APPLICATION))
