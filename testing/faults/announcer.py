"""The announcer as a process, with short time limits, as in `relay`.

It listens on PORT, which shows that it has started, and answers nothing.
"""

from __future__ import annotations

import asyncio
import os

from prometheus_client import CollectorRegistry

from userrealtime_core.announcer import Announcer, Metrics
from userrealtime_core.secret import Secret

from .relay import shorten


async def main() -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", int(os.environ["PORT"]))
    async with server:
        metrics = Metrics(CollectorRegistry(), "faults")
        await Announcer(Secret(os.environ["DATABASE_URL"]), "userrealtime-announcer", metrics).run()


if __name__ == "__main__":
    shorten()
    asyncio.run(main())
