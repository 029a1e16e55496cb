"""A real PgBouncer (Debian's package) in front of a test's PostgreSQL, on loopback."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg

from testing.local.ports import free_port
from testing.local.postgres import UNPRIVILEGED_ID
from testing.relay.harness import PATIENCE_S
from testing.skipping import skip


def program() -> str:
    """Return the path of pgbouncer. Without it, the test is skipped, or fails if CI=true."""
    found = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        skip("PgBouncer is not installed, so nothing is tested behind a pooler: apt-get install pgbouncer")
    return found


@asynccontextmanager
async def pgbouncer(url: str, mode: str, pki: Path | None = None) -> AsyncIterator[str]:
    """Run a pooler in the mode "transaction" or "session"; yield the URL of the same database through it.

    With `pki`, a folder that `testing.cluster.local.pki` made for the identity `server`, it accepts only TLS.
    """
    parts = urlsplit(url)
    port = free_port()
    home = Path(tempfile.mkdtemp(prefix="userrealtime-pgbouncer-"))
    try:
        settings = home / "pgbouncer.ini"
        files = [settings]
        tls = ""
        if pki is not None:
            files += [Path(shutil.copy(pki / name, home)) for name in ("server.crt", "server.key")]
            tls = f"client_tls_sslmode = require\nclient_tls_cert_file = {files[1]}\nclient_tls_key_file = {files[2]}\n"
        settings.write_text(
            f"[databases]\n* = host={parts.hostname} port={parts.port} user={parts.username}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
            f"auth_type = any\npool_mode = {mode}\ndefault_pool_size = 5\nlogfile = {home}/log\n{tls}"
        )
        as_root = os.geteuid() == 0
        if as_root:  # it refuses to run as root
            for path in (home, *files):
                os.chown(path, UNPRIVILEGED_ID, UNPRIVILEGED_ID)
        process = await asyncio.create_subprocess_exec(
            program(),
            "-q",
            str(settings),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            cwd="/",
            user=UNPRIVILEGED_ID if as_root else None,
            group=UNPRIVILEGED_ID if as_root else None,
            extra_groups=[] if as_root else None,
        )
        try:
            pooled = parts._replace(netloc=f"{parts.username}@127.0.0.1:{port}").geturl()
            await _answers(pooled, process, home / "log")
            yield pooled
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
    finally:
        shutil.rmtree(home)


async def _answers(url: str, process: asyncio.subprocess.Process, log: Path) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                connection = await asyncpg.connect(url, statement_cache_size=0)
            except OSError:
                assert process.returncode is None, f"pgbouncer ended; its output: {_said(log)}"
                await asyncio.sleep(0.02)
                continue
            await connection.close()
            return


def _said(log: Path) -> str:
    return log.read_text() if log.exists() else "nothing"
