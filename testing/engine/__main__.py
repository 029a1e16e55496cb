"""The engine from a shell: `python -m testing.engine --help`."""

import argparse
import sys

from testing.cluster.errors import ClusterError
from testing.cluster.progress import heed_sigterm

from . import engine

DESCRIPTION = """\
Run a command beside a real Docker engine, where none runs and no image registry can be reached:

  python -m testing.engine run -- make up

The engine runs in separate mount, network and process namespaces. It ends with the command, and leaves only a
cache. Takes Debian 12, root and Go. The images of the registries are replaced by stand-ins: see
testing/engine/README.md.
"""


def main() -> int:
    """Run the command and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m testing.engine", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="action", metavar="COMMAND", required=True)
    commands.add_parser("build", help="make the packages and stand-in images that `run` needs, and start nothing")
    run = commands.add_parser("run", help="run a command beside an engine: `run -- COMMAND [ARGUMENT ...]`")
    run.add_argument(
        "--compare",
        action="store_true",
        help="fail if mounts, interfaces, routes, nftables, control groups or kernel values of the machine have "
        "changed afterwards; for a machine that does nothing else",
    )
    run.add_argument("command", nargs="+", metavar="COMMAND")
    options = parser.parse_args()
    heed_sigterm()
    try:
        if options.action == "build":
            engine.prepare()
            return 0
        return engine.run(options.command, compare=options.compare)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: the engine has ended", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
