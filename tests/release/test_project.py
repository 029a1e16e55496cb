"""The names of the project, and the places of the version and of the owner."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from release import build
from release.project import IMAGES, VERSION_PLACES, Project, parse_project, versions
from release.sbom import IMAGE_PYTHON
from testing.cluster.images import DEBIAN_PYTHON
from userrealtime_operator import __version__

PROJECT: Final = Project("Example-Org", "userrealtime")


def test_addresses() -> None:
    assert PROJECT.url == "https://github.com/Example-Org/userrealtime"
    assert PROJECT.image("relay") == "ghcr.io/example-org/userrealtime-relay"
    assert PROJECT.charts == "oci://ghcr.io/example-org/charts"
    assert PROJECT.file("a.svg", "1.2.3").endswith("/Example-Org/userrealtime/v1.2.3/a.svg")
    assert PROJECT.page("a.md", "1.2.3") == f"{PROJECT.url}/blob/v1.2.3/a.md"


def test_a_repository_is_parsed() -> None:
    assert parse_project(PROJECT.url) == PROJECT


@pytest.mark.parametrize("address", ["", "https://example.com/a/b", f"{PROJECT.url}/tree", "git@github.com:a/b.git"])
def test_other_addresses_are_rejected(address: str) -> None:
    with pytest.raises(ValueError, match=r"correct project\.urls in pyproject\.toml"):
        parse_project(address)


@pytest.mark.parametrize("path", VERSION_PLACES)
def test_each_place_contains_the_version(path: str) -> None:
    assert versions(path, (build.ROOT / path).read_text()) == {__version__}


def test_versions_of_dependencies_do_not_count() -> None:
    lines = ("{", '  "version": "1.0.0",', '      "version": "1.0.0",', '      "version": "9.9.9",', "")
    lock = "\n".join(lines)
    assert versions("clients/js/package-lock.json", lock) == {"1.0.0"}


def test_a_file_without_a_version() -> None:
    assert versions("charts/userrealtime/Chart.yaml", "name: x\n") == set()


@pytest.mark.parametrize("image", IMAGES)
def test_each_image_has_a_dockerfile_and_a_lock(image: str) -> None:
    assert (build.ROOT / IMAGES[image]).is_file()
    assert (build.ROOT / "locks" / f"{image}.txt").is_file()


def test_the_python_of_the_images() -> None:
    assert IMAGE_PYTHON["python_version"] == DEBIAN_PYTHON


def test_the_owner_is_the_same_in_all_files() -> None:
    """pyproject.toml has it; CODEOWNERS repeats it, because GitHub reads no other file."""
    owner = build.project().owner
    rules = [
        line.split()
        for line in (build.ROOT / ".github" / "CODEOWNERS").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert rules
    assert [name for _, *names in rules for name in names if name.removeprefix("@").partition("/")[0] != owner] == []


def pages() -> list[Path]:
    """Return the files that may contain addresses of the project."""
    folders = ("docs", "charts", "cli", "examples", ".github", "release", "website", "clients/js/src", "clients/python")
    files = [path for folder in folders for path in (build.ROOT / folder).rglob("*") if path.is_file()]
    texts = [path for path in files if path.suffix in (".md", ".yaml", ".yml", ".py", ".ts", ".tpl", ".txt", ".json")]
    return [*texts, *build.ROOT.glob("*.md"), build.ROOT / "mkdocs.yml", build.ROOT / "clients" / "js" / "package.json"]


def test_no_other_file_names_the_owner() -> None:
    owner = build.project().owner
    address = re.compile(rf"(?:ghcr\.io|github\.com|githubusercontent\.com)[/:]{owner}\b")
    assert [str(path) for path in pages() if address.search(path.read_text())] == []


def test_the_registry_has_the_placeholder_of_the_owner() -> None:
    found = [name for page in pages() for name in re.findall(r"ghcr\.io/[A-Za-z][\w.-]*", page.read_text())]
    assert "ghcr.io/OWNER" in found
    assert set(found) == {"ghcr.io/OWNER"}
