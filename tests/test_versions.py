from pathlib import Path

import pytest

from tests import versions
from tests.versions import candidates, find


def program(path: Path, says: str, status: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho {says}\nexit {status}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with only the Pythons that a test makes."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin")
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    return tmp_path


def test_the_newest_release_of_pyenv_comes_after_the_one_on_path(machine: Path) -> None:
    shown = program(machine / "bin" / "python3.13", "3.13")
    for release in ("3.13.9", "3.13.10", "3.12.11", "3.13.1"):
        program(machine / "pyenv" / "versions" / release / "bin" / f"python{release.rpartition('.')[0]}", "3.13")
    found = list(candidates("3.13"))
    assert found[0] == shown
    assert [path.parts[-3] for path in found[1:]] == ["3.13.10", "3.13.9", "3.13.1"]


def test_a_broken_program_or_another_version_is_skipped(machine: Path) -> None:
    program(machine / "bin" / "python3.13", "3.13", status=127)
    assert find("3.13") is None
    program(machine / "pyenv" / "versions" / "3.13.2" / "bin" / "python3.13", "3.12")
    assert find("3.13") is None
    good = program(machine / "pyenv" / "versions" / "3.13.1" / "bin" / "python3.13", "3.13")
    assert find("3.13") == good


def test_in_ci_a_missing_version_is_an_error(
    machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CI", "true")
    monkeypatch.setattr(versions, "heed_sigterm", lambda: None)
    assert versions.main([]) == 1
    assert "pyenv install 3.13" in capsys.readouterr().err


@pytest.mark.parametrize(("failing", "status"), [("nothing", 0), ("e2e", 2), ("VENV=.venv-3.13", 1)])
def test_both_runs_have_to_pass(
    machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], failing: str, status: int
) -> None:
    monkeypatch.setattr(versions, "REPOSITORY", machine)
    monkeypatch.setattr(versions, "LOG", machine / "build" / "unit.log")
    make = program(machine / "bin" / "make", "")
    make.write_text(f'#!/bin/sh\necho "output of $*"\ncase "$*" in *{failing}*) exit 2;; esac\n')
    assert versions.run(Path("/other/python"), "e2e") == status
    assert "output of unit VENV=.venv-3.13 PYTHON=/other/python" in capsys.readouterr().out
