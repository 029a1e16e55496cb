"""actionlint on the workflows of GitHub (`python -m testing.workflows`).

The first time, the program is built from its Go module, in under a minute.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Final

from .cluster.binaries import cached, go_install
from .cluster.errors import ClusterError
from .cluster.paths import REPOSITORY

ACTIONLINT: Final = "1.7.12"
# Only what is part of the program: these two would be used if they happened to be installed.
OPTIONS: Final = ("-shellcheck=", "-pyflakes=")
LIMIT_S: Final = 60


def check() -> str:
    """Return what actionlint reports; nothing if all workflows are valid.

    Raises:
        ClusterError: the program cannot be built.
    """
    program = cached(
        "actionlint",
        ACTIONLINT,
        f"building actionlint {ACTIONLINT}",
        lambda step, out: go_install(step, f"github.com/rhysd/actionlint/cmd/actionlint@v{ACTIONLINT}", out),
        usual="under a minute",
    )
    workflows = sorted(map(str, (REPOSITORY / ".github" / "workflows").glob("*.yml")))
    command = [str(program), "-oneline", "-no-color", *OPTIONS, *workflows]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    if done.returncode not in (0, 1):
        raise ClusterError(f"actionlint failed with status {done.returncode}: {done.stderr}")
    return done.stdout


def main() -> int:
    """Print what actionlint reports; return the exit status."""
    try:
        found = check()
    except ClusterError as error:
        found = f"{error}\n"
    print(found, end="", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
