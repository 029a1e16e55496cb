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
    """Serve until SIGTERM or SIGINT. Return the exit status: 2 for invalid arguments or configuration."""
    return command.start("userrealtime-broadcast-api", USAGE, arguments, _run)


def _run() -> int:
    # Imported late: --help is quick and works without the dependencies.
    import asyncio
    import os

    from userrealtime_core import logging_setup
    from userrealtime_core.environment import ConfigError

    from .config import Config

    try:
        config = Config.from_environment(os.environ)
        from .server import serve

        logging_setup.set_up(config.log_level, "userrealtime_relay")
        asyncio.run(serve(config))
    except ConfigError as error:
        print(f"userrealtime-broadcast-api cannot start: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"userrealtime-broadcast-api cannot listen: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
