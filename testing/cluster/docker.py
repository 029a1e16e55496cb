"""The Docker engine of this machine: whether it can be used, and the environment its commands run in.

Docker Desktop, rootless Docker, and engines with the API of Docker (Colima, OrbStack, Rancher Desktop) are one case:
the `docker` command answers. What cannot work is reported before anything is created, with what to do about it.
"""

import json
import os
import re
import shutil
import subprocess
import tempfile
from functools import cache as cached
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .paths import cache

# Docker Desktop may take this long to resume.
ANSWER_LIMIT = 30.0
INSTALL_DOCKER = "https://docs.docker.com/engine/install/"
# Up to this version the command line brings its own BuildKit; later ones need the plugin buildx.
LAST_WITH_BUILDKIT = (22, 0)
# Variables that would make images for another platform, in another engine, or nodes with another program.
IGNORED = ("DOCKER_DEFAULT_PLATFORM", "BUILDX_BUILDER", "KIND_EXPERIMENTAL_PROVIDER")

IS_PODMAN = (
    f"`docker` is Podman here, which this project does not support: install a Docker engine ({INSTALL_DOCKER}), or "
    "set KUBECONFIG to a cluster of yours"
)
NO_BUILDX = (
    "docker has no buildx, which builds the images: install the package docker-buildx (Debian, Ubuntu, Homebrew) or "
    "docker-buildx-plugin (Docker's own packages)"
)
IS_SNAP = (
    "docker is the snap package, which reads no hidden directory and not /tmp: install Docker's own packages "
    f"({INSTALL_DOCKER}), or set TMPDIR and XDG_CACHE_HOME to directories below your home directory that are not hidden"
)
ROOTLESS_OLD_CGROUPS = (
    "rootless Docker runs a cluster with cgroup v2 only: start this machine with it "
    "(https://kind.sigs.k8s.io/docs/user/rootless/), or use Docker with root rights"
)
ROOTLESS_LIMITED = (
    "rootless Docker may not limit CPU, memory and processes: delegate these controllers to users "
    "(https://kind.sigs.k8s.io/docs/user/rootless/)"
)


def environment() -> dict[str, str]:
    """Return the environment for `docker` and kind: images of the engine's platform, built by its BuildKit."""
    kept = {name: value for name, value in os.environ.items() if name not in IGNORED}
    # Without attestations an archive holds a plain manifest, which every version of containerd imports.
    return {**kept, "DOCKER_BUILDKIT": "1", "BUILDX_NO_DEFAULT_ATTESTATIONS": "1"}


def answers() -> bool:
    """Return whether a usable Docker engine answers."""
    return bool(shutil.which("docker")) and not unusable()


@cached
def unusable() -> str:
    """Return why the installed `docker` cannot be used, with advice; empty if it can.

    The result is cached for the life of the process.
    """
    try:
        if "podman" in _docker("--version").stdout.lower():
            return IS_PODMAN
        done = _docker("version", "--format", "{{json .}}")
    except subprocess.TimeoutExpired:
        return f"docker does not answer within {ANSWER_LIMIT:.0f} s: restart the Docker engine"
    except OSError as error:
        return f"docker does not start ({error.strerror}): install it again ({INSTALL_DOCKER})"
    return flaw_of_version(done.stdout, done.stderr)


def flaw_of_version(output: str, errors: str) -> str:
    """Return the problem in an answer of `docker version --format '{{json .}}'`; empty if there is none."""
    server = _object(output).get("Server") or {}
    # Docker's own command line in front of Podman's socket.
    if any("podman" in part.get("Name", "").lower() for part in server.get("Components") or []):
        return IS_PODMAN
    if server:
        return ""
    reason = (errors.strip() or output.strip()).splitlines()
    said = reason[-1] if reason else "it reports nothing"
    if "permission denied" in errors:
        return (
            "your user may not use the Docker engine (permission denied): run `sudo usermod -aG docker $USER`, log out "
            "and in again, and repeat this command"
        )
    return f"docker is installed, but its engine does not answer: start it, or Docker Desktop ({said})"


def problems() -> list[str]:
    """Return the problems of a kind cluster in this engine, each with advice; the engine answers."""
    found = [buildx_problem(), *_placement_problems()]
    try:
        found.append(flaw_of_info(_docker("info", "--format", "{{json .}}").stdout))
    except subprocess.TimeoutExpired:
        found.append(f"`docker info` does not answer within {ANSWER_LIMIT:.0f} s: restart the Docker engine")
    return [problem for problem in found if problem]


def buildx_problem() -> str:
    """Return why images cannot be built with BuildKit; empty if they can."""
    try:
        if client_version(_docker("--version").stdout) <= LAST_WITH_BUILDKIT:
            return ""
        return NO_BUILDX if _docker("buildx", "version").returncode else ""
    except subprocess.TimeoutExpired:
        return f"`docker buildx version` does not answer within {ANSWER_LIMIT:.0f} s"


def client_version(text: str) -> tuple[int, int]:
    """Parse `Docker version 28.2.2, build e6534b4` as (28, 2); an unreadable version counts as recent."""
    found = re.search(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (1000, 0)


def flaw_of_info(output: str) -> str:
    """Return the problem of a kind node in an answer of `docker info --format '{{json .}}'`; empty if there is none."""
    info = _object(output)
    if not any("name=rootless" in option for option in info.get("SecurityOptions") or []):
        return ""
    if info.get("CgroupVersion") != "2":
        return ROOTLESS_OLD_CGROUPS
    limits = ("MemoryLimit", "PidsLimit", "CPUShares")
    return "" if all(info.get(limit) for limit in limits) else ROOTLESS_LIMITED


def is_remote(endpoint: str) -> bool:
    """Return whether an engine's address, such as `ssh://build@example.com`, is on another machine."""
    parts = urlsplit(endpoint)
    return parts.scheme in ("tcp", "ssh", "http", "https") and parts.hostname not in ("localhost", "127.0.0.1", "::1")


def hidden_from_snap(directory: Path, home: Path) -> bool:
    """Return whether a program in a snap cannot read `directory`: it is not below `home`, or hidden there."""
    directory, home = directory.resolve(), home.resolve()
    if not directory.is_relative_to(home):
        return True
    return any(part.startswith(".") for part in directory.relative_to(home).parts[:1])


def _placement_problems() -> list[str]:
    found = []
    try:
        endpoint = _docker("context", "inspect", "--format", "{{.Endpoints.docker.Host}}").stdout.strip()
    except subprocess.TimeoutExpired:
        endpoint = ""
    if is_remote(endpoint):
        found.append(
            f"the Docker engine is on another machine ({urlsplit(endpoint).hostname}), where the ports of a cluster "
            "would open: choose an engine of this machine with `docker context use`, or unset DOCKER_HOST"
        )
    program = Path(shutil.which("docker") or "docker")
    if program.is_relative_to("/snap") or program.resolve().name == "snap":
        used = (Path(tempfile.gettempdir()), cache())
        if any(hidden_from_snap(directory, Path.home()) for directory in used):
            found.append(IS_SNAP)
    return found


def _docker(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["docker", *arguments],
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=ANSWER_LIMIT,
    )


def _object(text: str) -> dict[str, Any]:
    """Return the JSON object that is a whole line of `text`; empty if there is none."""
    for line in text.splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            return found
    return {}
