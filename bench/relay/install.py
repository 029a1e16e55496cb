"""Installs what the servers need, from the package registries of their languages, into the cache of this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from testing.cluster.binaries import source_hash
from testing.cluster.paths import cache
from testing.cluster.progress import exclusive

HERE = Path(__file__).parent
NODE = HERE / "node"
BUILD_LIMIT_S = 2400
INSTALL_LIMIT_S = 300
COMPILE_LIMIT_S = 120

Prepare = Callable[[], list[str]]
"""Returns the command of a server, and may take minutes the first time.

Raises:
    Unavailable: with the reason.
"""


class Unavailable(RuntimeError):
    """A peer is not available on this machine; the message has the reason."""


def relay() -> list[str]:
    """Return the command of the relay."""
    # Compile first: a process that has just compiled all of its modules is a bigger one. The image has them compiled,
    # so they are kept though a variable may say to keep none.
    importing = [sys.executable, "-OO", "-c", "import userrealtime_relay.server"]
    _run(importing, limit_s=COMPILE_LIMIT_S, PYTHONDONTWRITEBYTECODE="")
    return [sys.executable, "-m", "userrealtime_relay"]


def node(script: str) -> Prepare:
    """Return a node server from the folder `node`, whose lock file pins its packages."""

    def prepare() -> list[str]:
        _require("node", "npm")
        # Not in the source tree: the packages are this machine's, not the project's.
        home = cache("bench", f"node-{source_hash(NODE)}", "package.json").parent
        with exclusive("bench-node"):
            if not (home / "node_modules" / ".package-lock.json").exists():  # npm writes this file last
                print("▸ npm ci (some seconds) …", flush=True)
                shutil.copytree(NODE, home, dirs_exist_ok=True, ignore=shutil.ignore_patterns("node_modules"))
                _run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=home, limit_s=INSTALL_LIMIT_S)
        return ["node", str(home / script)]

    return prepare


def go(module: str, package: str, *arguments: str) -> Prepare:
    """Return a program from the Go module in a folder beside this file, which pins it and its dependencies."""

    def prepare() -> list[str]:
        _require("go")
        folder = HERE / module
        binary = cache("bench", f"{module}-{source_hash(folder)}", module)
        if not binary.exists():
            print(f"▸ building {module} (a minute or two the first time) …", flush=True)
            with tempfile.TemporaryDirectory() as copy:
                # -mod=mod completes go.mod, and the source tree must not change.
                shutil.copytree(folder, copy, dirs_exist_ok=True)
                building = ["go", "build", "-mod=mod", "-trimpath", "-o", str(binary), package]
                _run(building, cwd=Path(copy), limit_s=BUILD_LIMIT_S, CGO_ENABLED="0")
        return [str(binary), *arguments]

    return prepare


def cargo(crate: str, version: str, *features: str) -> Prepare:
    """Return the program of a crate, whose own lock file pins its dependencies."""

    def prepare() -> list[str]:
        _require("cargo", "protoc")  # which the metrics of Sockudo need
        binary = cache("bench", f"{crate}-{version}", "bin", crate)
        if not binary.exists():
            print(f"▸ building {crate} (5 to 10 minutes the first time) …", flush=True)
            with tempfile.TemporaryDirectory() as target:
                building = ["cargo", "install", crate, "--version", version, "--locked", "--quiet"]
                chosen = ["--no-default-features", "--features", ",".join(features)]
                places = ["--root", str(binary.parents[1]), "--target-dir", target]
                _run([*building, *chosen, *places], limit_s=BUILD_LIMIT_S)
        return [str(binary)]

    return prepare


def _require(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        raise Unavailable(f"not installed: {', '.join(missing)}")


def _run(command: list[str], *, cwd: Path | None = None, limit_s: int, **environment: str) -> None:
    try:
        done = subprocess.run(  # noqa: S603  (commands of this module)
            command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=limit_s
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{' '.join(command[:3])} has not ended after {limit_s} s") from None
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise Unavailable(f"{' '.join(command[:3])} failed: {lines[-1] if lines else 'no output'}")
