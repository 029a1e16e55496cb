"""The choice of the PostgreSQL that the tests start, and the command that runs them on another version."""

from __future__ import annotations

from pathlib import Path

import pytest

from testing.cluster.paths import REPOSITORY
from testing.local.postgres import PACKAGED_VERSION, PROGRAMS, PostgresError, major_version
from tests import postgres


def installation(folder: Path, version: str) -> Path:
    """Create an installation whose server prints a version."""
    programs = folder / "bin"
    programs.mkdir(parents=True)
    for name in ("initdb", "postgres"):
        (programs / name).write_text(f"#!/bin/sh\necho '{version}'\n")
        (programs / name).chmod(0o755)
    return folder


def test_the_default_is_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PROGRAMS, raising=False)
    assert major_version() == PACKAGED_VERSION


@pytest.mark.parametrize(
    ("printed", "version"),
    [("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", 15), ("postgres (PostgreSQL) 19beta1", 19)],
    ids=["release", "beta"],
)
def test_another_installation_can_be_chosen(
    printed: str, version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PROGRAMS, str(installation(tmp_path / "chosen", printed)))
    assert major_version() == version


def test_an_incomplete_installation_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PROGRAMS, str(tmp_path))
    with pytest.raises(PostgresError, match="has no bin/initdb: name the folder of an installation, or unset it"):
        major_version()


def test_a_version_that_is_not_installed_fails_with_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(postgres, "FOLDER", tmp_path)
    assert postgres.main(["15"]) != 0
    assert "Install the package postgresql-15" in capsys.readouterr().err


def test_the_tests_exist() -> None:
    assert [name for name in postgres.TESTS if not (REPOSITORY / name).exists()] == []
