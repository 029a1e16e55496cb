"""The checks of the local cluster before it installs or builds anything."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from testing.cluster import binaries
from testing.cluster.errors import ClusterError
from testing.cluster.local import LocalCluster, cluster, packages


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A machine with all programs and no local cluster."""
    monkeypatch.setattr(packages, "missing", lambda *_: [])
    monkeypatch.setattr(binaries, "require_go", lambda: "go")
    monkeypatch.setattr(cluster, "_node", lambda: None)
    monkeypatch.setattr(cluster, "leftovers", list)
    monkeypatch.setattr(cluster, "RECORD", tmp_path / "node.json")
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("INGRESS_PORT", str(server.getsockname()[1]))
    return monkeypatch


def without_go() -> str:
    raise ClusterError("Go is not installed. Install Go")


def test_nothing_is_in_the_way(machine: pytest.MonkeyPatch) -> None:
    cluster._check()


def test_one_message_names_all_that_is_missing(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine.setattr(packages, "missing", lambda *_: ["containerd", "runc"])
    machine.setattr(packages, "ENVIRONMENT", {"PATH": str(tmp_path)})
    machine.setattr(binaries, "require_go", without_go)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        machine.setenv("INGRESS_PORT", str(port))
        with pytest.raises(ClusterError, match="nothing was created") as caught:
            cluster._check()
    text = str(caught.value)
    assert "containerd runc" in text
    assert "Install Go" in text
    assert f"port {port} of 127.0.0.1" in text


def test_packages_that_apt_can_install_are_not_missing(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    apt = tmp_path / "apt-get"
    apt.touch(mode=0o755)
    machine.setattr(packages, "missing", lambda *_: ["containerd"])
    machine.setattr(packages, "ENVIRONMENT", {"PATH": str(tmp_path)})
    assert packages.problems() == []
    apt.unlink()
    assert len(packages.problems()) == 1


def test_go_is_not_needed_for_what_is_built(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(binaries, "require_go", without_go)
    assert not binaries.built()
    machine.setattr(binaries, "built", lambda: True)
    cluster._check()


def test_the_port_of_a_running_cluster_counts(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine.setattr(cluster, "_node", lambda: 4711)
    machine.setattr(cluster, "leftovers", lambda: ["process 4711"])
    (tmp_path / "node.json").write_text(json.dumps({"port": 9081}))
    with pytest.raises(ClusterError, match="at port 9081: `make down` first"):
        cluster._check()
    machine.delenv("INGRESS_PORT")
    cluster._check()
    assert LocalCluster().ingress_url == "http://127.0.0.1:9081"
