"""The selection of unit tests, see unit.py."""

import pytest

from testing.local.apiserver import LocalApiServer
from testing.local.brokers import LocalNats
from testing.local.postgres import LocalPostgres

from .unit import MARKER, ROOT, SERVER_FILES, ServerInUnitTestError, is_unit, no_servers


def test_this_test_is_a_unit_test(request: pytest.FixtureRequest) -> None:
    assert request.node.get_closest_marker(MARKER) is not None


@pytest.mark.parametrize(
    ("path", "fixtures", "expected"),
    [
        ("relay/test_ring.py", [], True),
        ("relay/test_log.py", ["log", "migrated", "postgres", "postgres_server"], False),
        ("relay/test_main.py", [], False),
        ("bench/test_quick.py", [], False),
        ("relay/test_main_again.py", [], True),
    ],
)
def test_selection(path: str, fixtures: list[str], expected: bool) -> None:
    assert is_unit(ROOT / path, fixtures) is expected


@pytest.mark.parametrize("name", SERVER_FILES)
def test_listed_files_exist(name: str) -> None:
    assert (ROOT / name).exists(), f"remove {name} from SERVER_FILES in tests/unit.py"


@pytest.mark.parametrize(
    ("server", "enter"), [(LocalPostgres, "__enter__"), (LocalApiServer, "__enter__"), (LocalNats, "__aenter__")]
)
def test_servers_cannot_be_started_in_a_unit_test(server: type[object], enter: str) -> None:
    # Without __init__, which prepares files.
    stopped = server.__new__(server)
    with no_servers(), pytest.raises(ServerInUnitTestError, match=f"started {server.__name__}: use the fixture"):
        getattr(stopped, enter)()
