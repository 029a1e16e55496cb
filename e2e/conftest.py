"""The installed system, once for all scenarios. It stays up afterwards; `make down` removes it."""

from __future__ import annotations

import contextlib
import itertools
import secrets
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import asyncpg
import pytest

from testing.clients import standard
from testing.cluster import choose
from testing.patience import PATIENCE_S
from testing.sleeping import SOON, wait_asleep
from testing.system import System, install

# A suffix for names: it keeps the resources of this run apart from other runs and from the first user of `make up`.
RUN = secrets.token_hex(3)
_numbers = itertools.count(1)


def pytest_configure() -> None:
    """End at SIGTERM as at Ctrl-C. Otherwise port forwards and browsers would be left running."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--screenshots", action="store_true", help="take the pictures of docs/demo.md again")


def uncaptured(config: pytest.Config) -> AbstractContextManager[None]:
    """Return a context in which output reaches the terminal."""
    capture = config.pluginmanager.getplugin("capturemanager")
    return capture.global_and_fixture_disabled() if capture else contextlib.nullcontext()


@pytest.fixture(scope="session")
def system(pytestconfig: pytest.Config) -> System:
    with uncaptured(pytestconfig):
        print(flush=True)  # the progress of the steps starts on a new line
        return install(choose())


@pytest.fixture(scope="session")
def database_url(system: System) -> Iterator[str]:
    """A connection to the database from this machine."""
    with system.database.from_host() as url:
        yield url


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_url, timeout=PATIENCE_S)
    yield connection
    await connection.close(timeout=PATIENCE_S)


@pytest.fixture
def users(system: System) -> Iterator[Callable[..., str]]:
    """A function that creates a Ready user and returns its name. All users are removed at the end."""
    made: list[str] = []

    def make(label: str = "user", **spec: object) -> str:
        name = f"{label}-{RUN}-{next(_numbers)}"
        made.append(name)
        system.apply_user(name, **spec)
        system.wait_ready(name)
        system.wait_reachable(name)
        return name

    yield make
    for name in made:
        system.delete_user(name)


@pytest.fixture(scope="session")
def standard_clients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the EventSource of node."""
    return standard.install(tmp_path_factory.mktemp("standard") / "application")


@pytest.fixture(scope="module")
def sleepers(system: System, request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Users that fall asleep, one for each test of the module that has a `sleeper`.

    The operator checks periodically which users are idle, and they fall asleep at the same time.
    """
    module = request.node
    tests = [item for item in request.session.items if item.getparent(pytest.Module) is module]
    count = sum("sleeper" in getattr(item, "fixturenames", ()) for item in tests)
    names = [f"sleeper-{RUN}-{next(_numbers)}" for _ in range(count)]
    for name in names:
        system.apply_user(name, idle=SOON)
    yield names.copy()
    for name in names:
        system.delete_user(name)


@pytest.fixture
def sleeper(system: System, sleepers: list[str]) -> Iterator[str]:
    """A sleeping user that no other test has used."""
    name = sleepers.pop()
    wait_asleep(system, name)
    yield name
    system.delete_user(name)
