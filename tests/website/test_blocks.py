"""The code blocks of the pages: each is parsed, and each that needs no cluster is run or at least checked."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import asyncpg
import pytest
import yaml

from testing.database import Database as OwnDatabase
from testing.database import create_database
from testing.local.postgres import LocalPostgres
from testing.patience import PATIENCE_S
from testing.skipping import skip
from userrealtime_operator.postgres.database import Database
from userrealtime_operator.postgres.migrate import migrate
from userrealtime_operator.postgres.roles import Roles
from userrealtime_operator.secrets.database_passwords import Credentials
from website.blocks import SHELL, Block, BlockError, blocks, missing_output, page_blocks, pages
from website.sources import ROOT

PAGES = page_blocks()
ALL = [block for found in PAGES.values() for block in found]


def of(*languages: str) -> list[Block]:
    return [block for block in ALL if block.language in languages]


# The tables of an application that publishes, with the names of the pages.
APPLICATION = """
create table orders (id bigint primary key, customer text not null, total numeric(10, 2) not null);
create table members (room bigint not null, member text not null);
create role your_app;
"""


@pytest.mark.parametrize("block", of(*SHELL), ids=str)
def test_every_shell_block_is_run_or_says_why_not(block: Block) -> None:
    assert block.is_run or block.file or len(block.not_run or "") > 10
    subprocess.run(["bash", "-n"], input=block.commands, text=True, check=True, timeout=10)
    assert block.commands.strip(), "a console block without a line that begins with `$ `"


@pytest.mark.parametrize("block", of("python"), ids=str)
def test_python_compiles(block: Block) -> None:
    compile(block.text, str(block), "exec")


@pytest.mark.parametrize("block", of("yaml"), ids=str)
def test_yaml_is_yaml(block: Block) -> None:
    assert all(isinstance(document, dict) for document in yaml.safe_load_all(block.text))


@pytest.mark.parametrize("block", of("json"), ids=str)
def test_json_is_json(block: Block) -> None:
    """A line each; `…` marks an omission: in a text, instead of an object's fields, or after those shown."""
    for line in block.text.splitlines():
        json.loads(line.replace("{…}", "{}").replace(",…}", "}"))


@pytest.mark.parametrize("block", of("js", "ts"), ids=str)
def test_javascript_is_javascript(block: Block, tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        skip("node is not installed, so the pages' JavaScript is not read: apt-get install nodejs")
    assert block.language == "js", "write it in JavaScript, which node reads"
    file = tmp_path / "block.mjs"
    file.write_text(block.text)
    subprocess.run([node, "--check", file], check=True, timeout=30)


@pytest.fixture(scope="module")
def server() -> Iterator[LocalPostgres]:
    """A separate server, because roles, which pages create and drop, belong to the whole server."""
    with LocalPostgres() as server:
        yield server


async def remove(server: LocalPostgres, *databases: str) -> None:
    """Drop these databases and all roles."""
    connection = await asyncpg.connect(server.url())
    for name in databases:
        await connection.execute(f"drop database {name}")
    for record in await connection.fetch("select rolname from pg_roles where rolname !~ '^(pg_|postgres$)'"):
        await connection.execute(f"drop owned by {record['rolname']}; drop role {record['rolname']}")
    await connection.close()


@pytest.fixture
async def application(server: LocalPostgres) -> AsyncIterator[OwnDatabase]:
    """A database as in the pages, with the objects that the operator creates for a user."""
    database = await create_database(server)
    connection = await asyncpg.connect(database.url)
    await connection.execute("create database app")
    await connection.close()
    await migrate(database.url)
    async with Database(database.url) as operators:
        await Roles(operators).ensure(
            Credentials("urt_of_alice_a", "good"), str(uuid.uuid4()), "cluster/users", "alice"
        )
        await operators.pool.execute(APPLICATION)
    yield database
    await remove(server, database.name, "app")


def run(command: Sequence[str | Path], typed: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, input=typed, capture_output=True, text=True, timeout=PATIENCE_S)


@pytest.mark.parametrize("page", sorted({block.page for block in of("sql")}))
async def test_sql_does_what_it_says(application: OwnDatabase, page: str) -> None:
    """Run the SQL blocks of a page in order. A statement with parameters is only prepared."""
    psql: list[str | Path] = [
        application.server.program("psql"),
        "--no-psqlrc",
        "--set=ON_ERROR_STOP=1",
        "--quiet",
        application.url,
    ]
    for block in PAGES[page]:
        if block.language != "sql":
            continue
        if re.search(r"\$\d", block.text):
            connection = await asyncpg.connect(application.url)
            await connection.prepare(block.text)
            await connection.close()
        else:
            done = await asyncio.to_thread(run, psql, block.text)
            told = re.search(r"^(WARNING|ERROR)", done.stderr, re.MULTILINE)
            assert not told, f"{block}: {done.stderr}"
            assert done.returncode == 0, f"{block}: {done.stderr}"


async def test_the_role_that_going_live_asks_for_is_enough(application: OwnDatabase) -> None:
    (block,) = (block for block in PAGES["docs/go-live.md"] if block.language == "sql")
    connection = await asyncpg.connect(application.url)
    await connection.execute("drop owned by urt_of_alice_a; drop role urt_of_alice_a")
    await connection.execute("drop owned by userrealtime_relay; drop role userrealtime_relay")
    await connection.execute(block.text)
    await connection.close()
    url = application.server.url("app").replace("postgres@", "realtime:password@")
    await migrate(url)
    async with Database(url) as operators:
        await operators.register(str(uuid.uuid4()), "cluster/users", "alice")
        await Roles(operators).ensure(Credentials("urt_of_bob_a", "good"), str(uuid.uuid4()), "cluster/users", "bob")


def test_the_pages_are_found() -> None:
    assert {"README.md", "bench/README.md", "docs/tutorial.md", "docs/keys.md"} <= set(pages())
    for page, found in PAGES.items():
        fences = re.findall(r"^ *```\w+$", (ROOT / page).read_text(), re.MULTILINE)
        assert len(found) == len(fences), page


@pytest.mark.parametrize("page", pages())
def test_lists_begin_after_an_empty_line(page: str) -> None:
    """A git forge does not need the empty line, but the site would render the list as part of the paragraph."""
    text = re.sub(r"^( *```).*?^\1$", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    for before, item in re.findall(r"^(.*)\n((?:[-*]|\d+\.) .*)$", text, re.MULTILINE):
        assert not before.strip() or re.match(r"([-*#|]|\d+\.| )", before), f"{page}: an empty line before {item!r}"


def one(text: str) -> Block:
    (block,) = blocks("page.md", text)
    return block


def test_a_console_block_is_what_is_typed_and_what_comes() -> None:
    block = one("```console\n$ a \\\n    b\nout  of a\n\n$ for c in d; do\n>   c\n> done\n$5\n> e\n```\n")
    assert block.commands == "a \\\n    b\nfor c in d; do\n  c\ndone\n"
    assert block.output == ["out  of a", "$5", "> e"]


def test_a_block_of_a_list_loses_its_indent() -> None:
    block = one("- first\n\n    ```sh\n    a\n      b\n    ```\n")
    assert (block.text, block.line, block.is_run) == ("a\n  b\n", 3, True)


def test_comments_say_what_is_done_with_a_block() -> None:
    assert not one("<!-- not run: it needs a registry -->\n```sh\na\n```").is_run
    assert one("<!-- not run: it needs a registry -->\n```sh\na\n```").not_run == "it needs a registry"
    assert one("<!-- file: values.yaml -->\n```yaml\na: b\n```").file == "values.yaml"
    assert one("<!-- in another terminal -->\n```sh\na\n```").word == "in another terminal"
    assert not one("```python\na\n```").is_run
    assert one("<!-- run -->\n```python\na\n```").commands == "python - <<'EOF'\na\nEOF\n"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("```\na\n```", "page.md:1: a block of no language"),
        ("```basic\n10 GOTO 10\n```", "page.md:1: a block of basic"),
        ("x\n\n```sh\na\n", "page.md:3: this block has no end"),
        ("<!-- not ran: oops -->\n```sh\na\n```", "page.md:1: unknown comment 'not ran: oops'"),
        ("<!-- not run: it needs a registry -->\nx\n", "page.md:2: the comment before it belongs before a block"),
        ("x:\n\n    make up\n", "page.md:3: an indented block"),
    ],
)
def test_what_cannot_be_understood_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(BlockError, match=re.escape(complaint)):
        list(blocks("page.md", text))


@pytest.mark.parametrize(
    ("line", "got", "comes"),
    [
        ("alice  True  https://realtime.example.com/urt-a  8s", "alice True   http://localhost/urt-b 1m12s", True),
        ("alice  True  https://realtime.example.com/urt-a  8s", "bob   True   http://localhost/urt-b 1m12s", False),
        ('{"id":1,"data":{…}}', '{"id":1,"data":{"a":[2]}}', True),
        ('{"id":1,"data":{…}}', '{"id":2,"data":{"a":[2]}}', False),
        ("a [b] c?", "a [b] c?", True),
        ("a [b] c?", "a b cd", False),
        ("eyJ…", "eyJhbGciOi.eyJz.x_y-z", True),
        ("done", "nearly done", False),
    ],
)
def test_output_is_compared_loosely(line: str, got: str, comes: bool) -> None:
    assert (missing_output([line], f"before\n{got}\nafter\n") is None) is comes


def test_output_comes_in_its_order() -> None:
    assert missing_output(["a", "b"], "a\nx\nb\n") is None
    assert missing_output(["a", "b"], "b\na\n") == "b"
    assert missing_output(["a", "a"], "a\nb\n") == "a"
