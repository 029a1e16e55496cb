"""The examples in examples/shop: each serves the same HTTP interface, and the same tests run on it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
import asyncpg
import pytest

from testing.clients.javascript import program, run
from testing.database import Database
from testing.local.ports import free_port
from testing.patience import PATIENCE_S
from testing.relay.harness import KEY
from testing.system import ROOT
from userrealtime.server import TokenKeys, verify

SHOP: Final = ROOT / "examples" / "shop"
GO_LIMIT_S: Final = 300


def python(folder: Path, script: str) -> list[str]:
    """Return the command that runs the example, with its frameworks in a separate directory."""
    packages = folder / "packages"
    install = ["pip", "install", "--quiet", "--target", str(packages), "-r", str(SHOP / "requirements.txt")]
    run(str(Path(sys.executable).with_name("uv")), *install, "--python", sys.executable, folder=folder)
    search = f"import sys; sys.path[:0] = [{str(packages)!r}, {str(ROOT / 'clients' / 'python')!r}]"
    start = "import runpy, sys; sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
    return [sys.executable, "-I", "-c", f"{search}; {start}", str(SHOP / script)]


def django(folder: Path, application: Path) -> list[str]:
    return python(folder, "django/shop.py")


def fastapi(folder: Path, application: Path) -> list[str]:
    return python(folder, "fastapi/shop.py")


def node(folder: Path, application: Path, script: str) -> list[str]:
    """The example with its dependencies and the client's package."""
    for path in (SHOP / "node").glob("*"):
        if path.is_file():
            shutil.copy(path, folder)
    npm = program("npm", "npm")
    run(npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", folder=folder)
    shutil.copytree(application / "node_modules" / "userrealtime", folder / "node_modules" / "userrealtime")
    return [program("node", "nodejs"), str(folder / script)]


def postgresjs(folder: Path, application: Path) -> list[str]:
    return node(folder, application, "postgresjs.mjs")


def drizzle(folder: Path, application: Path) -> list[str]:
    return node(folder, application, "drizzle.mjs")


def go(folder: Path, application: Path) -> list[str]:
    command = [program("go", "golang"), "build", "-o", str(folder / "shop"), "."]
    done = subprocess.run(command, cwd=SHOP / "go", capture_output=True, text=True, timeout=GO_LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    return [str(folder / "shop")]


EXAMPLES: Final = (django, fastapi, postgresjs, drizzle, go)


class Shop:
    """A running example."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url = url
        self._session = session

    async def get(self, path: str) -> str:
        async with self._session.get(f"{self._url}{path}", params={"customer": "alice"}) as response:
            assert response.status == 200, await response.text()
            return await response.text()

    async def post(self, path: str, body: object) -> tuple[int, Any]:
        async with self._session.post(f"{self._url}{path}", json=body) as response:
            text = await response.text()
            return response.status, json.loads(text) if text.startswith("{") else text

    async def is_there(self) -> bool:
        try:
            await self.get("/position")
        except aiohttp.ClientError:
            return False
        return True


@asynccontextmanager
async def running(command: list[str], url: str, folder: Path) -> AsyncIterator[Shop]:
    """Start an example and wait until it answers."""
    (folder / "TOKEN_KEY").write_text(KEY)
    port = free_port()
    environment = {**os.environ, "DATABASE_URL": url, "TOKEN_KEYS": str(folder)}
    process = await asyncio.create_subprocess_exec(
        *command,
        str(port),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE_S)) as session:
            shop = Shop(f"http://127.0.0.1:{port}", session)
            async with asyncio.timeout(PATIENCE_S):
                while not await shop.is_there():
                    assert process.returncode is None, (await process.communicate())[0].decode()
                    await asyncio.sleep(0.05)
            yield shop
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.__name__)
async def test_an_example(
    migrated: Database,
    connection: asyncpg.Connection,
    application: Path,
    tmp_path: Path,
    example: Callable[[Path, Path], list[str]],
) -> None:
    await connection.execute((SHOP / "schema.sql").read_text())
    await connection.execute("insert into credit values ('alice', 100)")
    command = await asyncio.to_thread(example, tmp_path, application)
    async with running(command, migrated.url, tmp_path) as shop:
        assert json.loads(await shop.get("/orders"))["state"] == []
        status, placed = await shop.post("/orders", {"customer": "alice", "total": "60.50"})
        assert (status, list(placed)) == (201, ["id"])
        events = "select id, event, data from userrealtime.event where user_id = 'alice' order by id"
        [event] = await connection.fetch(events)
        assert (event["id"], event["event"]) == (1, "order.placed")
        assert json.loads(event["data"]) == {"id": placed["id"], "total": "60.50"}

        # The credit is too low: neither the order nor its event exists.
        assert (await shop.post("/orders", {"customer": "alice", "total": "60.50"}))[0] == 409
        assert len(await connection.fetch(events)) == 1
        answer = json.loads(await shop.get("/orders"))
        assert answer["state"] == [{"id": placed["id"], "customer": "alice", "total": 60.5}]
        assert answer["position"] == await connection.fetchval("select userrealtime.position('alice')")
        assert answer["position"] == await shop.get("/position")

        number = await connection.fetchval("select userrealtime.submit('alice', 'ref', 'note', '{\"n\": 1}')")
        assert await shop.post("/inbox", {}) == (200, {"taken": 1})
        assert await shop.post("/inbox", {}) == (200, {"taken": 0})
        echo = (await connection.fetch(events))[-1]
        assert (echo["event"], json.loads(echo["data"])) == ("echo", {"message": number, "data": {"n": 1}})

        assert verify(TokenKeys(KEY), await shop.get("/token"), "alice")["sub"] == "alice"


async def test_the_server_functions_accept_every_driver(
    migrated: Database, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    await connection.execute(
        "select userrealtime.submit('alice', n::text, 'note', to_jsonb(n)) from generate_series(1, 6) n"
    )
    command = await asyncio.to_thread(python, tmp_path, str(ROOT / "testing" / "clients" / "drivers.py"))
    found = json.loads(await asyncio.to_thread(run, *command, migrated.url, folder=tmp_path))
    assert [taken for _, taken in found.values()] == [[number] for number in range(1, 7)]
    rows = await connection.fetch("select user_id, id, event, data from userrealtime.event")
    assert {row["user_id"] for row in rows} == set(found)
    for row in rows:
        # An event that was rolled back has left no gap.
        assert (row["id"], row["event"], json.loads(row["data"])) == (1, "kept", {"text": "ü : %s"})
    for driver, (place, _) in found.items():
        # Within the transaction, the own event has no number yet.
        assert place.startswith("0:")
        assert (await connection.fetchval("select userrealtime.position($1)", driver)).startswith("1:")
