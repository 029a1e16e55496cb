"""The announcer as the operator runs it: `python -m bench.scale.announcer`, with DATABASE_URL in the environment."""

from __future__ import annotations

import asyncio
import os

from prometheus_client import CollectorRegistry

from userrealtime_core.announcer import Announcer, Metrics
from userrealtime_core.secret import Secret


async def main() -> None:
    metrics = Metrics(CollectorRegistry(), "bench")
    await Announcer(Secret(os.environ["DATABASE_URL"]), "userrealtime-announcer", metrics).run()


if __name__ == "__main__":
    asyncio.run(main())
