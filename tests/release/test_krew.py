"""The plugin for krew: its manifest, and its program with uv or pipx in a folder of the PATH."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

import pytest
import yaml

from release import krew
from release.project import Project

PROJECT: Final = Project("Example-Org", "userrealtime")
PACKAGE: Final = "userrealtime[cli]==1.2.3"
TIMEOUT_S: Final = 60


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / krew.PROGRAM
    path.write_text(krew.program("1.2.3"))
    path.chmod(0o755)
    return path


def run(plugin: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", str(plugin), *arguments],
        env={"PATH": str(plugin.parent)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


@pytest.mark.parametrize(
    ("installed", "expected"),
    [
        (["uvx"], f"uvx --quiet --from {PACKAGE}"),
        (["pipx"], f"pipx run --spec {PACKAGE}"),
        (["uvx", "pipx"], f"uvx --quiet --from {PACKAGE}"),
    ],
    ids="+".join,
)
def test_the_program_runs_the_package_of_its_version(plugin: Path, installed: list[str], expected: str) -> None:
    for name in installed:
        program = plugin.with_name(name)
        program.write_text(f'#!/bin/sh\necho {name} "$@"\n')
        program.chmod(0o755)
    done = run(plugin, "token", "a user")
    assert (done.returncode, done.stdout) == (0, f"{expected} kubectl-userrealtime token a user\n")


def test_without_uv_and_pipx_it_reports_what_to_install(plugin: Path) -> None:
    done = run(plugin)
    assert done.returncode == 127
    assert "install uv (https://docs.astral.sh/uv) or pipx" in done.stderr


def test_the_manifest() -> None:
    found = yaml.safe_load(krew.manifest(PROJECT, "1.2.3", "0" * 64))
    assert found["metadata"] == {"name": "userrealtime"}
    assert found["spec"]["version"] == "v1.2.3"
    [platform] = found["spec"]["platforms"]
    assert platform["uri"] == f"{PROJECT.url}/releases/download/v1.2.3/kubectl-userrealtime-1.2.3.tar.gz"
    assert platform["sha256"] == "0" * 64


def test_the_summary_is_as_short_as_krew_requires() -> None:
    assert len(krew.SUMMARY) <= 50
