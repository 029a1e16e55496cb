"""`userrealtime publish`: what a user's client sends to the application."""

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
    """Tell argparse of the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "publish",
        help="send a message to the application, as a user's client does",
        description="Send a message to the application's inbox, as a client of the user does, and print its id there "
        "once it is stored. (Events for the user are published in SQL: select userrealtime.publish(...).)",
        epilog="Exit status: 0 if it is stored; 1 if it is not; 3 if it was not known after --timeout: the same --ref "
        "then tells, and stores it once.",
    )
    add_who(parser, by_url=True)
    parser.add_argument("--event", required=True, metavar="NAME", help="what kind of message it is")
    parser.add_argument(
        "--data", type=data, default="{}", metavar="JSON", help="what it says; - reads standard input (default: {})"
    )
    parser.add_argument("--ref", help="the message's own name; one that is known is not stored again (default: new)")
    parser.add_argument(
        "--timeout", type=duration, default="30s", metavar="DURATION", help="how long to try (default: 30s)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, connect: Connect) -> int:
    """Publish, and print the id."""
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
    """JSON, for argparse."""
    try:
        return json.loads(sys.stdin.read() if text == "-" else text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from None
