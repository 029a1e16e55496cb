"""The commands `userrealtime` and, as a plugin of kubectl, `kubectl userrealtime`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from userrealtime_operator import __version__

from . import token
from .cluster import Cluster
from .errors import CommandError


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=program, description="userrealtime, for people and their scripts.")
    parser.add_argument("--version", action="version", version=f"userrealtime {__version__}")
    parser.add_argument("--kubeconfig", type=Path, metavar="FILE", help="default: that of kubectl")
    parser.add_argument("--context", metavar="NAME", help="default: the current one")
    parser.add_argument("-n", "--namespace", metavar="NAME", help="default: that of the context")
    token.add_to(parser.add_subparsers(required=True, metavar="COMMAND"))
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the result is the exit status."""
    # kubectl finds its plugins by their file names.
    program = "kubectl userrealtime" if Path(sys.argv[0]).stem == "kubectl-userrealtime" else "userrealtime"
    options = _parser(program).parse_args(arguments)
    try:
        where = {"kubeconfig": options.kubeconfig, "context": options.context, "namespace": options.namespace}
        options.run(options, Cluster.connect(**where))
    except CommandError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
