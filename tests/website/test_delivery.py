"""docs/delivery.md names a test for each promise and each fault; all of them exist."""

import re

import pytest

from website.sources import ROOT

TEXT = (ROOT / "docs" / "delivery.md").read_text()
NAMES = sorted(set(re.findall(r"\b(test_\w+)\b(?!\.py)", TEXT)))
SOURCES = "\n".join(path.read_text() for each in ("tests", "e2e") for path in (ROOT / each).rglob("test_*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_the_test_exists(name: str) -> None:
    assert re.search(rf"^(async )?def {name}\(", SOURCES, re.MULTILINE), f"docs/delivery.md names {name}: correct it"


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:tests|e2e)/[\w/]+\.py)", TEXT))))
def test_the_file_exists(path: str) -> None:
    assert (ROOT / path).is_file(), f"docs/delivery.md names {path}: correct it"


def test_every_fault_has_a_test() -> None:
    rows = re.findall(r"^\| (?!fault|-).*\|$", TEXT.partition("## What breaks")[2].partition("\n## ")[0], re.MULTILINE)
    assert len(rows) > 15
    assert [row for row in rows if not re.search(r"\btest_\w+", row.rpartition(" | ")[2])] == []
