"""`userrealtime tail`: a user's events as they come, a line each."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from userrealtime_client import Client, ClientError, Event, Options, Position, Reset, State

from . import http
from .errors import CommandError
from .users import Connect, User, add_who, duration, user_of


def add_to(commands: Any) -> None:
    """Tell argparse of the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "tail",
        help="show a user's events as they come",
        description="Show a user's events as they come: on standard output a line of JSON each, in order, once, over "
        "any number of connections; on standard error how the connection stands. A line of the type `reset` says "
        "that the log cannot give what would have followed.",
        epilog="Exit status: 0 after --count events; 1 for what cannot be done; 3 if --timeout came first; "
        "130 after Ctrl-C.",
    )
    add_who(parser, by_url=True)
    parser.add_argument(
        "--after", type=position, metavar="ID[:EPOCH]", help="begin after this event (default: with the next one)"
    )
    parser.add_argument("--count", type=count, metavar="N", help="end after so many events")
    parser.add_argument("--timeout", type=duration, metavar="DURATION", help="end after this time")
    parser.add_argument(
        "--transport", choices=("websocket", "sse", "poll"), help="by this alone (default: whichever works)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, connect: Connect) -> int:
    """Show events until there are enough, or the time is over."""
    return asyncio.run(_tail(options, user_of(options, connect)))


async def _tail(options: argparse.Namespace, user: User) -> int:
    try:
        async with asyncio.timeout(options.timeout):
            async with client_of(user, options.transport, position=options.after, parse=JsonText) as client:
                left = options.count
                async for message in client:
                    print(line_of(message), flush=True)
                    if isinstance(message, Event) and left is not None:
                        left -= 1
                        if left == 0:
                            break
    except ClientError as error:
        raise CommandError(explained(error)) from None
    except TimeoutError:
        print(f"the {options.timeout:g} s are over", file=sys.stderr)
        return 3
    return 0


@asynccontextmanager
async def client_of(
    user: User,
    transport: str | None,
    *,
    position: Position | None = None,
    receive: bool = True,
    parse: Callable[[str], Any] | None = None,
) -> AsyncIterator[Client]:
    """A connected client that reports the state of its connection on standard error.

    Raises:
        CommandError: the URL is none.
    """
    limits = Options() if transport is None else Options(transports=(transport,))  # type: ignore[arg-type]
    async with http.session() as session:
        try:
            client = Client(
                user.url,
                token=user.token,
                position=position,
                receive=receive,
                on_state=tell,
                session=session,
                options=limits,
                parse=parse,
            )
        except ValueError as error:
            raise CommandError(str(error)) from None
        async with client:
            yield client


def tell(state: State) -> None:
    """How the connection stands, on standard error."""
    if state.state == "connected":
        print(f"connected by {state.transport}", file=sys.stderr)
    elif state.state == "waiting":
        print(f"not connected, will be tried again: {state.reason}", file=sys.stderr)


def explained(error: ClientError) -> str:
    """What ended a client, and what to do about it."""
    advice = {
        "unauthorized": "the relay refuses the token: is it the user's, and good? does the platform ask for claims "
        "(--claim)? `userrealtime doctor` looks",
        "refused": "the relay refuses what it was asked",
    }
    return f"{advice.get(error.code, 'it cannot be done')} ({error})"


class JsonText(str):
    """JSON that is printed as it was received: no number is rounded, and no depth is too much."""


def line_of(message: Event | Reset) -> str:
    """A message as a line."""
    if isinstance(message, Reset):
        return json.dumps({"type": "reset", **dataclasses.asdict(message)}, ensure_ascii=False)
    head = {"type": "event", "id": message.id, "event": message.event, "at": message.at}
    data = message.data if isinstance(message.data, JsonText) else json.dumps(message.data, ensure_ascii=False)
    return f'{json.dumps(head, ensure_ascii=False)[:-1]}, "data": {data}}}'


def position(text: str) -> Position:
    """A place in the log, for argparse."""
    number, _, epoch = text.partition(":")
    if not (number.isascii() and number.isdigit() and len(number) < 20):
        raise argparse.ArgumentTypeError(f"{text!r} is not the id of an event, as in 42 or 42:5f0c…")
    return Position(int(number), epoch or None)


def count(text: str) -> int:
    """A number of events, for argparse."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of events")
    return int(text)
