"""The command `userrealtime-operator`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from userrealtime_core import logging_setup
from userrealtime_core.environment import read_credential

from . import __version__
from .postgres.migrate import MigrationError, migrate

HEALTH_PORT = 3000


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="userrealtime-operator",
        description="Run a realtime pod for every UserRealtime resource, with events from Postgres.",
        epilog="The environment variable DATABASE_URL (postgresql://...) is the URL of the database. Instead, it can "
        "be a file with this name in the directory CREDENTIALS_DIR. It is not an argument, because the process list "
        "would show its password.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="watch UserRealtime resources until stopped")
    run.add_argument("--config", type=Path, required=True, help="the configuration file (YAML)")
    run.add_argument(
        "--lease",
        type=_place,
        metavar="NAMESPACE/NAME",
        help="the Lease for leader election between replicas (default: none; run one replica only)",
    )
    run.add_argument(
        "--health-port",
        type=int,
        default=HEALTH_PORT,
        metavar="PORT",
        help="for /health, /ready and /metrics (default: %(default)s)",
    )
    migration = commands.add_parser("migrate", help="install or upgrade the schema of the log, then exit")
    migration.add_argument(
        "--wait", type=float, default=60, metavar="SECONDS", help="the time limit for a connection (default: 60)"
    )
    check = commands.add_parser("check", help="wait until an operator leads and renews its Lease, then exit")
    check.add_argument(
        "--lease", type=_place, required=True, metavar="NAMESPACE/NAME", help="the Lease that the operators use"
    )
    check.add_argument("--wait", type=float, default=60, metavar="SECONDS", help="the time limit (default: 60)")
    return parser


def _place(text: str) -> tuple[str, str]:
    namespace, _, name = text.partition("/")
    if not namespace or not name or "/" in name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAMESPACE/NAME")
    return namespace, name


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    options = _parser().parse_args(arguments)
    logging_setup.set_up(options.log_level, "userrealtime_operator", "kopf")
    # kopf logs a line for every event of every object.
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)
    if options.command == "migrate":
        return _migrate(options.wait)
    if options.command == "check":
        return asyncio.run(_check(options.lease, options.wait))
    # kopf and the Kubernetes client take half a second to import; migrate needs neither.
    from .app import run
    from .config import ConfigError, load_config
    from .kube.client import ApiError

    try:
        config = load_config(options.config)
    except ConfigError as error:
        print(f"userrealtime-operator: invalid configuration in {options.config}:\n{error}", file=sys.stderr)
        return 2
    try:
        return run(config, options.lease, options.health_port)
    except ApiError as error:
        print(f"userrealtime-operator: {error}", file=sys.stderr)
        return 1


def _migrate(patience_s: float) -> int:
    try:
        url = read_credential(os.environ, "DATABASE_URL")
    except ValueError as error:
        print(f"userrealtime-operator: DATABASE_URL: {error}", file=sys.stderr)
        return 2
    if not url:
        print("userrealtime-operator: set DATABASE_URL to the postgresql:// URL of the database", file=sys.stderr)
        return 2
    try:
        applied = asyncio.run(migrate(url, patience_s=patience_s))
    except MigrationError as error:
        print(f"userrealtime-operator: {error}", file=sys.stderr)
        return 1
    print("applied " + ", ".join(applied) if applied else "the schema is up to date")
    return 0


async def _check(lease: tuple[str, str], patience_s: float) -> int:
    from .kube.client import Api, ApiError
    from .kube.election import NoLeader, wait_for_leader

    try:
        async with await Api.connect() as api:
            leader = await wait_for_leader(api, *lease, patience_s)
    except (ApiError, NoLeader) as error:
        print(f"userrealtime-operator: {error}", file=sys.stderr)
        return 1
    print(f"{leader} leads")
    return 0


if __name__ == "__main__":
    sys.exit(main())
