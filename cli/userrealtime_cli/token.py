"""`userrealtime token`: a token of a user, signed with the user's own key."""

from __future__ import annotations

import argparse
import base64
import sys
import time
from collections.abc import Mapping
from typing import Any

import jwt

from userrealtime_operator.duration import parse_duration

from .cluster import Cluster
from .errors import CommandError

MOST_TTL_S = 366 * 86400


def add_to(commands: Any) -> None:
    """Tell argparse of the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "token",
        help="print a token for a user",
        description="Print a token (a JWT) for a user, signed with the key in the user's Secret. It takes the right "
        "to get the UserRealtime and that Secret. The token lets whoever has it read the user's events: take care "
        "where it goes.",
    )
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("name", nargs="?", help="the name of the UserRealtime")
    who.add_argument("--user-id", metavar="ID", help="or its userId; it takes the right to list UserRealtimes")
    parser.add_argument("--ttl", type=ttl, default="1h", metavar="DURATION", help="how long it is good (default: 1h)")
    parser.add_argument(
        "--claim",
        type=claim,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="one more claim, such as iss=... or aud=... where the platform asks for them; may be repeated",
    )
    parser.add_argument("--url", action="store_true", help="print the user's URL as a second line")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, cluster: Cluster) -> None:
    """Print the token, and the URL if wanted."""
    resource = cluster.resource(options.name) if options.name else cluster.resource_of(options.user_id)
    name, status = resource["metadata"]["name"], resource.get("status", {})
    reference = status.get("tokenSecret")
    if reference is None:
        raise CommandError(
            f"{name} has no key yet: the operator has not seen it (is it running? does it serve namespace "
            f"{cluster.namespace}? see: kubectl describe urt {name})"
        )
    url = status.get("url")
    if options.url and url is None:
        raise CommandError(
            f"{name} has no URL: it has no route (see spec.route.enabled, or: kubectl describe urt {name})"
        )
    token = mint(key_of(cluster.secret(reference["name"]), reference["key"]), resource, options.ttl, options.claim)
    ready = next((c for c in status.get("conditions", ()) if c["type"] == "Ready"), None)
    if ready is None or ready["status"] != "True":
        because = f"{ready['reason']}: {ready['message']}" if ready else "no condition Ready"
        print(f"note: {name} is not ready ({because})", file=sys.stderr)
    print(token)
    if options.url:
        print(url)


def mint(key: bytes, resource: Mapping[str, Any], ttl_s: float, claims: list[tuple[str, str]]) -> str:
    """A JWT for the user of a resource."""
    # Without `iat`: it would be refused where this machine's clock is ahead.
    payload = {"sub": resource["spec"]["userId"], "exp": int(time.time() + ttl_s), **dict(claims)}
    return jwt.encode(payload, key, algorithm="HS256")


def key_of(secret: Mapping[str, Any], name: str) -> bytes:
    """The key in a Secret.

    Raises:
        CommandError: it is not there.
    """
    try:
        return base64.b64decode(secret["data"][name], validate=True)
    except (KeyError, TypeError, ValueError):
        raise CommandError(f"the Secret {secret['metadata']['name']} has no {name} that can be read") from None


def ttl(text: str) -> float:
    """The seconds of a token's life, for argparse."""
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not 1 <= seconds <= MOST_TTL_S:
        raise argparse.ArgumentTypeError("must be from a second to a year")
    return seconds


def claim(text: str) -> tuple[str, str]:
    """A claim's name and value, for argparse."""
    name, separator, value = text.partition("=")
    if not (name and separator) or name in ("exp", "nbf", "iat"):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE, or one of exp, nbf and iat, which --ttl makes")
    return name, value
