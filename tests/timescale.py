"""The tests of the trigger on hypertables, on a TimescaleDB that is built from its sources.

`python -m tests.timescale SOURCES` needs CMake and a C compiler. It builds the checkout of TimescaleDB in the folder
SOURCES for the PostgreSQL that the tests use, which takes about 10 minutes, and runs tests/log/test_timescale.py. A
later run builds only what has changed. As root, SOURCES must be readable for all users, because the server runs as one
without rights.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from unittest import mock

from testing.cluster.paths import REPOSITORY
from testing.local.postgres import PROGRAMS, LocalPostgres, packaged_programs

TESTS: Final = "tests/log/test_timescale.py"
VARIABLE: Final = "TIMESCALE_DATABASE_URL"
BUILD: Final = "build-userrealtime"
"""The folder in SOURCES with the build, and with the copy of PostgreSQL in which TimescaleDB is installed."""
OPTIONS: Final = {
    "CMAKE_BUILD_TYPE": "Release",
    "GENERATE_DOWNGRADE_SCRIPT": "OFF",
    "REGRESS_CHECKS": "OFF",
    "SEND_TELEMETRY_DEFAULT": "OFF",
    # Against libraries that belong to the copy of PostgreSQL, and headers of another version.
    "USE_OPENSSL": "0",
    "WARNINGS_AS_ERRORS": "OFF",
}
LIMIT_S: Final = 3600.0
MISSING: Final = 5


def install(sources: Path) -> Path:
    """Build TimescaleDB and install it into a copy of PostgreSQL; return the folder of the copy.

    Raises:
        subprocess.CalledProcessError: the build fails; its output is on the terminal.
    """
    build, packaged = sources / BUILD, packaged_programs()
    package = build / "postgres" / packaged.parent.name
    programs = package / packaged.name
    if not programs.exists():
        libraries = packaged.parent.with_name(f"{packaged.parent.name}.libs")
        if libraries.exists():
            shutil.copytree(libraries, package.with_name(libraries.name))
        shutil.copytree(packaged, programs)
    options = {"PG_CONFIG": str(programs / "bin" / "pg_config"), **OPTIONS}
    for command in (
        ["cmake", "-S", str(sources), "-B", str(build), *(f"-D{name}={value}" for name, value in options.items())],
        ["make", "-C", str(build), "install"],
    ):
        subprocess.run(command, timeout=LIMIT_S, check=True)
    return programs


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tests; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.timescale", description=__doc__)
    parser.add_argument("sources", type=Path, help="a checkout of https://github.com/timescale/timescaledb")
    sources = parser.parse_args(arguments).sources.resolve()
    if not (sources / "timescaledb.control.in").is_file():
        print(f"nothing was tested: {sources} is no checkout of TimescaleDB", file=sys.stderr)
        return MISSING
    if absent := [name for name in ("cmake", "make", "gcc") if shutil.which(name) is None]:
        print(f"nothing was tested: install {', '.join(absent)} to build TimescaleDB", file=sys.stderr)
        return MISSING
    programs = install(sources)
    with (
        mock.patch.dict(os.environ, {PROGRAMS: str(programs)}),
        LocalPostgres(settings={"shared_preload_libraries": "timescaledb"}) as server,
    ):
        command = [sys.executable, "-m", "pytest", "--numprocesses", "0", TESTS]
        environment = {**os.environ, VARIABLE: server.url()}
        return subprocess.run(command, cwd=REPOSITORY, env=environment, timeout=LIMIT_S, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
