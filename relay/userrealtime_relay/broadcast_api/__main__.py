"""The command `python -m userrealtime_relay.broadcast_api`, without arguments. docs/publish.md has its variables."""

from __future__ import annotations

import sys

from userrealtime_relay.process import command

USAGE = """\
usage: userrealtime-broadcast-api [--help | --version]

Accepts broadcasts for all users of a database from applications: POST /broadcast, with a token.
Configured by its environment: DATABASE_URL and BROADCAST_TOKEN are required; docs/publish.md has them all.
"""


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT. Return the exit status."""
    return command.start("userrealtime-broadcast-api", USAGE, arguments, _run)


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
