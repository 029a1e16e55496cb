"""A reconciler with a fake API server and a real PostgreSQL, for tests of the database roles."""

from __future__ import annotations

import base64
import uuid
from dataclasses import replace

import asyncpg

from testing.operator.fixture import CREDENTIALS, ReconcilerFixture
from testing.operator.names import NAMES
from testing.operator.samples import CONFIG, body
from userrealtime_operator.config import Config, DatabaseAccess
from userrealtime_operator.model.naming import Naming
from userrealtime_operator.postgres.database import Database
from userrealtime_operator.postgres.roles import Roles
from userrealtime_operator.process.metrics import Metrics
from userrealtime_operator.reconcile.reconciler import Reconciler


class RoleFixture(ReconcilerFixture):
    """A fixture with a database."""

    def __init__(self, url: str, database: Database) -> None:
        super().__init__()
        item = body()
        item["metadata"]["uid"] = str(uuid.uuid4())
        self.add(item)
        self.url = url
        self._store = database
        self.restart_with_roles()

    def restart_with_roles(self, naming: Naming = NAMES, config: Config = CONFIG) -> Roles:
        """Replace the reconciler, as a restart of the operator does; return its roles."""
        roles = Roles(self._store)
        self.reconciler = Reconciler(
            replace(config, database_url=self.url, database=DatabaseAccess()),
            naming,
            self.api,
            self._store,
            self.resource_cache,
            self.child_cache,
            lambda _: None,
            Metrics(),
            now=lambda: self.time,
            roles=roles,
        )
        return roles

    async def served(self) -> str:
        """Return the user that the database serves to the credentials of alice's pods."""
        connection = await asyncpg.connect(self.secret_url())
        try:
            return str(await connection.fetchval("select userrealtime.served_user()"))
        finally:
            await connection.close()

    def secret_url(self) -> str:
        return base64.b64decode(self.api.children[CREDENTIALS]["data"]["DATABASE_URL"]).decode()
