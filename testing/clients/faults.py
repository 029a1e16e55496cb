"""The faults that the tests of all clients have in common."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from testing.faults.proxy import Filter, Link
from testing.relay.harness import running

from .fixture import GRACE_S, ClientFixture


async def kill(stage: ClientFixture) -> None:
    """Kill the relay, and start it again."""
    await stage.restart(grace_s=0)


async def cut(stage: ClientFixture) -> None:
    """Cut all connections."""
    stage.link.cut()


async def drain(stage: ClientFixture) -> None:
    """Stop the relay gracefully, and start it again."""
    await stage.restart()


@asynccontextmanager
async def replaced(stage: ClientFixture, **variables: str) -> AsyncIterator[int]:
    """Publish while another relay with these variables replaces the first one; yield the number of the last event."""
    async with running(stage.server.url(stage.database), None, **variables) as replacement:
        stage.link.target = replacement.ws_port
        stopping = asyncio.create_task(stage.relay.stop(grace_s=GRACE_S))
        while not stopping.done():
            await stage.publish()
            await asyncio.sleep(0.05)
        await stopping
        yield await stage.publish()  # only clients of the other relay receive it


def breaking(link: Link, limit: int) -> Filter:
    """Return a filter that passes a number of bytes, and then cuts all connections."""
    rest = limit

    def passing(data: bytes) -> bytes:
        nonlocal rest
        passed, rest = data[:rest], rest - len(data[:rest])
        if not rest:
            asyncio.get_running_loop().call_later(0.1, link.cut)
        return passed

    return passing
