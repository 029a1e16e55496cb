"""`userrealtime publish`: sends a message to the application, as a client of a user does."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from typing import Any

from userrealtime_client import PublishError

from .errors import CommandError
from .tail import client_of, explained
from .users import Connect, User, add_who, duration, user_of


def add_to(commands: Any) -> None:
    """Add the command to argparse."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "publish",
        help="send a message to the application, as a client of a user does",
        description="Send a message to the application's inbox, as a client of the user does, and print its id when "
        "it is stored. (The application publishes events for the user in SQL: select userrealtime.publish(...).)",
        epilog="Exit status: 0 if the message is stored; 1 if it is rejected; 3 if there is no acknowledgement within "
        "--timeout: then repeat the command with the same --ref, which stores the message at most once.",
    )
    add_who(parser, by_url=True)
    parser.add_argument("--event", required=True, metavar="NAME", help="the name of the message")
    parser.add_argument(
        "--data", type=data, default="{}", metavar="JSON", help="its content; - reads standard input (default: {})"
    )
    parser.add_argument("--ref", help="its reference; a known reference is not stored again (default: a new one)")
    parser.add_argument(
        "--timeout", type=duration, default="30s", metavar="DURATION", help="the time limit (default: 30s)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, connect: Connect) -> int:
    """Publish the message and print its id."""
    return asyncio.run(_publish(options, user_of(options, connect)))


async def _publish(options: argparse.Namespace, user: User) -> int:
    try:
        async with asyncio.timeout(options.timeout), client_of(user, None, receive=False) as client:
            try:
                print(await client.publish(options.event, options.data, ref=options.ref))
            except PublishError as error:
                raise CommandError(explained(client.error) if client.error else f"not stored: {error}") from None
    except TimeoutError:
        print(f"not acknowledged within {options.timeout:g} s", file=sys.stderr)
        return 3
    return 0


def data(text: str) -> Any:
    """Parse an argument with JSON."""
    try:
        return json.loads(sys.stdin.read() if text == "-" else text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from None
