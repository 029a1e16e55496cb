"""The unit tests on the Python of the images, beside other tests.

`python -m tests.versions` runs the unit tests on this Python at the same time, and with `--beside e2e` the end-to-end
tests. The output of the tests on the other Python goes to a file in `build`, and its summary is shown at the end. The
standard library differs between versions, TLS most of all, and users run the images; running both at the same time
costs less than a second run, since most tests wait.

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
LIMIT_S: Final = 3900.0
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


def run(other: Path, target: str) -> int:
    """Run the unit tests on another Python beside a target of the Makefile; return the exit status."""
    LOG.parent.mkdir(exist_ok=True)
    note(f"the unit tests run on {other} beside these tests; their output: {LOG.relative_to(REPOSITORY)}")
    with LOG.open("wb") as log:
        # With a lower priority and fewer workers: the cluster of the other tests needs the CPU more.
        command = ["nice", "-n", "10", "make", "unit", f"VENV={VENV}", f"PYTHON={other}", "UNIT_WORKERS=2"]
        # In a new session: the whole process group can be stopped, and Ctrl-C does not reach it.
        beside = subprocess.Popen(
            command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        here = _make(target)
        try:
            with step(f"the unit tests on Python {IMAGES_PYTHON}", usual="20 minutes, of which some are left"):
                if beside.wait(timeout=LIMIT_S) != 0:
                    raise ClusterError(f"status {beside.returncode}")
        except (ClusterError, subprocess.TimeoutExpired) as error:
            print(f"the unit tests on Python {IMAGES_PYTHON}: {error}", file=sys.stderr)
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
    parser.add_argument("--beside", default="unit", metavar="TARGET", help="of the Makefile (default: unit)")
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
        return run(other, options.beside)
    return _make(options.beside)


def _make(target: str) -> int:
    """Run a target of the Makefile; return the exit status."""
    return subprocess.run(["make", target], cwd=REPOSITORY, timeout=LIMIT_S, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
