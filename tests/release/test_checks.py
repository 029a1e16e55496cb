"""What prevents a release."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import pytest

from release.checks import Tree, parse_version, problems

CHANGELOG: Final = "# Changelog\n\n## Unreleased\n\n## 1.2.3 - 2026-12-01\n\n### Added\n\n- A thing.\n"
GOOD: Final = Tree(
    changes="",
    commit="abc",
    tagged=None,
    versions={"Chart.yaml": {"1.2.3"}, "package.json": {"1.2.3"}},
    changelog=CHANGELOG,
)


def test_nothing_prevents_it() -> None:
    assert problems("1.2.3", GOOD) == []
    assert problems("1.2.3", replace(GOOD, tagged="abc")) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"changes": " M README.md\n?? x\n"}, "uncommitted changes: commit or remove them\n     M README.md\n    ?? x"),
        ({"tagged": "def"}, "the tag v1.2.3 names commit def: check it out, or choose another version"),
        ({"versions": {"Chart.yaml": {"1.2.2"}}}, "Chart.yaml has version 1.2.2: change it to 1.2.3"),
        ({"versions": {"Chart.yaml": {"1.2.3", "1.2.4"}}}, "Chart.yaml has version 1.2.3, 1.2.4: change it"),
        ({"versions": {"Chart.yaml": set()}}, "Chart.yaml has version unknown"),
        ({"changelog": "## 1.2.2 - 2026-12-01\n"}, "no section for 1.2.3: add the heading '## 1.2.3 - YYYY-MM-DD'"),
        ({"changelog": "## 1.2.3\n\n- A thing.\n"}, "the section 1.2.3 of CHANGELOG.md has no date"),
        ({"changelog": "## 1.2.3 - soon\n\n- A thing.\n"}, "the section 1.2.3 of CHANGELOG.md has no date"),
        ({"changelog": "## 1.2.3 - 2026-12-01\n"}, "the section 1.2.3 of CHANGELOG.md is empty"),
        (
            {"changelog": CHANGELOG.replace("Unreleased\n", "Unreleased\n\n- Another thing.\n")},
            "CHANGELOG.md has unreleased changes: move them to the section 1.2.3",
        ),
    ],
)
def test_a_problem_has_advice(change: dict[str, Any], problem: str) -> None:
    [found] = problems("1.2.3", replace(GOOD, **change))
    assert problem in found


def test_all_problems_are_reported() -> None:
    bad = replace(GOOD, changes="?? x", tagged="def", versions={"a": set(), "b": set()}, changelog="")
    assert len(problems("1.2.3", bad)) == 5


def test_versions_and_tags() -> None:
    assert parse_version("0.1.0") == parse_version("v0.1.0") == "0.1.0"


@pytest.mark.parametrize("text", ["", "1.2", "1.2.3.4", "1.2.3-rc.1", "01.2.3", "1.2.3\n", "vv1.2.3", "latest"])
def test_other_versions_are_rejected(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a version: use three numbers, such as 0\.1\.0"):
        parse_version(text)
