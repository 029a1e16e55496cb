"""The demo on a real PostgreSQL, as the role that its documentation grants."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest

from examples.demo.database import Database
from testing.database import Database as TestDatabase
from testing.demo import ROLE, prepare_database


@pytest.fixture
async def demo_url(migrated: TestDatabase, connection: asyncpg.Connection) -> str:
    """The database's URL for the demo's role."""
    await prepare_database(connection)
    return migrated.url.replace("//postgres@", f"//{ROLE}@")


@pytest.fixture
async def database(demo_url: str) -> AsyncIterator[Database]:
    async with Database.connect(demo_url) as found:
        yield found
