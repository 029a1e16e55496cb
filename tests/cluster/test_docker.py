"""The messages for a Docker engine that cannot be used, with the answers of real engines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from testing.cluster import docker

SERVER = json.dumps({"Client": {"Version": "29.0.0"}, "Server": {"Version": "29.0.0", "Components": []}})
NO_SERVER = json.dumps({"Client": {"Version": "28.2.2"}, "Server": None})
ROOTLESS = {"SecurityOptions": ["name=seccomp,profile=builtin", "name=rootless", "name=cgroupns"]}
LIMITS = {"MemoryLimit": True, "PidsLimit": True, "CPUShares": True}


def test_an_engine_that_answers_is_used() -> None:
    assert docker.flaw_of_version(SERVER, "") == ""


@pytest.mark.parametrize(
    ("output", "errors", "advice"),
    [
        (
            NO_SERVER,
            "permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock",
            "usermod -aG docker",
        ),
        (
            NO_SERVER,
            "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?",
            "start it, or Docker Desktop",
        ),
        (
            "The command 'docker' could not be found in this WSL 2 distro.\nActivate the WSL integration.\n",
            "",
            "Activate the WSL integration",
        ),
        (json.dumps({"Server": {"Components": [{"Name": "Podman Engine"}]}}), "", "is Podman"),
        ("", "", "reports nothing"),
    ],
)
def test_an_engine_that_cannot_be_used(output: str, errors: str, advice: str) -> None:
    flaw = docker.flaw_of_version(output, errors)
    assert advice in flaw
    assert "\n" not in flaw


def program(directory: Path, text: str) -> Path:
    path = directory / "docker"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_podmans_docker_is_recognized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "echo podman version 4.3.1")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert docker.unusable() == docker.IS_PODMAN
    assert not docker.answers()


def test_an_engine_that_is_silent_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "exec sleep 60")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(docker, "ANSWER_LIMIT", 0.1)
    assert "does not answer" in docker.unusable()


def test_without_docker_nothing_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not docker.answers()


@pytest.mark.parametrize(
    ("version", "needed"),
    [
        ("Docker version 20.10.24+dfsg1, build 297e128", False),
        ("Docker version 23.0.0, build e92dd87", True),
        ("Docker version 28.2.2, build e6534b4", True),
        ("of no known form", True),
    ],
)
def test_command_lines_without_a_buildkit_of_their_own_need_buildx(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, needed: bool
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    program(tmp_path, f'[ "$1" = --version ] || exit 1; echo "{version}"')
    assert docker.buildx_problem() == (docker.NO_BUILDX if needed else "")
    program(tmp_path, f'[ "$1" = --version ] && echo "{version}"; exit 0')
    assert docker.buildx_problem() == ""


@pytest.mark.parametrize(
    ("info", "flaw"),
    [
        ({}, ""),
        ({"SecurityOptions": None, "CgroupVersion": "1"}, ""),
        ({**ROOTLESS, **LIMITS, "CgroupVersion": "2"}, ""),
        ({**ROOTLESS, **LIMITS, "CgroupVersion": "1"}, docker.ROOTLESS_OLD_CGROUPS),
        ({**ROOTLESS, **LIMITS, "CgroupVersion": "2", "PidsLimit": False}, docker.ROOTLESS_LIMITED),
    ],
)
def test_rootless_docker_needs_control_over_resources(info: dict[str, object], flaw: str) -> None:
    assert docker.flaw_of_info(json.dumps(info)) == flaw


@pytest.mark.parametrize(
    ("endpoint", "remote"),
    [
        ("unix:///var/run/docker.sock", False),
        ("npipe:////./pipe/docker_engine", False),
        ("tcp://127.0.0.1:2375", False),
        ("tcp://build.example.com:2376", True),
        ("ssh://me@build.example.com", True),
        ("", False),
    ],
)
def test_engines_of_other_machines(endpoint: str, remote: bool) -> None:
    assert docker.is_remote(endpoint) is remote


def test_a_remote_engine_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, 'case "$1" in context) echo ssh://me@build.example.com;; info) echo "{}";; esac')
    monkeypatch.setenv("PATH", str(tmp_path))
    [problem] = docker.problems()
    assert "build.example.com" in problem
    assert "docker context use" in problem


def test_a_snap_reads_what_is_not_hidden(tmp_path: Path) -> None:
    home = tmp_path / "home"
    for name in (".cache", "work", "work/.cache"):
        (home / name).mkdir(parents=True)
    assert docker.hidden_from_snap(tmp_path / "elsewhere", home)
    assert docker.hidden_from_snap(home / ".cache" / "userrealtime", home)
    assert not docker.hidden_from_snap(home / "work", home)
    assert not docker.hidden_from_snap(home / "work" / ".cache", home)


def test_dockers_snap_is_told_which_directories_to_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As snapd installs commands: links to its own program.
    snap = tmp_path / "snap"
    snap.write_text('#!/bin/sh\ncase "$1" in info) echo "{}";; esac\n')
    snap.chmod(0o755)
    (tmp_path / "docker").symlink_to(snap)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert docker.problems() == [docker.IS_SNAP]


def test_settings_for_other_builds_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_DEFAULT_PLATFORM", "linux/amd64")
    monkeypatch.setenv("BUILDX_BUILDER", "remote")
    monkeypatch.setenv("KIND_EXPERIMENTAL_PROVIDER", "podman")
    environment = docker.environment()
    assert not {"DOCKER_DEFAULT_PLATFORM", "BUILDX_BUILDER", "KIND_EXPERIMENTAL_PROVIDER"} & environment.keys()
    assert environment["DOCKER_BUILDKIT"] == "1"
