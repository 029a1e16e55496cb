"""The command line of a process that is configured by its environment."""

from __future__ import annotations

import sys
from collections.abc import Callable

from userrealtime_relay import __version__


def start(program: str, usage: str, arguments: list[str] | None, run: Callable[[], None]) -> int:
    """Answer `--help` and `--version`, or call `run`, which imports the rest: both work without the dependencies.

    Returns:
        the exit status: 2 for invalid arguments or configuration, 1 if the process cannot listen.
    """
    given = sys.argv[1:] if arguments is None else arguments
    if given in (["--help"], ["-h"]):
        print(usage, end="")
        return 0
    if given == ["--version"]:
        print(f"{program} {__version__}")
        return 0
    if given:
        # The arguments are not printed: they may contain a secret.
        print(f"{program} takes no arguments\n\n{usage}", end="", file=sys.stderr)
        return 2
    from userrealtime_core.environment import ConfigError

    try:
        run()
    except ConfigError as error:
        print(f"{program} cannot start: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{program} cannot listen: {error}", file=sys.stderr)
        return 1
    return 0
