"""`make relay`: what it prints works when pasted."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys

import pytest

from testing.relay.harness import PATIENCE_S

COMMAND = (sys.executable, "-m", "testing.local.relay")


async def test_once_it_ends_by_itself_after_the_first_events() -> None:
    process = await asyncio.create_subprocess_exec(
        *COMMAND, env={**os.environ, "CI": "true"}, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(3 * PATIENCE_S):
        output, _ = await process.communicate()
    assert process.returncode == 0
    assert output.count(b'alice gets {"type":"event"') == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_what_it_prints_can_be_pasted(number: signal.Signals) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    process = await asyncio.create_subprocess_exec(*COMMAND, env=environment, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(3 * PATIENCE_S):
            text = (await process.stdout.readuntil(b"alice gets")).decode()
            receive = next(line for line in text.splitlines() if line.startswith("TOKEN="))
            publish = text[text.index(f'{sys.executable} -c "import asyncio, asyncpg') :].partition("\n\n")[0]
            receiver = await asyncio.create_subprocess_shell(receive, stdout=asyncio.subprocess.PIPE)
            assert receiver.stdout is not None
            greeting = await receiver.stdout.readline()
            assert json.loads(greeting)["type"] == "connected"
            publisher = await asyncio.create_subprocess_shell(publish)
            assert await publisher.wait() == 0
            while (event := json.loads(await receiver.stdout.readline()))["event"] != "hello":
                assert event["event"] == "demo.tick"
            assert event["data"] == {"from": "another terminal"}
            process.send_signal(number)
            rest, _ = await process.communicate()
            assert process.returncode == 0
            assert rest.decode().endswith("ended\n")
            await receiver.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def test_other_arguments_are_refused() -> None:
    process = await asyncio.create_subprocess_exec(*COMMAND, "--twice", stderr=asyncio.subprocess.PIPE)
    async with asyncio.timeout(PATIENCE_S):
        _, errors = await process.communicate()
    assert process.returncode == 2
    assert errors.startswith(b"usage: python -m testing.local.relay [--once]")
