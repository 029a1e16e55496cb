"""CONTRIBUTING.md names files and targets; all of them exist."""

import re
from fnmatch import fnmatch

import pytest

from website.sources import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text()
TOP = {path.name for path in ROOT.iterdir()}
PATHS = sorted(
    path
    for path in set(re.findall(r"`([\w./-]+)`", TEXT))
    if "NAME" not in path and (path.partition("/")[0] in TOP or fnmatch(path, "*.py"))
)


@pytest.mark.parametrize("path", PATHS)
def test_files_exist(path: str) -> None:
    # A bare name, such as `drift.py`, is a file of one of the packages.
    found = (ROOT / path).exists() if "/" in path or path in TOP else any(ROOT.glob(f"[a-z]*/userrealtime_*/**/{path}"))
    assert found, f"CONTRIBUTING.md names {path}, which does not exist: correct the page"


def test_paths_are_found() -> None:
    assert {"tests/unit.py", "drift.py", "relay/userrealtime_relay/transports", ".ci/run", "Makefile"} <= set(PATHS)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`?make ([a-z0-9.-]*[a-z0-9])", TEXT))))
def test_targets_of_make_exist(target: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), f"there is no `make {target}`"


@pytest.mark.parametrize(
    "name", ["BROKERS", "BROKER_SCHEMES", "SignalType", "CHILD_KINDS", "RelayDefaults", "RelayAuth"]
)
def test_names_of_the_recipes_exist(name: str) -> None:
    assert f"`{name}`" in TEXT
    packages = ("core/userrealtime_core", "relay/userrealtime_relay", "operator/userrealtime_operator")
    sources = [path for package in packages for path in ROOT.glob(f"{package}/**/*.py")]
    assert any(re.search(rf"^(class )?{name}\b", path.read_text(), re.MULTILINE) for path in sources)
