"""A PostgreSQL as durable as in production, for benchmarks: `fsync` and `full_page_writes` on, and a chosen flush time.

The flush time matters more than anything else to what publishing costs, and differs from machine to machine. So a small
library, loaded into the server, replaces `fdatasync` by a wait of the chosen length.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from testing.local.postgres import LocalPostgres

DEFAULT_FLUSH_MS: Final = 2.0
"""Similar to a network disk in a cloud."""
SETTINGS: Final = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "wal_sync_method": "fdatasync",
}
SOURCE: Final = """
#include <stdlib.h>
#include <time.h>

/* The wait is requested by the server's environment, in microseconds. */
int fdatasync(int descriptor) {
    const char *text = getenv("BENCH_FLUSH_US");
    long microseconds = text ? atol(text) : 0;
    struct timespec wait = {microseconds / 1000000, microseconds % 1000000 * 1000};
    (void) descriptor;
    if (microseconds > 0) nanosleep(&wait, 0);
    return 0;
}
"""


class NoCompilerError(RuntimeError):
    """No C compiler is available to build the library."""


@contextmanager
def durable_postgres(
    flush_ms: float = DEFAULT_FLUSH_MS, settings: Mapping[str, str] | None = None
) -> Iterator[LocalPostgres]:
    """Run a server whose WAL flush takes `flush_ms` milliseconds.

    Raises:
        NoCompilerError: neither cc nor gcc is installed.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise NoCompilerError("the benchmark needs a C compiler for its slow disk: install gcc")
    with tempfile.TemporaryDirectory(prefix="userrealtime-flush-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # the server runs as another user
        source, library = folder / "flush.c", folder / "flush.so"
        source.write_text(SOURCE)
        command = [compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(source)]
        subprocess.run(command, check=True, timeout=60)  # noqa: S603 (its own source)
        library.chmod(0o755)
        environment = {"LD_PRELOAD": str(library), "BENCH_FLUSH_US": str(round(flush_ms * 1000))}
        with LocalPostgres(settings={**SETTINGS, **(settings or {})}, environment=environment) as server:
            yield server


def machine() -> str:
    """Return the description of the machine for the output of a benchmark."""
    return f"{platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"


def described(flush_ms: float) -> str:
    """Return the description of the disk for the output of a benchmark."""
    return f"fsync and full_page_writes on, a WAL flush of {flush_ms:g} ms"
