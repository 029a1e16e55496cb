"""The servers under test, each as a separate process with the same Postgres, and how it receives its events.

A peer that is not available here is reported with the reason: `unavailable`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import asyncpg
import jwt

from testing.cluster.binaries import source_hash
from testing.cluster.paths import cache
from testing.cluster.progress import exclusive
from testing.local.postgres import free_port

from .client import Dialect

HERE = Path(__file__).parent
NODE = HERE / "node"
KEY = "a key for a benchmark, long enough for HS256"
STREAM = "bench"
BUILD_LIMIT_S = 1500
START_LIMIT_S = 120
BATCH = 1000
AS_IN_ITS_IMAGE = {"PYTHONOPTIMIZE": "2"}

Publish = Callable[[list[int]], Awaitable[None]]
"""Publishes events of these numbers in one transaction, and to the server if that does not read the log itself."""


class Unavailable(RuntimeError):
    """A peer is not available on this machine; the message has the reason."""


@dataclass(frozen=True)
class Server:
    """A running server."""

    name: str
    port: int
    pid: int
    dialect: Dialect
    resumes: bool
    """Whether it sends missed events from Postgres."""
    push: Publish | None
    """Publishes events to a server that does not read the log itself."""

    def rss_mib(self) -> float:
        """Return the resident memory in MiB."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        kib = next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1]
        return int(kib) / 1024


@dataclass(frozen=True)
class Peer:
    """One server. `prepare` installs its dependencies, and may take minutes the first time."""

    name: str
    prepare: Callable[[], list[str]]
    """Returns the command.

    Raises:
        Unavailable: with the reason.
    """
    environment: Callable[[int, str, str], dict[str, str]]
    """The function that starts it, from port, database URL and user."""
    dialect: Callable[[str], Dialect]
    resumes: bool
    push: Callable[[int], contextlib.AbstractAsyncContextManager[Publish]] | None = None


def _quietly(command: list[str], *, cwd: Path | None = None, limit_s: int, **environment: str) -> None:
    done = subprocess.run(  # noqa: S603  (commands of this module)
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=limit_s
    )
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise Unavailable(f"{' '.join(command[:3])} failed: {lines[-1] if lines else 'no output'}")


def _relay() -> list[str]:
    # Compile first: a process that has just compiled all of its modules is a bigger one. The image has them compiled,
    # so they are kept though a variable may say to keep none.
    importing = [sys.executable, "-OO", "-c", "import userrealtime_relay.server"]
    _quietly(importing, limit_s=START_LIMIT_S, PYTHONDONTWRITEBYTECODE="")
    return [sys.executable, "-m", "userrealtime_relay"]


def _node(script: str) -> Callable[[], list[str]]:
    def prepare() -> list[str]:
        if shutil.which("node") is None or shutil.which("npm") is None:
            raise Unavailable("node and npm are not installed")
        # Not in the source tree: the packages are this machine's, not the project's.
        home = cache("bench", f"node-{source_hash(NODE)}", "package.json").parent
        with exclusive("bench-node"):
            if not (home / "node_modules" / ".package-lock.json").exists():  # npm writes this file last
                print("▸ npm ci (some seconds) …", flush=True)
                shutil.copytree(NODE, home, dirs_exist_ok=True, ignore=shutil.ignore_patterns("node_modules"))
                _quietly(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=home, limit_s=300)
        return ["node", str(home / script)]

    return prepare


def _go(module: str, package: str, *arguments: str) -> Callable[[], list[str]]:
    """Return a program from the Go module in a folder beside this file, which pins it and its dependencies."""

    def prepare() -> list[str]:
        go = shutil.which("go")
        if go is None:
            raise Unavailable("go is not installed")
        folder = HERE / module
        binary = cache("bench", f"{module}-{source_hash(folder)}", module)
        if not binary.exists():
            print(f"▸ building {module} (a minute or two the first time) …", flush=True)
            with tempfile.TemporaryDirectory() as copy:
                # -mod=mod completes go.mod, and the source tree must not change.
                shutil.copytree(folder, copy, dirs_exist_ok=True)
                _quietly(
                    [go, "build", "-mod=mod", "-trimpath", "-o", str(binary), package],
                    cwd=Path(copy),
                    limit_s=BUILD_LIMIT_S,
                    CGO_ENABLED="0",
                )
        return [str(binary), *arguments]

    return prepare


@contextlib.asynccontextmanager
async def _posting(url: str, body: Callable[[list[int]], object], **headers: str) -> AsyncIterator[Publish]:
    async with aiohttp.ClientSession(headers=headers) as session:

        async def publish(numbers: list[int]) -> None:
            for start in range(0, len(numbers), BATCH):
                async with session.post(url, json=body(numbers[start : start + BATCH])) as answer:
                    if answer.status >= 300:
                        raise RuntimeError(f"{url} answers {answer.status}: {await answer.text()}")

        yield publish


def _event(number: int) -> dict[str, object]:
    return {
        "type": "event",
        "id": number,
        "event": "bench",
        "at": "2026-01-01T00:00:00.000000+00:00",
        "data": {"n": number, "tag": "@@@"},
    }


def _centrifugo_push(port: int) -> contextlib.AbstractAsyncContextManager[Publish]:
    def body(numbers: list[int]) -> object:
        return {"commands": [{"publish": {"channel": STREAM, "data": _event(number)}} for number in numbers]}

    return _posting(f"http://127.0.0.1:{port}/api/batch", body, **{"X-API-Key": KEY})


def _anycable_push(port: int) -> contextlib.AbstractAsyncContextManager[Publish]:
    def body(numbers: list[int]) -> object:
        return [{"stream": STREAM, "data": json.dumps(_event(number))} for number in numbers]

    return _posting(f"http://127.0.0.1:{port}/_broadcast", body)


def _bearer(user: str) -> dict[str, str]:
    token = jwt.encode({"sub": user, "exp": int(time.time()) + 24 * 3600}, KEY, algorithm="HS256")
    return {"Authorization": f"Bearer {token}"}


PEERS = (
    Peer(
        "userrealtime",
        _relay,
        lambda port, url, user: {
            "USER_ID": user,
            "DATABASE_URL": url,
            "TOKEN_KEY": KEY,
            "HOST": "127.0.0.1",
            "WS_PORT": str(port),
            "HEALTH_PORT": "0",
            "MAX_CONNECTIONS": "2000",
            "LOG_LEVEL": "warning",
            **AS_IN_ITS_IMAGE,
        },
        lambda user: Dialect("/ws", "?last_event_id={}", headers=_bearer(user), ready=b'"connected"'),
        resumes=True,
    ),
    Peer(
        "ws",
        _node("ws.mjs"),
        lambda port, url, user: {"PORT": str(port), "DATABASE_URL": url, "USER_ID": user},
        lambda user: Dialect("/", "?since={}", ready=b'"connected"'),
        resumes=True,
    ),
    Peer(
        "Socket.IO",
        _node("socketio.mjs"),
        lambda port, url, user: {"PORT": str(port), "DATABASE_URL": url, "USER_ID": user},
        lambda user: Dialect(
            "/socket.io/?EIO=4&transport=websocket",
            "&since={}",
            hello=("40",),
            ready=b"40{",
            ping=b"\x81\x012",
            pong="3",
        ),
        resumes=True,
    ),
    Peer(
        "Centrifugo",
        _go("centrifugo", "github.com/centrifugal/centrifugo/v5", "--client_insecure", "--log_level=error"),
        lambda port, url, user: {
            "CENTRIFUGO_PORT": str(port),
            "CENTRIFUGO_ADDRESS": "127.0.0.1",
            "CENTRIFUGO_API_KEY": KEY,
            "CENTRIFUGO_ALLOW_SUBSCRIBE_FOR_CLIENT": "true",
            "CENTRIFUGO_CLIENT_QUEUE_MAX_SIZE": str(256 << 20),
        },
        lambda user: Dialect(
            "/connection/websocket",
            hello=('{"id":1,"connect":{}}', f'{{"id":2,"subscribe":{{"channel":"{STREAM}"}}}}'),
            ready=b'"subscribe"',
            ping=b"\x81\x02{}",
            pong="{}",
        ),
        resumes=False,
        push=_centrifugo_push,
    ),
    Peer(
        "AnyCable",
        _go(
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
        lambda user: Dialect(
            "/cable",
            headers={"Sec-WebSocket-Protocol": "actioncable-v1-json", "Origin": "http://127.0.0.1"},
            hello=(
                json.dumps(
                    {
                        "command": "subscribe",
                        "identifier": json.dumps({"channel": "$pubsub", "stream_name": STREAM}),
                    }
                ),
            ),
            ready=b"confirm_subscription",
        ),
        resumes=False,
        push=_anycable_push,
    ),
)
ABSENT = {
    "Soketi": "npm cannot install it: its server, uWebSockets.js, is on GitHub alone",
}


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
                yield Server(peer.name, port, process.pid, peer.dialect(user), peer.resumes, push)
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
