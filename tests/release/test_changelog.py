"""The sections of the changelog."""

from __future__ import annotations

from typing import Final

from release.build import ROOT
from release.changelog import UNRELEASED, Change, changes, sections

TEXT: Final = """# Changelog

Some text.

## Unreleased

## [1.1.0] - 2026-12-02

### Changed

- A change
  on two lines.
- Another `change`.

### Fixed

- A bug.

## 1.0.0 - 2026-12-01

First version.
"""


def test_sections() -> None:
    found = sections(TEXT)
    assert list(found) == [UNRELEASED, "1.1.0", "1.0.0"]
    assert found[UNRELEASED].body == ""
    assert not found[UNRELEASED].dated
    assert found["1.1.0"].dated
    assert found["1.0.0"].body == "First version."


def test_changes() -> None:
    assert changes(sections(TEXT)["1.1.0"]) == [
        Change("changed", "A change on two lines."),
        Change("changed", "Another `change`."),
        Change("fixed", "A bug."),
    ]
    assert changes(sections(TEXT)["1.0.0"]) == []


def test_the_changelog_of_the_project_is_understood() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    found = sections(text)
    items = sum(len(changes(section)) for section in found.values())
    assert items == sum(line.startswith("- ") for line in text.splitlines())
    kinds = {change.kind for section in found.values() for change in changes(section)}
    assert kinds <= {"added", "changed", "deprecated", "removed", "fixed", "security"}
