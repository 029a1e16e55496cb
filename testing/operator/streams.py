"""Connected pairs of streams on loopback."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def connected() -> AsyncIterator[tuple[Stream, Stream]]:
    """Yield the two ends of a connection: the server's and the client's."""
    accepted: asyncio.Future[Stream] = asyncio.get_running_loop().create_future()
    server = await asyncio.start_server(lambda reader, writer: accepted.set_result((reader, writer)), "127.0.0.1", 0)
    client = await asyncio.open_connection(*server.sockets[0].getsockname())
    theirs = await accepted
    server.close()
    try:
        yield theirs, client
    finally:
        for _, writer in (theirs, client):
            writer.close()
