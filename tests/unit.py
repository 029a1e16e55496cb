"""The selection of unit tests (`make test-unit`): tests that need neither Postgres nor a cluster.

A test is a unit test unless it uses a fixture that starts a server, or is in a file whose tests start processes
themselves. The selection is enforced: a unit test that starts a server fails with a message that names this file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NoReturn

import pytest

from testing.local.apiserver import LocalApiServer
from testing.local.brokers import LocalBroker
from testing.local.postgres import LocalPostgres

MARKER: Final = "unit"
ROOT: Final = Path(__file__).parent
SERVER_FIXTURES: Final = frozenset(
    {"any_authority", "application", "authority", "broker", "broker_of_any", "own_server", "postgres_server", "site"}
)
"""Fixtures that start a server or another slow program. A fixture that uses one of them need not be listed."""
SERVER_FILES: Final = (
    "bench",
    "clients/test_chromium.py",
    "clients/test_javascript.py",
    "cluster/test_images.py",
    "cluster/test_kind.py",
    "core/announcer/test_announcer.py",
    "faults/test_faults.py",
    "log/test_backup.py",
    "log/test_timescale.py",
    "operator/activator/test_main.py",
    "relay/test_fuzz_port.py",
    "relay/test_local.py",
    "relay/test_main.py",
    "relay/test_process.py",
    "relay/test_signals_brokers.py",
    "security",
    "test_ipv6.py",
    "test_trust.py",
)
"""Directories and files, relative to tests/, whose tests start processes or take seconds each."""


class ServerInUnitTestError(Exception):
    """A unit test has started a server. The message has advice."""


def is_unit(path: Path, fixtures: Collection[str]) -> bool:
    """Return whether a test, given by its file and the names of all its fixtures, is a unit test."""
    if not SERVER_FIXTURES.isdisjoint(fixtures):
        return False
    return not any(path.is_relative_to(ROOT / name) for name in SERVER_FILES)


def mark(items: Collection[pytest.Item]) -> None:
    """Add the marker `unit` to all unit tests."""
    for item in items:
        if is_unit(item.path, getattr(item, "fixturenames", ())):
            item.add_marker(MARKER)


@contextmanager
def no_servers() -> Iterator[None]:
    """Make every attempt to start a local server fail while the context is active.

    Raises:
        ServerInUnitTestError: from the attempt.
    """
    with pytest.MonkeyPatch.context() as patch:
        for server, enter in (
            (LocalPostgres, "__enter__"),
            (LocalBroker, "__aenter__"),
            (LocalApiServer, "__enter__"),
        ):
            patch.setattr(server, enter, _refuse)
        yield


def _refuse(server: object) -> NoReturn:
    raise ServerInUnitTestError(
        f"a unit test started {type(server).__name__}: use the fixture `postgres` (or another fixture with a server), "
        "or add the file to SERVER_FILES in tests/unit.py"
    )
