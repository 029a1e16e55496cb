"""The unit tests on two versions of Python at the same time: this one, and the one of the images.

`python -m tests.versions` shows the tests on this Python. The output of the other tests goes to a file in `build`, and
its summary is shown at the end. The standard library differs between versions, TLS most of all, and users run the
images; a second process costs less time than a second run, since most tests wait.

`python -m tests.versions --find` prints the path of the other Python.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from testing.cluster.errors import ClusterError
from testing.cluster.images import DEBIAN_PYTHON as IMAGES_PYTHON
from testing.cluster.paths import REPOSITORY
from testing.cluster.progress import heed_sigterm, note, step

LOG: Final = REPOSITORY / "build" / f"unit-{IMAGES_PYTHON}.log"
VENV: Final = f".venv-{IMAGES_PYTHON}"
LIMIT_S: Final = 3600.0
SUMMARY_LINES: Final = 30
MISSING: Final = (
    f"the unit tests do not run on Python {IMAGES_PYTHON}, the version in the images: "
    f"there is no python{IMAGES_PYTHON} on PATH, nor in pyenv (pyenv install {IMAGES_PYTHON})"
)


def candidates(version: str) -> Iterator[Path]:
    """Yield the programs that may be a Python of this version: on PATH, then in pyenv, the newest release first."""
    if found := shutil.which(f"python{version}"):
        yield Path(found)
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    releases = root.glob(f"versions/{version}.*/bin/python{version}")
    yield from sorted(releases, key=lambda path: [part.zfill(4) for part in path.parts[-3].split(".")], reverse=True)


def find(version: str) -> Path | None:
    """Return a Python of this version that works and can make environments; None if there is none.

    A program on PATH may be a shim of pyenv, which prints where that version is and fails.
    """
    probe = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"
    for path in candidates(version):
        done = subprocess.run([path, "-c", probe], capture_output=True, text=True, timeout=60, check=False)
        if done.returncode == 0 and done.stdout.strip() == version:
            return path
    return None


def run(other: Path) -> int:
    """Run the tests on both versions; return the exit status."""
    LOG.parent.mkdir(exist_ok=True)
    note(f"the same tests run on {other} beside these; their output: {LOG.relative_to(REPOSITORY)}")
    with LOG.open("wb") as log:
        command = ["make", "unit", f"VENV={VENV}", f"PYTHON={other}"]
        # In a new session: the whole process group can be stopped, and Ctrl-C does not reach it.
        beside = subprocess.Popen(
            command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        here = _unit()
        try:
            with step(f"the tests on Python {IMAGES_PYTHON}", usual="as long as those before"):
                if beside.wait(timeout=LIMIT_S) != 0:
                    raise ClusterError(f"status {beside.returncode}")
        except (ClusterError, subprocess.TimeoutExpired) as error:
            print(f"the tests on Python {IMAGES_PYTHON}: {error}", file=sys.stderr)
            here = here or 1
    finally:
        if beside.poll() is None:
            os.killpg(beside.pid, signal.SIGTERM)
            beside.wait(timeout=60)
    # All of it where something failed: there is no other place to read it in CI.
    lines = LOG.read_text(errors="replace").splitlines()
    print("\n".join(lines[-SUMMARY_LINES:] if beside.returncode == 0 else lines))
    return here


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.versions", description="Unit tests on two Python versions.")
    parser.add_argument("--find", action="store_true", help=f"print the path of a Python {IMAGES_PYTHON}, and end")
    options = parser.parse_args(arguments)
    heed_sigterm()
    other = find(IMAGES_PYTHON)
    if other is None:
        print(MISSING, file=sys.stderr)
        if options.find or os.environ.get("CI") == "true":
            return 1
    elif options.find:
        print(other)
        return 0
    elif f"{sys.version_info.major}.{sys.version_info.minor}" != IMAGES_PYTHON:
        return run(other)
    return _unit()


def _unit() -> int:
    """Run the unit tests on this Python; return the exit status."""
    return subprocess.run(["make", "unit"], cwd=REPOSITORY, timeout=LIMIT_S, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
