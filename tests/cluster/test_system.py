"""The release after an interrupted helm."""

from __future__ import annotations

from pathlib import Path

import pytest

from testing import system
from testing.cluster import ClusterError
from testing.cluster.existing import ExistingCluster
from testing.cluster.postgres import PostgresAccess
from testing.system import System

# Fails like helm while the release is pending; its status is in a file.
HELM = """
echo "$@" >> {calls}
case "$1" in
  status) printf '{{"info": {{"status": "%s"}}}}' "$(cat {status})";;
  uninstall|rollback) echo deployed > {status};;
  upgrade)
    case "$(cat {status})" in
      pending-*|uninstalling)
        echo "Error: UPGRADE FAILED: another operation (install/upgrade/rollback) is in progress" >&2; exit 1;;
      broken) echo "Error: no" >&2; exit 1;;
      busy) echo "Error: another operation is in progress" >&2; exit 1;;
    esac;;
esac
"""


class Helm:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        program = directory / "helm"
        text = HELM.format(calls=directory / "calls", status=directory / "status")
        program.write_text(f"#!/bin/sh\n{text}")
        program.chmod(0o755)

    def upgrade(self, status: str) -> list[str]:
        """Upgrade a release of this status, and return the calls of helm."""
        (self.directory / "status").write_text(status)
        cluster = Cluster(self.directory / "config", self.directory / "helm")
        system.upgrade(System(cluster, PostgresAccess("", "", cluster), {}), {"a": 1})
        return self.calls()

    def calls(self) -> list[str]:
        return [line.split(" ")[0] for line in (self.directory / "calls").read_text().splitlines()]


class Cluster(ExistingCluster):
    def __init__(self, kubeconfig: Path, helm: Path) -> None:
        super().__init__(kubeconfig)
        self._helm = helm

    def helm_path(self) -> Path:
        return self._helm


@pytest.fixture
def helm(tmp_path: Path) -> Helm:
    return Helm(tmp_path)


def test_usually_helm_is_asked_once(helm: Helm) -> None:
    assert helm.upgrade("deployed") == ["upgrade"]


@pytest.mark.parametrize(
    ("status", "done"),
    [
        ("pending-install", "uninstall"),
        ("uninstalling", "uninstall"),
        ("pending-upgrade", "rollback"),
        ("pending-rollback", "rollback"),
    ],
)
def test_a_pending_release_is_brought_back(helm: Helm, status: str, done: str) -> None:
    assert helm.upgrade(status) == ["upgrade", "status", done, "upgrade"]


@pytest.mark.parametrize(("status", "calls"), [("broken", ["upgrade"]), ("busy", ["upgrade", "status"])])
def test_another_failure_stays_one(helm: Helm, status: str, calls: list[str]) -> None:
    with pytest.raises(ClusterError):
        helm.upgrade(status)
    assert helm.calls() == calls
