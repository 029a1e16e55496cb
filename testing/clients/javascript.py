"""Packages from npm: the JavaScript client, packed and installed as in an application, and those of other systems."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

from testing.skipping import skip

from .fixture import ROOT

SOURCE: Final = ROOT / "clients" / "js"
LIMIT_S: Final = 300


def program(name: str, package: str) -> str:
    """Return the path of a program. Without it, the test is skipped, or fails if CI=true."""
    found = shutil.which(name)
    if found is None:
        skip(f"{name} is not installed, so clients are not tested: apt-get install {package}")
    return found


def run(*command: str, folder: Path) -> str:
    """Run a command and return its output.

    Raises:
        AssertionError: it failed; the message has its output.
    """
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def install_locked(source: Path, folder: Path) -> Path:
    """Copy a folder with a package-lock.json to a new one, install its packages there, and return it."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("node_modules"))
    install_packages(folder)
    return folder


def install_packages(folder: Path) -> None:
    """Install the packages of a package-lock.json."""
    run(program("npm", "npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund", folder=folder)


def install(home: Path) -> Path:
    """Return the folder of an application with the client's tarball, `ws` and the tests, outside of the source tree."""
    npm = program("npm", "npm")
    source = home / "source"
    shutil.copytree(SOURCE, source, ignore=shutil.ignore_patterns("node_modules", "dist"))
    run(npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", folder=source)
    tarball = run(npm, "pack", "--silent", folder=source).split()[-1]
    application = home / "application"
    application.mkdir()
    (application / "package.json").write_text('{"private": true, "type": "module"}')
    packages = (str(source / tarball), str(source / "node_modules" / "ws"))
    run(npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--install-links", *packages, folder=application)
    shutil.copytree(source / "test", application / "test")
    (source / "dist").rename(application / "dist")  # the modules that the tests import
    return application
