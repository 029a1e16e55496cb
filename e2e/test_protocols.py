"""The clients of other systems, unchanged from npm, each with its protocol through the ingress.

They wake their user, and continue over a killed pod.

They are the examples in examples/clients, which run against the demo.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import asyncpg
import pytest

from testing import demo
from testing.clients.examples import Example, install_examples
from testing.sleeping import SOON, wait_asleep
from testing.system import System
from userrealtime_core.relay_settings import PROTOCOLS

USER: Final = "alice"


def pods(system: System) -> list[str]:
    """Return the names of the user's pods, also of those that are terminating."""
    instance = system.get("urt", USER)["status"]["name"]
    return system.kubectl("get", "pods", "-l", f"app.kubernetes.io/instance={instance}", "-o", "name").split()


@pytest.fixture
def demo_url(system: System) -> Iterator[str]:
    """The URL of the demo. Its user alice sleeps, and has all protocols until the end of the test."""
    existed = f"userrealtime.userrealtime.dev/{USER}" in system.kubectl("get", "urt", "-o", "name").split()
    url = demo.install(system)
    system.apply_user(USER, protocols=[*PROTOCOLS], idle=SOON)
    system.wait_ready(USER)
    wait_asleep(system, USER)
    yield url
    if existed:
        system.apply_user(USER)
        system.wait_ready(USER)
    else:
        system.delete_user(USER)


async def test_each_client_wakes_its_user_and_receives_each_event_once_over_a_killed_pod(
    system: System, database: asyncpg.Connection, demo_url: str, tmp_path: Path
) -> None:
    async def publish(*numbers: int) -> None:
        for number in numbers:
            data = json.dumps({"n": number})
            await database.execute("select userrealtime.publish($1, 'test.event', $2::text::jsonb)", USER, data)

    installed = await asyncio.to_thread(install_examples, tmp_path / "clients")
    async with Example.each(installed, demo_url) as examples:
        assert {example.partition("/")[0] for example in examples} == set(PROTOCOLS)
        await publish(1, 2)
        for example in examples.values():
            await example.event(2)
        [pod] = await asyncio.to_thread(pods, system)
        killing = asyncio.create_task(asyncio.to_thread(system.kubectl, "delete", pod, "--now"))
        await publish(3, 4, 5)
        await killing
        await publish(6, 7)  # only a client that has connected again receives them
        for client, example in examples.items():
            await example.event(7)
            assert example.numbers == [1, 2, 3, 4, 5, 6, 7], client
            assert example.resets == [], client
