"""`userrealtime token`: prints a token of a user, signed with the user's key."""

from __future__ import annotations

import argparse
import sys
from typing import Any, Final

from .users import Connect, add_who, duration, mint, resource_of, signing_key, url_of

MOST_TTL_S: Final = 366 * 86400


def add_to(commands: Any) -> None:
    """Add the command to argparse."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "token",
        help="print a token for a user",
        description="Print a token (a JWT) for a user, signed with the key in the user's Secret. The command needs "
        "permission to get the UserRealtime and the Secret. Keep the token secret: everyone with the token can read "
        "the user's events.",
    )
    add_who(parser)
    parser.add_argument("--ttl", type=ttl, default="1h", metavar="DURATION", help="its lifetime (default: 1h)")
    parser.add_argument("--url", action="store_true", help="print the user's URL as a second line")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, connect: Connect) -> int:
    """Print the token, and the URL with --url."""
    cluster = connect()
    resource = resource_of(options, cluster)
    token = mint(signing_key(cluster, resource), resource, options.ttl, options.claim)
    url = url_of(resource) if options.url else None
    conditions = resource["status"].get("conditions", ())
    ready = next((condition for condition in conditions if condition["type"] == "Ready"), None)
    if ready is None or ready["status"] != "True":
        because = f"{ready['reason']}: {ready['message']}" if ready else "it has no condition Ready"
        print(f"note: {resource['metadata']['name']} is not ready ({because})", file=sys.stderr)
    print(token)
    if url is not None:
        print(url)
    return 0


def ttl(text: str) -> float:
    """Parse an argument with the lifetime of a token, in seconds."""
    seconds = duration(text)
    if not 1 <= seconds <= MOST_TTL_S:
        raise argparse.ArgumentTypeError("must be from 1 second to 1 year")
    return seconds
