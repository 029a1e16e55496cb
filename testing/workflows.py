"""actionlint on the workflows of GitHub (`python -m testing.workflows`).

The first time, the program is built from its Go module, in under a minute. On a machine without Go, the check is
omitted with a message, or fails if CI=true.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from .cluster.binaries import go_program
from .cluster.errors import ClusterError
from .cluster.paths import REPOSITORY, cache

ACTIONLINT: Final = "1.7.12"
# Only what is part of the program: these two would be used if they happened to be installed.
OPTIONS: Final = ("-shellcheck=", "-pyflakes=")
LIMIT_S: Final = 60


def _place() -> Path:
    return cache("bin", f"actionlint-{ACTIONLINT}-{platform.machine()}", "actionlint")


def program() -> Path:
    """Return actionlint.

    Raises:
        ClusterError: it cannot be built.
    """
    package = "github.com/rhysd/actionlint/cmd/actionlint"
    return go_program("actionlint", ACTIONLINT, package, usual="under a minute")


def check(workflows: Iterable[Path]) -> str:
    """Return what actionlint reports about files; nothing if all of them are valid.

    Raises:
        ClusterError: the program cannot be built, or fails.
    """
    command = [str(program()), "-oneline", "-no-color", *OPTIONS, *sorted(map(str, workflows))]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    if done.returncode not in (0, 1):
        raise ClusterError(f"actionlint failed with status {done.returncode}: {done.stderr}")
    return done.stdout


def main() -> int:
    """Print what actionlint reports; return the exit status."""
    if shutil.which("go") is None and os.environ.get("CI") != "true" and not _place().exists():
        print("the workflows are not checked: actionlint is built with Go, which is not installed", file=sys.stderr)
        return 0
    try:
        found = check((REPOSITORY / ".github" / "workflows").glob("*.yml"))
    except ClusterError as error:
        found = f"{error}\n"
    print(found, end="", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
