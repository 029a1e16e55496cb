"""The commands `userrealtime` and, as a plugin of kubectl, `kubectl userrealtime`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from userrealtime_operator import __version__

from . import doctor, publish, tail, token
from .cluster import Cluster
from .errors import CommandError

INTERRUPTED: Final = 130
"""The exit status that shells use for a program that Ctrl-C has ended."""


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description="Inspect and use userrealtime from the command line.",
        epilog="Exit status: 0 success; 1 failure; 2 invalid usage. See also the --help of each command.",
    )
    parser.add_argument("--version", action="version", version=f"userrealtime {__version__}")
    parser.add_argument("--kubeconfig", type=Path, metavar="FILE", help="the kubeconfig file (default: as kubectl)")
    parser.add_argument("--context", metavar="NAME", help="the kubeconfig context (default: the current one)")
    parser.add_argument("-n", "--namespace", metavar="NAME", help="the namespace (default: as in the context)")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (tail, publish, doctor, token):
        command.add_to(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    # kubectl finds its plugins by their file names.
    program = "kubectl userrealtime" if Path(sys.argv[0]).stem == "kubectl-userrealtime" else "userrealtime"
    options = _parser(program).parse_args(arguments)

    def connect() -> Cluster:
        return Cluster.connect(kubeconfig=options.kubeconfig, context=options.context, namespace=options.namespace)

    try:
        status: int = options.run(options, connect)
    except CommandError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return status


if __name__ == "__main__":
    sys.exit(main())
