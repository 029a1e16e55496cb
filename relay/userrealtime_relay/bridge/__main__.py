"""The command: `python -m userrealtime_relay.bridge`. It has no arguments, only an environment: docs/signals.md."""

from __future__ import annotations

import sys

from userrealtime_relay.process import command

USAGE = """\
usage: userrealtime-bridge [--help | --version]

Publishes to a broker which users' event logs have grown, for all users of a database.
Configured by its environment: DATABASE_URL, SIGNAL (nats, redis or kafka) and the broker's URL (NATS_URL, REDIS_URL or
KAFKA_URL) are required; docs/signals.md has them all.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the bridge until SIGTERM or SIGINT. Return the exit status."""
    return command.start("userrealtime-bridge", USAGE, arguments, _run)


def _run() -> None:
    import asyncio
    import os

    from userrealtime_core import logging_setup

    from .config import Config

    config = Config.from_environment(os.environ)
    from .server import serve

    logging_setup.set_up(config.log_level, "userrealtime_relay")
    asyncio.run(serve(config))


if __name__ == "__main__":
    sys.exit(main())
