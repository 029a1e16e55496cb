"""The command: `python -m userrealtime_relay`. It has no arguments, only an environment: docs/relay.md."""

from __future__ import annotations

import sys

from .process import command

USAGE = """\
usage: userrealtime-relay [--help | --version]

Serves one user's event log, in Postgres, to that user's clients.
Configured by its environment: USER_ID, DATABASE_URL and TOKEN_KEY (or JWKS_URL) are required; docs/relay.md has them
all.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the relay until SIGTERM or SIGINT. Return the exit status."""
    return command.start("userrealtime-relay", USAGE, arguments, _run)


def _run() -> None:
    from .process import bundle

    bundle.install()
    from .process.imports import fast_imports

    with fast_imports():
        import asyncio
        import os

        from userrealtime_core import logging_setup

        from .config import Config

        config = Config.from_environment(os.environ)
        if config.jwks_url is None:
            # PyJWT imports it if it is installed: 9 MiB for every user, which HS256 does not need.
            sys.modules["cryptography"] = None  # type: ignore[assignment]
        from .server import serve

    logging_setup.set_up(config.log_level, "userrealtime_relay")
    asyncio.run(serve(config))


if __name__ == "__main__":
    sys.exit(main())
