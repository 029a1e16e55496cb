"""The check of workflows by actionlint, which `make lint` runs; here with a program in its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from testing import workflows
from testing.cluster.errors import ClusterError


@pytest.fixture
def actionlint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in place of actionlint."""
    path = tmp_path / "actionlint"
    monkeypatch.setattr(workflows, "program", lambda: path)
    return path


def write(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_all_workflows_are_passed(actionlint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(actionlint, 'echo "$@"; exit 1')
    assert workflows.main() == 1
    output = capsys.readouterr().err
    assert all(f".github/workflows/{name}.yml" in output for name in ("locks", "release", "tests"))


def test_valid_workflows(actionlint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(actionlint, "exit 0")
    assert workflows.main() == 0
    assert capsys.readouterr().err == ""


def test_a_failure_of_the_program_is_not_a_valid_workflow(actionlint: Path) -> None:
    write(actionlint, "echo broken >&2; exit 3")
    with pytest.raises(ClusterError, match="actionlint failed with status 3: broken"):
        workflows.check([])
    assert workflows.main() == 1


@pytest.mark.parametrize(("ci", "status"), [("", 0), ("true", 1)])
def test_without_go_the_check_is_omitted_except_in_ci(
    ci: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CI", ci)
    assert workflows.main() == status
    assert "Go" in capsys.readouterr().err
