"""The command: `python -m userrealtime_operator.activator`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from userrealtime_operator import __version__

if TYPE_CHECKING:
    from userrealtime_core.auth.sealed_keys import Seal

PORT = 8080
HEALTH_PORT = 3000
ANNOUNCE_PORT = 8081


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="userrealtime-activator",
        description="Accepts the connections of sleeping users, wakes them, and forwards each connection to the pod.",
        epilog="It reads the operator's configuration file, of which it uses the namespaces and the settings of "
        "relays. With activator.sealedKeys, it needs SEAL_KEY, and with activator.parking, DATABASE_URL, or files of "
        "these names in CREDENTIALS_DIR.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    parser.add_argument("--config", type=Path, required=True, help="the operator's configuration file (YAML)")
    parser.add_argument(
        "--no-user-keys",
        action="store_true",
        help="reject tokens that are signed with a user's own key, and need no key; requires relay.auth.jwksUrl",
    )
    parser.add_argument(
        "--port", type=int, default=PORT, metavar="PORT", help="the port of users' connections (default: %(default)s)"
    )
    parser.add_argument(
        "--health-port",
        type=int,
        default=HEALTH_PORT,
        metavar="PORT",
        help="the port of /health, /ready and /metrics (default: %(default)s)",
    )
    parser.add_argument(
        "--announce-port",
        type=int,
        default=ANNOUNCE_PORT,
        metavar="PORT",
        help="the port of the announcements of users' pods (default: %(default)s)",
    )
    return parser


def _seal(environment: Mapping[str, str]) -> Seal:
    """Return the seal with the key in the environment.

    Raises:
        ConfigError: the key is missing or invalid.
    """
    from userrealtime_core.auth.sealed_keys import SEAL_KEY, Seal
    from userrealtime_core.environment import ConfigError, read_credential

    try:
        return Seal(read_credential(environment, SEAL_KEY))
    except ValueError as error:
        raise ConfigError(f"{SEAL_KEY}: {error}") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until a signal. Returns the exit status, which is 2 for an invalid configuration."""
    options = _parser().parse_args(arguments)
    # Imported here because --help does not need them.
    import asyncio

    from userrealtime_core import logging_setup
    from userrealtime_core.environment import Reader
    from userrealtime_core.relay_settings import RelaySettings
    from userrealtime_operator.config import ConfigError, load_config

    try:
        config = load_config(options.config, environment=None)
        sealed = config.activator is not None and config.activator.sealed_keys and not options.no_user_keys
        if "JWKS_URL" not in config.relay_settings:
            if options.no_user_keys:
                raise ConfigError(
                    "--no-user-keys: requires relay.auth.jwksUrl; otherwise every token would be rejected"
                )
            if not sealed:
                # PyJWT imports it if it is installed, but HS256 does not need it.
                sys.modules["cryptography"] = None  # type: ignore[assignment]
        relays = RelaySettings.from_environment(config.relay_settings)
        seal = _seal(os.environ) if sealed else None
        database_url = None
        if config.activator is not None and config.activator.parking:
            reader = Reader(os.environ)
            database_url = reader.database_url("DATABASE_URL")
            reader.check()
    except ConfigError as error:
        print(f"userrealtime-activator: bad configuration in {options.config}:\n{error}", file=sys.stderr)
        return 2
    from userrealtime_operator.kube.client import ApiError

    from .server import Settings, serve

    logging_setup.set_up(options.log_level, "userrealtime_operator")
    settings = Settings(
        namespaces=config.namespaces,
        relays=relays,
        user_keys=not options.no_user_keys,
        seal=seal,
        database_url=database_url,
        port=options.port,
        health_port=options.health_port,
        announce_port=options.announce_port,
    )
    try:
        asyncio.run(serve(settings))
    except (ApiError, OSError) as error:
        print(f"userrealtime-activator: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
