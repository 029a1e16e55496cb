"""docs/live-page.md, executed: its files, its server, and its page in Chromium, on a real relay."""

from __future__ import annotations

from pathlib import Path

import asyncpg
import pytest

from testing.browser import browser
from testing.clients.fixture import ClientFixture
from testing.clients.page_server import serving_page
from testing.local.postgres import LocalPostgres
from website.blocks import page_blocks

BLOCKS = page_blocks()["docs/live-page.md"]
SQL = [block.text for block in BLOCKS if block.language == "sql"]
FILES = {
    {"live.html": "page.html"}.get(block.file, block.file): block.text
    for block in BLOCKS
    if block.file in ("server.py", "live.html")
}
SHOWN = "[...document.querySelectorAll('#list li')].map((item) => item.textContent).join()"


pytestmark = pytest.mark.usefixtures("chromium_is_there")


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
            serving_page(tmp_path, application, stage, FILES, "/parcels") as url,
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
