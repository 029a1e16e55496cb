"""The field's own test: a client's network is cut for two seconds, again and again, while events flow.

AnyCable publishes 100 % delivered of it, and 85 % for Socket.IO. Here one client's connections are reset and refused,
and another's go silent without a close.
"""

from __future__ import annotations

import asyncio
from typing import Final

import pytest

from testing.faults.client import Asked, Heard
from testing.faults.environment import FaultEnvironment
from testing.local.postgres import LocalPostgres

CUTS: Final = 3
CUT_S: Final = 2.0
BETWEEN_S: Final = 1.0
EVENT_EVERY_S: Final = 0.02


async def test_two_second_cuts_again_and_again(
    postgres_server: LocalPostgres, capsys: pytest.CaptureFixture[str]
) -> None:
    async with FaultEnvironment(postgres_server) as world:
        await world.connect_client(1, "websocket")
        reset, silent = world.client_links
        over = asyncio.Event()

        async def publish_on() -> None:
            while not over.is_set():
                assert await world.writers[0].publish(world.take_numbers(1), 10)
                await asyncio.sleep(EVENT_EVERY_S)

        publishing = asyncio.create_task(publish_on())
        try:
            for _ in range(CUTS):
                await asyncio.sleep(BETWEEN_S)
                reset.refusing = True
                reset.cut()
                silent.hold(up=True, down=True)
                await asyncio.sleep(CUT_S)
                reset.refusing = False
                silent.release()
            await asyncio.sleep(BETWEEN_S)
        finally:
            over.set()
            await publishing
        await world.settle()
        world.judge()
        published = len(world.writers[0].committed)
        for client, kind in zip(world.clients, ("reset", "silent"), strict=True):
            messages = [entry.message for entry in client.transcript if isinstance(entry, Heard)]
            ids = [message["id"] for message in messages if message["type"] == "event"]
            resumed = sum(isinstance(entry, Asked) and entry.cursor is not None for entry in client.transcript)
            delivered = len(set(ids))
            with capsys.disabled():
                print(
                    f"\n{CUTS} cuts of {CUT_S} s ({kind}): {delivered} of {published} events delivered, "
                    f"{100 * delivered / published:.1f} %, {len(ids) - delivered} twice, {resumed} resumptions"
                )
            assert ids == list(range(1, published + 1))
            assert resumed >= CUTS
