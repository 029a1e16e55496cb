"""What prevents a release, as a list of problems. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from .changelog import UNRELEASED, sections

_VERSION: Final = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)")


@dataclass(frozen=True)
class Tree:
    """The state of a work tree.

    Attributes:
        changes: the output of `git status --porcelain`.
        commit: the commit that is checked out.
        tagged: the commit of the version's tag, if it exists.
        versions: the versions that each file contains.
        changelog: the text of the changelog.
    """

    changes: str
    commit: str
    tagged: str | None
    versions: Mapping[str, set[str]]
    changelog: str


def parse_version(text: str) -> str:
    """Return the version of a version or of a tag (`v0.1.0`).

    Raises:
        ValueError: it is not of the form x.y.z. Python, npm and Helm write prereleases differently.
    """
    version = text.removeprefix("v")
    if _VERSION.fullmatch(version) is None:
        raise ValueError(f"{text!r} is not a version: use three numbers, such as 0.1.0")
    return version


def problems(version: str, tree: Tree) -> list[str]:
    """Return what prevents the release of a version, each with advice; nothing if it can be released."""
    return [*_of_git(version, tree), *_of_versions(version, tree), *_of_changelog(version, tree)]


def _of_git(version: str, tree: Tree) -> list[str]:
    found = []
    if tree.changes.strip():
        lines = "\n    ".join(tree.changes.rstrip().splitlines()[:10])
        found.append(f"the work tree has uncommitted changes: commit or remove them\n    {lines}")
    if tree.tagged not in (None, tree.commit):
        found.append(f"the tag v{version} names commit {tree.tagged}: check it out, or choose another version")
    return found


def _of_versions(version: str, tree: Tree) -> list[str]:
    return [
        f"{path} has version {', '.join(sorted(found)) or 'unknown'}: change it to {version}"
        for path, found in tree.versions.items()
        if found != {version}
    ]


def _of_changelog(version: str, tree: Tree) -> list[str]:
    found = sections(tree.changelog)
    section, unreleased = found.get(version), found.get(UNRELEASED)
    result = []
    if section is None:
        result.append(f"CHANGELOG.md has no section for {version}: add the heading '## {version} - YYYY-MM-DD'")
    elif not section.dated:
        result.append(f"the section {version} of CHANGELOG.md has no date: write '## {version} - YYYY-MM-DD'")
    elif not section.body:
        result.append(f"the section {version} of CHANGELOG.md is empty: list the changes")
    if unreleased is not None and unreleased.body:
        result.append(f"CHANGELOG.md has unreleased changes: move them to the section {version}")
    return result
