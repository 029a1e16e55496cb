"""docs/threat-model.md names a test for each protection; all exist, and no module of tests/security is missing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from website.sources import ROOT

PAGE = ROOT / "docs" / "threat-model.md"
TEXT, _, GAPS = PAGE.read_text().partition("## Not protected yet")
_TEST = re.compile(r"\[(?P<name>test_\w+)\]\((?P<path>[^)#]+)\)")
LINKED = sorted({(match["path"], match["name"]) for match in _TEST.finditer(TEXT)})


def defined_in(path: Path) -> set[str]:
    return set(re.findall(r"^(?:async )?def (test_\w+)\(", path.read_text(), re.MULTILINE))


def rows(text: str) -> list[list[str]]:
    """Return the cells of all rows of tables, except the heads and the lines below them."""
    lines = re.findall(r"^\| (.*) \|\n(?!\|---)", text, re.MULTILINE)
    return [[cell.strip() for cell in line.split(" | ")] for line in lines]


@pytest.mark.parametrize(("path", "name"), LINKED)
def test_the_test_exists(path: str, name: str) -> None:
    file = (PAGE.parent / path).resolve()
    assert file.is_file(), f"docs/threat-model.md: {path} does not exist"
    assert name in defined_in(file), f"docs/threat-model.md: {path} has no test {name}"


def test_each_protection_has_a_test() -> None:
    parties, *protections = re.split(r"^## ", TEXT, flags=re.MULTILINE)
    assert len(rows(parties)) > 5
    found = [row for section in protections for row in rows(section)]
    assert len(found) > 30
    assert [row for row in found if len(row) != 2 or not _TEST.search(row[1])] == []


def test_each_gap_has_a_party_and_advice() -> None:
    found = rows(GAPS)
    assert len(found) > 5
    assert [row for row in found if len(row) != 3 or not all(row)] == []


@pytest.mark.parametrize("path", sorted((ROOT / "tests" / "security").glob("test_*.py")), ids=lambda path: path.name)
def test_each_module_of_attacks_is_named(path: Path) -> None:
    assert defined_in(path) & {name for _, name in LINKED}, f"docs/threat-model.md names no test of {path.name}"
