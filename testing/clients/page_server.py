"""The FastAPI servers that pages of the documentation contain, started as these pages describe."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from testing.clients.fixture import ClientFixture
from testing.clients.javascript import run
from testing.local.ports import free_port
from testing.patience import PATIENCE_S
from testing.relay.harness import KEY
from testing.system import ROOT


@asynccontextmanager
async def serving_page(
    folder: Path, application: Path, stage: ClientFixture, files: Mapping[str, str], probe: str
) -> AsyncIterator[str]:
    """Start `server.py`, with its packages in a separate directory; yield its URL.

    Args:
        folder: an empty directory, in which the server runs.
        application: with the built JavaScript client.
        files: names and contents, `server.py` among them.
        probe: a path that responds with 200 when the server is ready.
    """
    (folder / "keys").mkdir()
    (folder / "keys" / "TOKEN_KEY").write_text(KEY)
    for name, text in files.items():
        (folder / name).write_text(text)
    packages = folder / "packages"
    requirements = ROOT / "examples" / "shop" / "requirements.txt"
    uv = str(Path(sys.executable).with_name("uv"))
    install = (uv, "pip", "install", "--quiet", "--target", str(packages), "-r", str(requirements))
    await asyncio.to_thread(run, *install, "--python", sys.executable, folder=folder)
    port = free_port()
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
                    async with session.get(f"http://127.0.0.1:{port}{probe}") as response:
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
