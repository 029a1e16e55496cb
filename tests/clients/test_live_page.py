"""docs/live-page.md, executed: its files, its server, and its page in Chromium, on a real relay."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import asyncpg
import pytest

from testing.browser import browser
from testing.clients.fixture import ClientFixture
from testing.clients.javascript import run
from testing.local.postgres import LocalPostgres
from testing.patience import PATIENCE_S
from testing.relay.harness import KEY
from testing.system import ROOT
from website.blocks import page_blocks

BLOCKS = page_blocks()["docs/live-page.md"]
SQL = [block.text for block in BLOCKS if block.language == "sql"]
FILES = {"server.py": "server.py", "live.html": "page.html"}
SHOWN = "[...document.querySelectorAll('#list li')].map((item) => item.textContent).join()"


pytestmark = pytest.mark.usefixtures("chromium_is_there")


@asynccontextmanager
async def serving(folder: Path, application: Path, stage: ClientFixture) -> AsyncIterator[str]:
    """Start the server of the page, with its packages in a separate directory."""
    (folder / "keys").mkdir()
    (folder / "keys" / "TOKEN_KEY").write_text(KEY)
    for block in BLOCKS:
        if block.file in FILES:
            (folder / FILES[block.file]).write_text(block.text)
    packages = folder / "packages"
    requirements = ROOT / "examples" / "shop" / "requirements.txt"
    uv = str(Path(sys.executable).with_name("uv"))
    install = (uv, "pip", "install", "--quiet", "--target", str(packages), "-r", str(requirements))
    await asyncio.to_thread(run, *install, "--python", sys.executable, folder=folder)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    search = [str(folder), str(packages), str(ROOT / "clients" / "python")]
    start = f"import sys; sys.path[:0] = {search!r}; import uvicorn; uvicorn.run('server:app', port={port})"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-c",
        start,
        cwd=folder,
        env={
            **os.environ,
            "DATABASE_URL": stage.server.url(stage.database),
            "TOKEN_KEYS": str(folder / "keys"),
            "REALTIME_URL": stage.url,
            "CLIENT": str(application / "dist"),
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        async with aiohttp.ClientSession() as session, asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    async with session.get(f"http://127.0.0.1:{port}/parcels") as response:
                        assert response.status == 200
                    break
                except aiohttp.ClientConnectionError:
                    assert process.returncode is None, "the server has ended: see its output"
                    await asyncio.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_the_page_is_live_and_stays_right(
    postgres_server: LocalPostgres, application: Path, tmp_path: Path
) -> None:
    table, first, role, change, removal = SQL
    assert "create role" in role  # tests/website/test_blocks.py executes this
    async with ClientFixture(postgres_server) as stage:
        connection = await asyncpg.connect(postgres_server.url(stage.database))
        await connection.execute(table)
        await connection.execute(first)
        async with (
            serving(tmp_path, application, stage) as url,
            browser() as chromium,
            chromium.page() as page,
        ):
            await page.goto(url)
            await page.wait_for(f"{SHOWN} === '1: Lisbon'")
            await page.wait_for("document.querySelector('#status').textContent === 'connected'")
            await connection.execute(change)
            await page.wait_for(f"{SHOWN} === '1: Madrid,2: Paris'")

            # The pod is replaced, and a row changes while it is away.
            await stage.relay.stop(grace_s=0)
            await connection.execute("update parcels set place = 'Rome' where number = 1")
            await stage.relay.start()
            await page.wait_for(f"{SHOWN} === '1: Rome,2: Paris'")

            # Retention removes the events of changes that the page has not received.
            await stage.refuse(True)
            await connection.execute("update parcels set place = 'Bonn' where number = 2")
            await connection.execute(removal)
            await connection.execute("delete from userrealtime.event")
            await stage.restart()
            await stage.refuse(False)
            await page.wait_for(f"{SHOWN} === '1: Rome'")

            # The log is replaced, as by a restore from a backup.
            await connection.execute("select userrealtime.renew_epochs()")
            await connection.execute("insert into parcels values (3, 'alice', 'Oslo')")
            await page.wait_for(f"{SHOWN} === '1: Rome,3: Oslo'")
        await connection.close()
