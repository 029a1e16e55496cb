"""The tests of the schema and of its rights on another version of PostgreSQL than 18.

`python -m tests.postgres 15` (`make unit-postgres-15`) runs them on the server of the Debian package `postgresql-15`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from testing.cluster.paths import REPOSITORY
from testing.local.postgres import PROGRAMS

FOLDER: Final = Path("/usr/lib/postgresql")
"""The folder of Debian and Ubuntu with the installed versions."""
TESTS: Final = ("tests/log", "tests/security", "tests/operator/postgres", "tests/relay/test_log.py")
LIMIT_S: Final = 1800.0
# The status of pytest without a test, and that of a missing program.
MISSING: Final = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tests; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.postgres", description=__doc__)
    parser.add_argument("version", help="the major version, such as 15")
    version = parser.parse_args(arguments).version
    programs = FOLDER / version
    if not (programs / "bin" / "initdb").is_file():
        print(
            f"nothing was tested: there is no PostgreSQL {version} in {programs}. "
            f"Install the package postgresql-{version} (Debian 12 has 15, Ubuntu 24.04 has 16).",
            file=sys.stderr,
        )
        return MISSING
    command = [sys.executable, "-m", "pytest", "--numprocesses", "2", "--dist", "worksteal", *TESTS]
    environment = {**os.environ, PROGRAMS: str(programs)}
    return subprocess.run(command, cwd=REPOSITORY, env=environment, timeout=LIMIT_S, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
