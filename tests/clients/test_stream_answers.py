"""docs/stream-answers.md, executed: its files, its server, and its page in Chromium, on a real relay."""

from __future__ import annotations

import json
from pathlib import Path

import asyncpg
import pytest

from testing.announcer import broadcasting, hearing_broadcasts, until
from testing.browser import Page, browser
from testing.clients.fixture import ClientFixture
from testing.clients.page_server import serving_page
from testing.database import Database
from testing.local.postgres import LocalPostgres
from website.blocks import page_blocks

BLOCKS = {block.file: block.text for block in page_blocks()["docs/stream-answers.md"] if block.file}
FILES = {"server.py": BLOCKS["server.py"], "page.html": BLOCKS["answers.html"]}
SHOWN = "[...document.querySelectorAll('#list li')].map((item) => item.textContent)"
RECORD = f"""
    window.seen = [];
    const recorder = new MutationObserver(() => window.seen.push({SHOWN}.at(-1)));
    recorder.observe(document.querySelector("#list"), {{childList: true}});
"""
"""Records what the page shows: no intermediate text is missed, however slow the test is."""


def complete(question: int) -> str:
    return f"{question}: " + "".join(f"{number} " for number in range(1, question + 1))


async def ask(page: Page, question: int) -> None:
    await page.evaluate(
        f"document.querySelector('input').value = {question}; document.querySelector('#form').requestSubmit()"
    )


async def partial(page: Page, question: int) -> list[str]:
    """Return the incomplete answers that the page has shown, each once."""
    seen: list[str] = await page.evaluate("[...new Set(seen)]")
    return [text for text in seen if text.startswith(f"{question}: ") and text.endswith(" …")]


@pytest.mark.usefixtures("chromium_is_there")
async def test_words_arrive_as_they_are_generated_and_the_answer_is_complete(
    postgres_server: LocalPostgres, application: Path, tmp_path: Path
) -> None:
    async with ClientFixture(postgres_server) as stage:
        connection = await asyncpg.connect(postgres_server.url(stage.database))
        await connection.execute(BLOCKS["answers.sql"])
        await stage.broadcast()  # starts the announcer
        async with (
            serving_page(tmp_path, application, stage, FILES, "/answers") as url,
            browser() as chromium,
            chromium.page() as page,
        ):
            await page.goto(url)
            await page.wait_for("document.querySelector('#status').textContent === 'connected'")
            await page.evaluate(RECORD)
            await ask(page, 40)
            await page.wait_for(f"{SHOWN}.at(-1) === {complete(40)!r}")
            found = await partial(page, 40)
            assert len(found) > 10
            for text in found:  # each is a beginning of the answer, without a gap
                assert complete(40).startswith(text.removesuffix("…"))
            # Of the words, nothing is stored: the question and the answer are the only events.
            assert await connection.fetchval("select count(*) from userrealtime.event") == 2

            # The connection breaks, and the pod is replaced, in the middle of an answer.
            await ask(page, 101)
            await page.wait_for("seen.some((text) => text.startsWith('101: 1 2 3 '))")
            await stage.restart(grace_s=0)
            await page.wait_for(f"{SHOWN}.at(-1) === {complete(101)!r}")
            assert all(complete(101).startswith(text.removesuffix("…")) for text in await partial(page, 101))

            # Another device opens the page in the middle of an answer.
            async with chromium.page() as another:
                await ask(page, 102)
                await page.wait_for("seen.some((text) => text.startsWith('102: 1 2 3 '))")
                await another.goto(url)
                await another.wait_for(f"{SHOWN}.at(-1) === {complete(102)!r}")
                assert await another.evaluate(SHOWN) == [complete(40), complete(101), complete(102)]
        await connection.close()


async def test_the_parts_of_many_streams_are_sent_with_one_statement(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    async with (
        broadcasting(migrated.url),
        hearing_broadcasts(migrated.url, "alice") as alice,
        hearing_broadcasts(migrated.url, "bob") as bob,
    ):
        for number in (1, 2):
            parts = [json.dumps({"id": answer, "number": number, "text": "a few words "}) for answer in (7, 8, 9)]
            await connection.execute(BLOCKS["parts.sql"].strip().removesuffix(";"), ["alice", "bob", "alice"], parts)
        await until(lambda: len(alice) == 4 and len(bob) == 2)
        found = [
            [(each["data"]["id"], each["data"]["number"]) for each in map(json.loads, heard)] for heard in (alice, bob)
        ]
        assert found == [[(7, 1), (9, 1), (7, 2), (9, 2)], [(8, 1), (8, 2)]]
