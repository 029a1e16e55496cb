"""`python -m testing.cluster clean`, with a fake engine that records its calls."""

from __future__ import annotations

from pathlib import Path

import pytest

from testing.cluster import ClusterError, docker, kind
from testing.cluster import __main__ as command
from testing.cluster.kind import KindCluster

DOCKER = """
echo "$@" >> {calls}
case "$1" in
  images) printf 'localhost/userrealtime-relay:1\\nlocalhost/userrealtime-relay:2\\nsomeone/else:3\\n';;
  ps) cat {other_clusters};;
  rmi) [ "$2" != localhost/userrealtime-relay:1 ] || exit 1;;
esac
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file with the calls of docker; `other` beside it lists the nodes of other clusters."""
    programs, found = tmp_path / "programs", tmp_path / "calls"
    programs.mkdir()
    (tmp_path / "other").touch()
    text = DOCKER.format(calls=found, other_clusters=tmp_path / "other")
    (programs / "docker").write_text(f"#!/bin/sh\n{text}")
    (programs / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setattr(docker, "answers", lambda: True)
    monkeypatch.setattr(command, "present", list)
    return found


def test_it_is_refused_while_a_cluster_is_there(calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "present", lambda: [KindCluster()])
    with pytest.raises(ClusterError, match=r"\(kind\).*`make down` first"):
        command.clean()
    assert not calls.exists()


def test_the_cache_and_our_images_go(calls: Path, cache_directory: Path) -> None:
    (cache_directory / "bin").mkdir(parents=True)
    command.clean()
    assert not cache_directory.exists()
    asked = calls.read_text().splitlines()
    assert "rmi localhost/userrealtime-relay:1" in asked
    assert "rmi localhost/userrealtime-relay:2" in asked, "an image in use does not keep the others"
    assert f"rmi {kind.node_image()}" in asked
    assert "network rm kind" in asked
    assert not [line for line in asked if "someone/else" in line]


def test_the_network_of_other_clusters_stays(calls: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("0123456789ab\n")
    command.clean()
    assert "network rm kind" not in calls.read_text()
