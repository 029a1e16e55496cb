"""The servers under test, each as a separate process with the same Postgres.

A peer that is not available here is reported with the reason: `Unavailable`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import asyncpg
import jwt

from testing.local.ports import free_port

from . import dialects, install, publishers
from .client import Dialect
from .dialects import APP, KEY, PROTOCOLS
from .install import Prepare, Unavailable
from .publishers import Publish, Publisher

START_LIMIT_S = 120
AS_IN_ITS_IMAGE = {"PYTHONOPTIMIZE": "2"}
OURS = "userrealtime"


@dataclass(frozen=True)
class Server:
    """A running server."""

    name: str
    port: int
    pid: int
    dialect: Dialect
    push: Publish | None
    """Publishes events to a server that does not read the log itself."""

    def rss_mib(self) -> float:
        """Return the resident memory in MiB."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        kib = next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1]
        return int(kib) / 1024


@dataclass(frozen=True)
class Peer:
    """One server."""

    name: str
    prepare: Prepare
    environment: Callable[[int, str, str], dict[str, str]]
    """Returns its environment, from port, database URL and user."""
    dialect: Dialect
    resumes: bool = False
    """Whether it sends missed events from Postgres."""
    push: Publisher | None = None
    timed: bool = True
    """Whether latencies are measured as well, rather than memory and fan-out alone."""


def _relay(protocol: str | None = None) -> Callable[[int, str, str], dict[str, str]]:
    """Return a function that returns the environment of a relay, which serves a protocol in addition to its own."""
    return lambda port, url, user: {
        "USER_ID": user,
        "DATABASE_URL": url,
        "TOKEN_KEY": KEY,
        "HOST": "127.0.0.1",
        "WS_PORT": str(port),
        "HEALTH_PORT": "0",
        "MAX_CONNECTIONS": "2000",
        "LOG_LEVEL": "warning",
        **({} if protocol is None else {"PROTOCOLS": protocol}),
        **AS_IN_ITS_IMAGE,
    }


def _node(port: int, url: str, user: str) -> dict[str, str]:
    return {"PORT": str(port), "DATABASE_URL": url, "USER_ID": user}


def through(protocol: str) -> str:
    """Return the name of the relay that serves a protocol."""
    return f"{OURS}:{protocol}"


NATIVE = (
    Peer(OURS, install.relay, _relay(), dialects.USERREALTIME, resumes=True),
    Peer("ws", install.node("ws.mjs"), _node, dialects.WS, resumes=True),
    Peer("Socket.IO", install.node("socketio.mjs"), _node, dialects.SOCKET_IO, resumes=True),
    Peer(
        "Centrifugo",
        install.go("centrifugo", "github.com/centrifugal/centrifugo/v5", "--client_insecure", "--log_level=error"),
        lambda port, url, user: {
            "CENTRIFUGO_PORT": str(port),
            "CENTRIFUGO_ADDRESS": "127.0.0.1",
            "CENTRIFUGO_API_KEY": KEY,
            "CENTRIFUGO_ALLOW_SUBSCRIBE_FOR_CLIENT": "true",
            "CENTRIFUGO_CLIENT_QUEUE_MAX_SIZE": str(256 << 20),
        },
        dialects.CENTRIFUGO,
        push=publishers.centrifugo,
    ),
    Peer(
        "AnyCable",
        install.go(
            "anycable",
            "github.com/anycable/anycable-go/cmd/anycable-go",
            "--public",
            "--norpc",
            "--broadcast_adapter=http",
            "--log_level=error",
        ),
        lambda port, url, user: {
            "ANYCABLE_PORT": str(port),
            "ANYCABLE_HTTP_BROADCAST_PORT": str(port),
            "ANYCABLE_DISABLE_TELEMETRY": "true",
        },
        dialects.ACTION_CABLE,
        push=publishers.anycable,
    ),
)
"""The relay with its own protocol, and what it is compared with."""
FOREIGN = (
    Peer(
        "Sockudo",
        install.cargo("sockudo", "5.2.0", "local"),
        lambda port, url, user: {
            "HOST": "127.0.0.1",
            "PORT": str(port),
            "METRICS_ENABLED": "false",
            "RATE_LIMITER_ENABLED": "false",
            "SOCKUDO_DEFAULT_APP_ID": APP,
            "SOCKUDO_DEFAULT_APP_KEY": APP,
            "SOCKUDO_DEFAULT_APP_SECRET": KEY,
            "SOCKUDO_DEFAULT_APP_MAX_CONNECTIONS": "2000",
            "SOCKUDO_DEFAULT_APP_MAX_BACKEND_EVENTS_PER_SECOND": "1000000",
            "RUST_LOG": "error",
        },
        dialects.PUSHER,
        push=publishers.sockudo,
        timed=False,
    ),
    Peer(
        "durable-streams",
        install.node("durable-streams.mjs"),
        _node,
        dialects.DURABLE_STREAMS,
        push=publishers.durable_streams,
        timed=False,
    ),
)
"""The other protocols' own servers that `NATIVE` does not have."""
PEERS = (
    *NATIVE,
    *FOREIGN,
    *(
        Peer(through(protocol.name), install.relay, _relay(protocol.name), protocol.dialect, timed=False)
        for protocol in PROTOCOLS
    ),
)
ABSENT = {
    "Soketi": "npm cannot install it: its server, uWebSockets.js, is on GitHub alone",
    "Supabase Realtime": "it is built with Elixir and packages from Hex, which this benchmark does not install",
}


def bearer(user: str) -> dict[str, str]:
    """Return the header with a token. Servers without tokens ignore it."""
    token = jwt.encode({"sub": user, "exp": int(time.time()) + 24 * 3600}, KEY, algorithm="HS256")
    return {"Authorization": f"Bearer {token}"}


@contextlib.asynccontextmanager
async def running(peer: Peer, command: list[str], url: str, user: str, cpu: int | None) -> AsyncIterator[Server]:
    """Run the server of a peer, pinned to the CPU `cpu` if it is set; yield it when it accepts connections.

    Raises:
        Unavailable: it does not start within START_LIMIT_S.
    """
    port = free_port()
    if cpu is not None and shutil.which("taskset"):
        command = ["taskset", "-c", str(cpu), *command]
    with tempfile.TemporaryFile() as log, tempfile.TemporaryDirectory() as home:
        process = await asyncio.create_subprocess_exec(
            *command,
            env={**os.environ, "NODE_ENV": "production", **peer.environment(port, url, user)},
            stdout=log,
            stderr=log,
            cwd=home,
        )
        try:
            await _answering(peer, process, port)
            async with contextlib.AsyncExitStack() as stack:
                push = await stack.enter_async_context(peer.push(port)) if peer.push else None
                dialect = replace(peer.dialect, headers={**peer.dialect.headers, **bearer(user)})
                yield Server(peer.name, port, process.pid, dialect, push)
        except Unavailable as error:
            log.seek(0)
            raise Unavailable(f"{error}: {log.read()[-500:].decode(errors='replace').strip()}") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def _answering(peer: Peer, process: asyncio.subprocess.Process, port: int) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        except OSError:
            if process.returncode is not None:
                raise Unavailable(f"{peer.name} ended with status {process.returncode}") from None
            if time.monotonic() > deadline:
                raise Unavailable(f"{peer.name} does not listen after {START_LIMIT_S} s") from None
            await asyncio.sleep(0.05)


async def publish_rows(connection: asyncpg.Connection, user: str, numbers: list[int]) -> None:
    """Publish events in one transaction."""
    await connection.execute(
        "select userrealtime.publish($1, 'bench', jsonb_build_object('n', n, 'tag', '@@@')) from unnest($2::int[]) n",
        user,
        numbers,
    )
