from pathlib import Path

import pytest

from testing.cluster import binaries
from testing.cluster.binaries import parse_go_version, source_hash
from testing.cluster.errors import ClusterError
from testing.cluster.progress import Step


@pytest.mark.parametrize(
    ("text", "version"),
    [("go1.26.8\n", (1, 26)), ("go1.24rc1", (1, 24)), ("devel", (0, 0)), ("", (0, 0))],
)
def test_parse_go_version(text: str, version: tuple[int, int]) -> None:
    assert parse_go_version(text) == version


def test_without_go_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match=r"Install Go 1\.24"):
        binaries.require_go()


def test_a_go_too_old_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old = tmp_path / "go"
    old.write_text("#!/bin/sh\necho go1.19.8\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(ClusterError, match=r"go1\.19\.8, too old"):
        binaries.require_go()


def test_the_hash_follows_names_and_contents_alone(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_text("1")
    first = source_hash(source)
    (source / "__pycache__").mkdir()
    (source / "__pycache__" / "a.pyc").write_text("compiled")
    (source / "a").touch()
    assert source_hash(source) == first
    (source / "a").write_text("2")
    second = source_hash(source)
    (source / "a").rename(source / "b")
    assert len({first, second, source_hash(source)}) == 3


def test_built_once(cache_directory: Path) -> None:
    calls = []

    def build(_: Step, out: Path) -> None:
        calls.append(out)
        out.write_text("program")

    first = binaries.cached("tool", "1", "building tool", build)
    second = binaries.cached("tool", "1", "building tool", build)
    assert first == second
    assert len(calls) == 1
    assert first.is_relative_to(cache_directory)
    assert first.stat().st_mode & 0o111


def test_a_build_that_fails_leaves_nothing_that_looks_built() -> None:
    def fail(_: Step, out: Path) -> None:
        out.write_text("half a program")
        raise ClusterError("no")

    def build(_: Step, out: Path) -> None:
        out.write_text("program")

    with pytest.raises(ClusterError):
        binaries.cached("tool", "1", "building tool", fail)
    assert binaries.cached("tool", "1", "building tool", build).read_text() == "program"
