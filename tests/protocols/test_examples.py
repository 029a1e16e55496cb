"""The examples in examples/clients, with the server of the demo and a relay that is killed."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest

from testing.clients.examples import EXAMPLES, SOURCE, Example, install_examples
from testing.clients.fixture import ROOT, ClientFixture
from testing.demo_server import demo_database, serving_demo
from testing.local.postgres import LocalPostgres
from testing.relay.harness import USER
from userrealtime_core.relay_settings import PROTOCOLS

BASE_PATH: Final = "/urt-alice-1234"
CLIENTS: Final = Path(__file__).parent


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install_examples(tmp_path_factory.mktemp("examples") / "clients")


@pytest.fixture
async def stage(postgres_server: LocalPostgres) -> AsyncIterator[ClientFixture]:
    async with ClientFixture(postgres_server, PROTOCOLS=",".join(PROTOCOLS), BASE_PATH=BASE_PATH) as stage:
        yield stage


async def test_each_example_receives_each_event_once_over_a_killed_relay(stage: ClientFixture, installed: Path) -> None:
    async with (
        demo_database(stage) as database,
        serving_demo(stage, database, BASE_PATH) as demo,
        Example.each(installed, demo) as examples,
    ):
        await stage.relay.stop(grace_s=0)  # before the first event
        await stage.publish(2)
        await stage.relay.start()
        for example in examples.values():
            await example.event(2)
        await stage.publish()
        killed = asyncio.create_task(stage.restart(grace_s=0))
        await stage.publish(2)
        await killed
        await stage.publish()
        for name, example in examples.items():
            await example.event(6)
            assert example.numbers == [1, 2, 3, 4, 5, 6], name
            assert example.resets == [], name


async def test_each_example_reports_a_gap(stage: ClientFixture, installed: Path) -> None:
    async with (
        demo_database(stage) as database,
        serving_demo(stage, database, BASE_PATH) as demo,
        Example.each(installed, demo) as examples,
    ):
        await stage.publish()
        for example in examples.values():
            await example.event(1)
        await stage.relay.stop(grace_s=0)
        await stage.publish(2)
        await stage.forget()
        await stage.relay.start()
        for name, example in examples.items():
            await example.has("reset")
            assert example.numbers[:1] == [1], name


async def test_a_change_of_a_row_is_one_for_the_client_of_supabase(stage: ClientFixture, installed: Path) -> None:
    async with (
        demo_database(stage) as database,
        serving_demo(stage, database, BASE_PATH) as demo,
        Example.running(installed / "supabase", "client.mjs", environment={"DEMO_URL": demo}) as example,
    ):
        await example.connected()
        # The trigger of `make up` gives its events these names.
        async with stage._connected() as connection:
            await connection.execute("select userrealtime.publish($1, 'order.insert', '{\"id\": 1}')", USER)
        assert await example.has("change") == {"change": "INSERT", "row": {"id": 1}}


def test_there_is_an_example_of_each_protocol() -> None:
    folders = {name.partition("/")[0] for name in EXAMPLES}
    assert folders == set(PROTOCOLS)
    for folder in folders:
        page = (SOURCE / folder / "README.md").read_text()
        assert f'"protocols": ["{folder}"]' in page
        for name in EXAMPLES:
            if name.startswith(f"{folder}/"):
                assert f"node {name.partition('/')[2]}" in page


def test_the_pages_name_the_examples() -> None:
    for page in (ROOT / "docs" / "protocols.md", SOURCE / "README.md"):
        linked = set(re.findall(r"\]\((?:\.\./examples/clients/)?([a-z-]+)/README\.md\)", page.read_text()))
        assert linked == set(PROTOCOLS)


def test_the_examples_use_the_versions_of_the_other_tests() -> None:
    for example in SOURCE.glob("*/package.json"):
        dependencies = json.loads(example.read_text())["dependencies"]
        tests = json.loads((CLIENTS / example.parent.name.replace("-", "_") / "package.json").read_text())
        for name, version in dependencies.items():
            if name != "ws":
                assert tests["dependencies"][name] == version
