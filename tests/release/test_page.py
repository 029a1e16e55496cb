"""docs/releases.md names files, targets and versions; all of them exist and are those of the sources."""

from __future__ import annotations

import re
from typing import Final

import pytest

from release.build import ROOT
from testing.cluster import binaries, images, kind

TEXT: Final = (ROOT / "docs" / "releases.md").read_text()
TOP: Final = {path.name for path in ROOT.iterdir()}
PATHS: Final = sorted({path for path in re.findall(r"`([\w./-]+)`", TEXT) if path.partition("/")[0] in TOP})
TARGETS: Final = sorted(set(re.findall(r"`make ([a-z0-9.-]*[a-z0-9])", TEXT)))


@pytest.mark.parametrize("path", [path for path in PATHS if path != "release"])
def test_files_exist(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize("target", TARGETS)
def test_targets_exist(target: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    pattern = r"release-publish-%" if target.startswith("release-publish-") else re.escape(target)
    assert re.search(rf"^{pattern}:", makefile, re.MULTILINE), f"there is no `make {target}`"


def test_paths_and_targets_are_found() -> None:
    assert {"e2e/test_release.py", "e2e/test_upgrade.py", "testing/previous.py"} <= set(PATHS)
    assert {"release", "release-images", "unit-both"} <= set(TARGETS)


@pytest.mark.parametrize(
    ("software", "version"),
    [
        ("Kubernetes", binaries.KUBERNETES),
        ("Helm", binaries.HELM),
        ("Python, in the images", images.DEBIAN_PYTHON),
    ],
)
def test_tested_versions_are_those_of_the_tests(software: str, version: str) -> None:
    assert re.search(rf"^\| {re.escape(software)} \| {re.escape(version)} \|", TEXT, re.MULTILINE)


def test_the_version_of_the_kind_node() -> None:
    node = re.search(r"node:v([\d.]+)@", kind.NODE_IMAGE)
    assert node is not None
    assert f"| | {node[1]} | `.ci/kind`, on the node image of kind {binaries.KIND} |" in TEXT
