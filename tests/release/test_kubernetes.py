"""The dry run of all objects on the API server of a promised version of Kubernetes."""

from __future__ import annotations

import re
from typing import Final

import pytest
import yaml

from release.build import ROOT
from testing import kubernetes
from testing.cluster import ClusterError
from testing.cluster.binaries import KUBERNETES, kubernetes_ldflags

GO_MOD: Final = """module k8s.io/kubernetes

go 1.22.0

require k8s.io/api v0.0.0

replace (
\tk8s.io/api => ./staging/src/k8s.io/api
\tk8s.io/client-go => ./staging/src/k8s.io/client-go
)
"""


@pytest.mark.parametrize(("version", "release"), [("1.31", "1.31.14"), ("1.34", KUBERNETES), (KUBERNETES, KUBERNETES)])
def test_a_version_has_a_patch_release(version: str, release: str) -> None:
    assert kubernetes.patch_release(version) == release


@pytest.mark.parametrize("version", ["1.3", "1.30", "latest", ""])
def test_other_versions_are_rejected_with_a_choice(version: str) -> None:
    with pytest.raises(ClusterError, match=r"choose one of 1\.31, 1\.32, 1\.33, 1\.34, 1\.35"):
        kubernetes.patch_release(version)


def test_the_versions_are_those_of_the_documentation() -> None:
    page = (ROOT / "docs" / "releases.md").read_text()
    for version in kubernetes.VERSIONS:
        assert re.search(rf"\b{re.escape(version)}\b", page)


def test_all_pages_name_the_lowest_version_of_the_chart() -> None:
    chart = yaml.safe_load((ROOT / "charts" / "userrealtime" / "Chart.yaml").read_text())
    found = re.fullmatch(r">=1\.(\d+)\.0-0", chart["kubeVersion"])
    assert found is not None
    assert all(int(version.split(".")[1]) >= int(found[1]) for version in kubernetes.VERSIONS)
    assert f"The chart accepts Kubernetes 1.{found[1]} and later" in (ROOT / "docs" / "releases.md").read_text()
    pages = [*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "charts" / "userrealtime" / "values.yaml"]
    named = [int(minor) for page in pages for minor in re.findall(r"requires Kubernetes 1\.(\d+)", page.read_text())]
    assert [minor for minor in named if minor != int(found[1])] == []


def test_the_module_has_the_releases_of_the_staging_modules() -> None:
    text = kubernetes.module("1.31.14", GO_MOD)
    assert "\tk8s.io/api => k8s.io/api v0.31.14\n\tk8s.io/client-go => k8s.io/client-go v0.31.14\n" in text
    assert "\tk8s.io/kubernetes v1.31.14\n" in text
    assert "\ngo 1.22.0\n" in text


def test_a_module_without_replacements_is_rejected() -> None:
    with pytest.raises(ClusterError, match=r"the go\.mod of Kubernetes 1\.31\.14 has no"):
        kubernetes.module("1.31.14", "module k8s.io/kubernetes\n")


def test_the_program_reports_its_version() -> None:
    assert "version.gitVersion=v1.31.14 " in kubernetes_ldflags("1.31.14")
    assert "version.gitMinor=31 " in kubernetes_ldflags("1.31.14")
