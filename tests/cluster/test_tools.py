"""Programs from PATH, or obtained in a pinned version."""

from __future__ import annotations

from pathlib import Path

import pytest

from testing.cluster import downloads, tools
from testing.cluster.errors import ClusterError


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "programs"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    return directory


def install(directory: Path, name: str, script: str) -> Path:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("kind v0.30.0 go1.24.6 linux/amd64", (0, 30)),
        ("Client Version: v1.32.4-dispatcher\nKustomize Version: v5.5.0", (1, 32)),
        ("v4.3.1+g0a1b2c3", (4, 3)),
        ("unknown", (0, 0)),
    ],
)
def test_parse_version(text: str, version: tuple[int, int]) -> None:
    assert tools.parse_version(text) == version


def test_a_program_of_a_fitting_version_is_used(programs: Path) -> None:
    assert tools.KUBECTL.on_path() is None
    found = install(programs, "kubectl", "echo Client Version: v1.35.0")
    tools.find_on_path.cache_clear()
    assert tools.kubectl() == found


@pytest.mark.parametrize("version", ["v1.32.4", "v1.36.0", "nothing"])
def test_another_version_is_not(programs: Path, capsys: pytest.CaptureFixture[str], version: str) -> None:
    install(programs, "kubectl", f"echo Client Version: {version}")
    assert tools.KUBECTL.on_path() is None
    assert tools.KUBECTL.on_path() is None
    assert capsys.readouterr().err.count("another kubectl is used") == 1


def test_it_is_downloaded_once(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def release(url: str, checksum_url: str, out: Path) -> None:
        calls.append((url, checksum_url))
        out.write_text("program")

    monkeypatch.setattr(downloads, "release", release)
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert tools.kind().read_text() == "program"
    assert tools.kind().name == "kind"
    assert tools.kubectl().read_text() == "program"
    kind, kubectl = calls
    assert kind[0].endswith(f"/v{tools.KIND.pinned}/kind-darwin-arm64")
    assert kubectl == (
        f"https://dl.k8s.io/release/v{tools.KUBECTL.pinned}/bin/darwin/arm64/kubectl",
        f"https://dl.k8s.io/release/v{tools.KUBECTL.pinned}/bin/darwin/arm64/kubectl.sha256",
    )


def test_helm_comes_in_an_archive(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extracted = []

    def extract(archive: Path, member: str, out: Path) -> None:
        extracted.append((archive.read_text(), member))
        out.write_text("program")

    monkeypatch.setattr(downloads, "release", lambda url, _, out: out.write_text(url))
    monkeypatch.setattr(downloads, "extract", extract)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert tools.helm().read_text() == "program"
    assert extracted == [
        (f"https://get.helm.sh/helm-v{tools.HELM.pinned}-linux-arm64.tar.gz", "linux-arm64/helm"),
    ]


def refuse(url: str, checksum_url: str, out: Path) -> None:
    raise ClusterError(f"{url} cannot be downloaded: no route")


def test_without_a_download_go_builds_it(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "release", refuse)
    install(
        programs,
        "go",
        'case "$1" in env) echo go1.26.8;; install) echo "$2" > "$GOBIN/kind";; build) echo "$*" > "$5";; esac',
    )
    assert tools.kind().read_text() == f"sigs.k8s.io/kind@v{tools.KIND.pinned}\n"
    # only kubectl, in the module with the versions of Kubernetes
    assert tools.kubectl().read_text().endswith(" k8s.io/kubernetes/cmd/kubectl\n")


def test_without_either_it_says_how_to_install_it(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "release", refuse)
    with pytest.raises(ClusterError, match="no route") as caught:
        tools.helm()
    assert "https://helm.sh/docs/intro/install/" in str(caught.value)


def test_kubectl_is_copied_out_of_the_node(programs: Path) -> None:
    install(programs, "docker", f'echo "$@" >> {programs}/calls; echo program > "$4"')
    found = tools.kubectl_of_node("node", "image:1")
    assert found.read_text() == "program\n"
    assert found.name == "kubectl"
    assert tools.kubectl_of_node("node", "image:1") == found
    assert tools.kubectl_of_node("node", "image:2") != found
    calls = (programs / "calls").read_text().splitlines()
    assert len(calls) == 2
    assert calls[0].startswith("cp --follow-link node:/usr/bin/kubectl ")


def fail(text: str) -> None:
    raise ClusterError(text)


def test_all_that_is_missing_is_in_one_message(programs: Path) -> None:
    with pytest.raises(ClusterError) as caught:
        tools.obtain(lambda: fail("no kind"), lambda: None, lambda: fail("no helm\nat all"), problems=["no buildx"])
    assert str(caught.value).splitlines()[1:] == ["  - no buildx", "  - no kind", "  - no helm", "    at all"]
    tools.obtain(lambda: None)


def test_nothing_is_built_while_something_else_is_in_the_way(programs: Path) -> None:
    install(programs, "go", "")
    with pytest.raises(ClusterError, match="no buildx"):
        tools.obtain(lambda: pytest.fail("minutes of work"), problems=["no buildx"])
