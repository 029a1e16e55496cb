"""docs/architecture.md names files and modules; all of them exist, and no module of the operator is missing."""

import re

import pytest

from website.sources import ROOT

TEXT = (ROOT / "docs" / "architecture.md").read_text()
OPERATOR = ROOT / "operator" / "userrealtime_operator"
TOP = {path.name for path in ROOT.iterdir() if path.is_dir()}
PATHS = sorted({path for path in re.findall(r"`([\w./-]+/[\w./-]*)`", TEXT) if path.partition("/")[0] in TOP})
ABSENT = {"operator/__init__.py"}
"""Files that the page states not to exist."""


def section(title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, f"docs/architecture.md has no section {title}"
    return found[1]


@pytest.mark.parametrize("path", PATHS)
def test_files_exist(path: str) -> None:
    assert (ROOT / path).exists() is (path not in ABSENT), f"correct {path} in docs/architecture.md"


@pytest.mark.parametrize(
    ("title", "first", "last"),
    [
        (
            "An event",
            "operator/userrealtime_operator/postgres/schema/repeatable/publish.sql",
            "clients/js/src/machine.ts",
        ),
        ("A resource", "operator/userrealtime_operator/app.py", "operator/userrealtime_operator/reconcile/status.py"),
        (
            "A wake",
            "operator/userrealtime_operator/activator/server.py",
            "operator/userrealtime_operator/activator/proxy/frames.py",
        ),
    ],
)
def test_the_walks_are_lists_of_files(title: str, first: str, last: str) -> None:
    walk = [path for path in re.findall(r"`([\w./-]+)`", section(title)) if path.partition("/")[0] in TOP]
    assert set(walk) <= set(PATHS)
    assert walk.index(first) < walk.index(last)


def test_the_table_of_the_operator_has_all_its_modules() -> None:
    rows = re.findall(r"^\| (`[^|]+`) \|", section("The operator"), re.MULTILINE)
    named = [module for row in rows for module in re.findall(r"`([\w/]+)`", row) if not module.endswith("/")]
    there = [path.relative_to(OPERATOR).with_suffix("") for path in OPERATOR.rglob("*.py")]
    assert sorted(named) == sorted(
        str(module) for module in there if module.parts[0] != "activator" and not module.name.startswith("__")
    )


def test_the_row_of_the_core_has_all_its_modules() -> None:
    core = ROOT / "core" / "userrealtime_core"
    row = re.search(r"^\| `core/userrealtime_core/` \|(.*)\|$", section("The parts"), re.MULTILINE)
    assert row
    there = {path.stem for path in core.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert set(re.findall(r"`(\w+)`", row[1])) == there - {"__init__"}
