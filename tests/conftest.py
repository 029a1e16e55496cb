"""A real PostgreSQL for every test that asks: one server a run, one database a test."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

from testing.browser import installed
from testing.cluster.local import pki
from testing.database import Database, create_database
from testing.local.postgres import LocalPostgres
from testing.skipping import skip
from userrealtime_operator.postgres.migrate import migrate

from . import unit


def pytest_configure(config: pytest.Config) -> None:
    """End in order at SIGTERM as at Ctrl-C: else servers of the tests would be left running."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    config.addinivalue_line("markers", f"{unit.MARKER}: needs neither Postgres nor a cluster; see tests/unit.py")


# First, because `-m` selects by the markers that this adds.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    unit.mark(items)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    if item.get_closest_marker(unit.MARKER) is None:
        return (yield)
    with unit.no_servers():
        return (yield)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[LocalPostgres]:
    with LocalPostgres() as server:
        yield server


@pytest.fixture
async def postgres(postgres_server: LocalPostgres) -> Database:
    """An empty database."""
    return await create_database(postgres_server)


@pytest.fixture
async def migrated(postgres: Database) -> Database:
    """A database with the schema installed."""
    await migrate(postgres.url)
    return postgres


@pytest.fixture
async def connection(migrated: Database) -> AsyncIterator[asyncpg.Connection]:
    """A connection to `migrated`, as its owner."""
    connection = await asyncpg.connect(migrated.url)
    yield connection
    await connection.close()


@pytest.fixture
async def own_server() -> AsyncIterator[Database]:
    """A migrated database on a server that this test alone may stop."""
    with LocalPostgres() as server:
        database = await create_database(server)
        await migrate(database.url)
        yield database


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an authority that no machine trusts by default, and its server certificate for 127.0.0.1."""
    return make_authority(tmp_path_factory, pki.Extensions.COMPLETE)


@pytest.fixture(scope="session", params=list(pki.Extensions), ids=lambda extensions: extensions.value)
def any_authority(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `authority`, of each kind that has to be accepted: a complete one, and one like that of Amazon EKS."""
    return make_authority(tmp_path_factory, request.param)


def make_authority(tmp_path_factory: pytest.TempPathFactory, extensions: pki.Extensions) -> Path:
    folder = tmp_path_factory.mktemp("pki")
    pki.make(folder, [pki.Identity("server", "/CN=server", ("IP:127.0.0.1",))], extensions)
    return folder


@pytest.fixture(scope="session")
def chromium_is_there() -> None:
    """Skip the test without Chromium, or fail it if CI=true. Unlike end-to-end tests, unit tests install nothing."""
    if installed() is None:
        skip("Chromium is not installed, so nothing is tested in a browser: apt-get install chromium")
