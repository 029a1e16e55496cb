"""`userrealtime tail`: prints the events of a user, one per line."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from userrealtime_client import Broadcast, Client, ClientError, Event, Loaded, Options, Position, Reset, State

from . import http
from .errors import CommandError
from .users import Connect, User, add_who, duration, user_of


def add_to(commands: Any) -> None:
    """Add the command to argparse."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "tail",
        help="print the events of a user",
        description="Print the events of a user. Each event is one line of JSON on standard output, in order and "
        "exactly once, also across reconnections. The state of the connection is printed on standard error. A line of "
        "the type `reset` means that events are missing, because the log no longer contains them. With --broadcasts, "
        "there are lines of the type `broadcast` as well, which may be lost.",
        epilog="Exit status: 0 after --count events; 1 for an error; 3 after --timeout; 130 after Ctrl-C.",
    )
    add_who(parser, by_url=True)
    parser.add_argument(
        "--after", type=position, metavar="ID[:EPOCH]", help="start after this event (default: with the next event)"
    )
    parser.add_argument("--count", type=count, metavar="N", help="exit after this number of events")
    parser.add_argument("--broadcasts", action="store_true", help="print broadcasts as well; --count ignores them")
    parser.add_argument("--timeout", type=duration, metavar="DURATION", help="exit after this time")
    parser.add_argument(
        "--transport", choices=("websocket", "sse", "poll"), help="the transport (default: the first that works)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, connect: Connect) -> int:
    """Print events until one of the limits is reached."""
    return asyncio.run(_tail(options, user_of(options, connect)))


async def _tail(options: argparse.Namespace, user: User) -> int:
    try:
        async with asyncio.timeout(options.timeout):
            async with client_of(
                user, options.transport, position=options.after, broadcasts=options.broadcasts, parse=JsonText
            ) as client:
                left = options.count
                async for message in client:
                    if isinstance(message, Loaded):
                        continue  # this command has no state
                    print(line_of(message), flush=True)
                    if isinstance(message, Event) and left is not None:
                        left -= 1
                        if left == 0:
                            break
    except ClientError as error:
        raise CommandError(explained(error)) from None
    except TimeoutError:
        print(f"timed out after {options.timeout:g} s", file=sys.stderr)
        return 3
    return 0


@asynccontextmanager
async def client_of(
    user: User,
    transport: str | None,
    *,
    position: Position | None = None,
    receive: bool = True,
    broadcasts: bool = False,
    parse: Callable[[str], Any] | None = None,
) -> AsyncIterator[Client]:
    """Yield a connected client that reports the state of its connection on standard error.

    Raises:
        CommandError: the URL is invalid.
    """
    limits = Options() if transport is None else Options(transports=(transport,))  # type: ignore[arg-type]
    async with http.session() as session:
        try:
            client = Client(
                user.url,
                token=user.token,
                position=position,
                receive=receive,
                broadcasts=broadcasts,
                on_state=report,
                session=session,
                options=limits,
                parse=parse,
            )
        except ValueError as error:
            raise CommandError(str(error)) from None
        async with client:
            yield client


def report(state: State) -> None:
    """Print the state of the connection on standard error."""
    if state.state == "connected":
        print(f"connected by {state.transport}", file=sys.stderr)
    elif state.state == "waiting":
        print(f"not connected, retrying: {state.reason}", file=sys.stderr)


def explained(error: ClientError) -> str:
    """Return the error that ended a client, with advice."""
    advice = {
        "unauthorized": "the relay rejected the token: is it valid, and a token of this user? does the platform "
        "require claims (--claim)? `userrealtime doctor` finds the cause",
        "refused": "the relay rejected the request",
    }
    return f"{advice.get(error.code, 'the connection failed')} ({error})"


class JsonText(str):
    """JSON that is printed as received. Parsing it would round numbers and limit the depth."""


def line_of(message: Event | Reset | Broadcast) -> str:
    """Return a message as a line."""
    if isinstance(message, Reset):
        return json.dumps({"type": "reset", **dataclasses.asdict(message)}, ensure_ascii=False)
    head: dict[str, Any] = {"type": "broadcast", "event": message.event}
    if isinstance(message, Event):
        head = {"type": "event", "id": message.id, "event": message.event, "at": message.at}
    data = message.data if isinstance(message.data, JsonText) else json.dumps(message.data, ensure_ascii=False)
    return f'{json.dumps(head, ensure_ascii=False)[:-1]}, "data": {data}}}'


def position(text: str) -> Position:
    """Parse an argument with a position in the log."""
    number, _, epoch = text.partition(":")
    if not (number.isascii() and number.isdigit() and len(number) < 20):
        raise argparse.ArgumentTypeError(f"{text!r} is not the id of an event, such as 42 or 42:5f0c…")
    return Position(int(number), epoch or None)


def count(text: str) -> int:
    """Parse an argument with a number of events."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of events")
    return int(text)
