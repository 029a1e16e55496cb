"""The choice of the earlier version for the tests of upgrades."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from testing import previous
from testing.patience import PATIENCE_S

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
WHO = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.com")


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, timeout=PATIENCE_S)


def commit(folder: Path, content: str) -> None:
    (folder / "file").write_text(content)
    git(folder, "add", "file")
    git(folder, *WHO, "commit", "--quiet", "--message", content)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    # not the history of a parent folder
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    monkeypatch.setattr(previous, "REPOSITORY", folder)
    return folder


def test_without_a_history_there_is_none(repository: Path) -> None:
    with pytest.raises(previous.NoHistory, match="no history in this checkout"):
        previous.revision()


def test_a_whole_history_has_to_have_it(repository: Path) -> None:
    git(repository, "init", "--quiet")
    commit(repository, "one")
    with pytest.raises(LookupError, match=r"v0\.1\.0, .* is in the history"):
        previous.revision()


def test_a_shallow_one_may_lack_it(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(repository, "init", "--quiet")
    commit(repository, "one")
    commit(repository, "two")
    git(tmp_path, "clone", "--quiet", "--depth=1", repository.as_uri(), "shallow")
    monkeypatch.setattr(previous, "REPOSITORY", tmp_path / "shallow")
    with pytest.raises(previous.NoHistory, match="fetch the whole history"):
        previous.revision()


def test_the_first_release_it_is_as_soon_as_there_is_one(repository: Path) -> None:
    git(repository, "init", "--quiet")
    commit(repository, "released")
    git(repository, *WHO, "tag", "--annotate", "--message=x", "v0.1.0")
    commit(repository, "later")
    with previous.source(previous.revision()) as folder:
        assert (folder / "file").read_text() == "released"
    assert not folder.exists()
