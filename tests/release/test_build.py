"""Archives, digests and the command line. `e2e/test_release.py` builds a whole release twice."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import tarfile
from pathlib import Path

import pytest

from release import __main__ as command
from release import build
from release.checks import Tree
from release.errors import ReleaseError
from release.project import VERSION_PLACES


def archive(path: Path, names: list[str], mtime: int, owner: str) -> Path:
    with tarfile.open(path, "w:gz") as files:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime, entry.uname = len(name), mtime, owner
            entry.mode = 0o775 if name.endswith(".sh") else 0o600
            files.addfile(entry, io.BytesIO(name.encode()))
    return path


def test_archives_of_the_same_files_become_equal(tmp_path: Path) -> None:
    one = archive(tmp_path / "one.tgz", ["x/b.sh", "x/a"], 1, "root")
    other = archive(tmp_path / "other.tgz", ["x/a", "x/b.sh"], 2, "me")
    assert one.read_bytes() != other.read_bytes()
    results = [build.normalized(path, tmp_path / f"{path.stem}-new", 1700000000) for path in (one, other)]
    assert results[0].read_bytes() == results[1].read_bytes()
    with tarfile.open(results[0]) as files:
        assert [(entry.name, entry.mode, entry.mtime) for entry in files] == [
            ("x/a", 0o644, 1700000000),
            ("x/b.sh", 0o755, 1700000000),
        ]
        content = files.extractfile("x/a")
        assert content is not None
        assert content.read() == b"x/a"
    assert gzip.decompress(results[0].read_bytes())


def test_digests(tmp_path: Path) -> None:
    path = tmp_path / "images.json"
    assert build.read_digests(path) == {}
    path.write_text(json.dumps({"operator": "sha256:a", "relay": "sha256:b", "demo": "sha256:c"}))
    assert build.read_digests(path)["relay"] == "sha256:b"
    path.write_text(json.dumps({"relay": "sha256:b"}))
    with pytest.raises(ReleaseError, match="build the images again"):
        build.read_digests(path)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, which is tagged v1.2.3."""
    root = tmp_path / "repository"
    for path in [*VERSION_PLACES, "CHANGELOG.md"]:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(path)
    monkeypatch.setattr(build, "ROOT", root)
    for variable in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(variable, raising=False)
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.com")
    for arguments in (["init"], ["add", "."], ["commit", "--message=test"], ["tag", "v1.2.3"]):
        subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True, timeout=60)
    return root


def test_the_state_of_a_work_tree(repository: Path) -> None:
    tree = build.tree("1.2.3")
    assert len(tree.commit) == 40
    assert (tree.tagged, tree.changes) == (tree.commit, "")
    assert tree.changelog == "CHANGELOG.md"
    assert set(tree.versions) == set(VERSION_PLACES)
    (repository / "new").write_text("")
    later = build.tree("1.2.4")
    assert (later.tagged, later.changes) == (None, "?? new\n")


def test_only_files_of_the_commit_are_built(repository: Path) -> None:
    (repository / "new").write_text("")
    (repository / "CHANGELOG.md").write_text("changed")
    with build.source() as source:
        assert not (source.root / "new").exists()
        assert (source.root / "CHANGELOG.md").read_text() == "CHANGELOG.md"
        assert source.timestamp.endswith("Z")
    assert not source.root.exists()


def test_a_release_with_problems_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build, "tree", lambda _version: Tree("?? x", "abc", None, {"Chart.yaml": {"1.0.0"}}, ""))
    assert command.main(["build", "v1.2.3"]) == 1
    error = capsys.readouterr().err
    assert "the release is not possible:\n  - the work tree has uncommitted changes" in error
    assert "\n  - Chart.yaml has version 1.0.0: change it to 1.2.3" in error
    assert "\n  - CHANGELOG.md has no section for 1.2.3" in error


def test_invalid_versions_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["check", "latest"]) == 1
    assert "'latest' is not a version" in capsys.readouterr().err


def test_images_without_digests_are_not_signed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "WORK", tmp_path)
    assert command.main(["sign", "1.2.3"]) == 1
    assert "run `make release-images` first" in capsys.readouterr().err


def test_a_program_that_fails_is_reported() -> None:
    with pytest.raises(ReleaseError, match="failed with status 1"):
        build._run("false")
    with pytest.raises(ReleaseError, match="no-such-program is not installed"):
        build._run("no-such-program")
