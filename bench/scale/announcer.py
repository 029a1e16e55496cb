"""The announcer as the operator runs it: `python -m bench.scale.announcer`, with DATABASE_URL in the environment."""

from __future__ import annotations

import asyncio
import os

from prometheus_client import CollectorRegistry

from userrealtime_core.announcer import Announcer, Broadcaster, BroadcastMetrics, Metrics
from userrealtime_core.secret import Secret


async def main() -> None:
    url, registry = Secret(os.environ["DATABASE_URL"]), CollectorRegistry()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(Announcer(url, "userrealtime-announcer", Metrics(registry, "bench")).run())
        tasks.create_task(Broadcaster(url, "userrealtime-broadcaster", BroadcastMetrics(registry, "bench")).run())


if __name__ == "__main__":
    asyncio.run(main())
