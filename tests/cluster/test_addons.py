"""The ingress controller is applied once, and again when its manifests have changed or were not applied to the end."""

from __future__ import annotations

from pathlib import Path

import pytest

from testing.cluster import addons
from testing.cluster.errors import ClusterError
from testing.cluster.existing import ExistingCluster

KUBECTL = """
echo "$@" >> {home}/calls
case "$1" in
  get) [ ! -e {home}/applied ] || cat {home}/applied;;
  annotate) printf '%s' "${{5#*=}}" > {home}/applied;;
  -n) [ ! -e {home}/not-ready ] || exit 1;;
esac
"""


class Cluster(ExistingCluster):
    def __init__(self, directory: Path) -> None:
        super().__init__(directory / "config")
        self.directory = directory
        self.program = directory / "kubectl"
        self.program.write_text(f"#!/bin/sh\n{KUBECTL.format(home=directory)}")
        self.program.chmod(0o755)

    def kubectl_path(self) -> Path:
        return self.program

    @property
    def applied(self) -> int:
        return sum(line.startswith("apply ") for line in (self.directory / "calls").read_text().splitlines())


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setattr(addons, "gateway_api", lambda: "crds")
    return Cluster(tmp_path)


def test_what_is_applied_is_not_applied_again(cluster: Cluster) -> None:
    addons.apply_ingress(cluster, "traefik:1")
    first = cluster.applied
    addons.apply_ingress(cluster, "traefik:1")
    assert cluster.applied == first > 0
    addons.apply_ingress(cluster, "traefik:2")
    assert cluster.applied == 2 * first


def test_an_installation_that_did_not_end_is_repeated(cluster: Cluster) -> None:
    (cluster.directory / "not-ready").touch()
    with pytest.raises(ClusterError):
        addons.apply_ingress(cluster, "traefik:1")
    first = cluster.applied
    (cluster.directory / "not-ready").unlink()
    addons.apply_ingress(cluster, "traefik:1")
    assert cluster.applied == 2 * first
