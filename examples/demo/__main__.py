"""`python -m demo` runs the server until SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import os
import sys

import uvicorn

from .app import Demo
from .cluster import Cluster
from .config import Config, ConfigError, read
from .database import Database

MAX_CONNECTIONS = 200


async def serve(config: Config) -> None:
    """Serve the page, and run the background tasks."""
    async with Cluster.connect(config.namespace) as cluster, Database.connect(config.database_url) as database:
        demo = Demo(config, cluster, database)
        server = uvicorn.Server(
            uvicorn.Config(
                demo.app(),
                host="",  # all addresses, of IPv4 and IPv6
                port=config.port,
                ws="none",
                lifespan="off",
                access_log=False,
                log_level="warning",
                server_header=False,
                limit_concurrency=MAX_CONNECTIONS,
                timeout_graceful_shutdown=2,
            )
        )
        async with asyncio.TaskGroup() as tasks:
            beside = [tasks.create_task(task) for task in (demo.feed.run(), demo.traffic.run(), database.serve_inbox())]
            await server.serve()
            for task in beside:
                task.cancel()


def main() -> int:
    """Run the server; the result is the exit status."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stdout)
    try:
        config = read(os.environ)
    except ConfigError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    asyncio.run(serve(config))
    return 0


if __name__ == "__main__":
    sys.exit(main())
