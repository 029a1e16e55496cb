"""The user of a command: selected by the name of the resource, by userId, or by URL."""

from __future__ import annotations

import argparse
import asyncio
import base64
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import jwt

from userrealtime_operator.kube.duration import parse_duration

from .cluster import Cluster
from .errors import CommandError

Connect = Callable[[], Cluster]
TOKEN_VARIABLE: Final = "USERREALTIME_TOKEN"  # noqa: S105 (its name)
TOKEN_LIFE_S: Final = 600.0


@dataclass(frozen=True)
class User:
    """A user's URL, and a function that returns a token."""

    url: str
    token: Callable[[], Awaitable[str]]


def add_who(parser: argparse.ArgumentParser, *, by_url: bool = False) -> None:
    """Add the arguments that select the user."""
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("name", nargs="?", help="the name of the UserRealtime")
    who.add_argument("--user-id", metavar="ID", help="or its userId; this needs permission to list UserRealtimes")
    if by_url:
        who.add_argument(
            "--connect", metavar="URL", help=f"or the user's URL, with a token in {TOKEN_VARIABLE}; needs no cluster"
        )
    parser.add_argument(
        "--claim",
        type=claim,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an additional claim of the token, such as iss=... or aud=..., if the platform requires it; "
        "can be repeated",
    )


def resource_of(options: argparse.Namespace, cluster: Cluster) -> Mapping[str, Any]:
    """Return the resource that the arguments select."""
    return cluster.resource(options.name) if options.name else cluster.resource_of(options.user_id)


def user_of(options: argparse.Namespace, connect: Connect) -> User:
    """Return the user that the arguments select.

    Raises:
        CommandError: there is no such user, or the user has no URL or no key.
    """
    if options.connect:
        given = os.environ.get(TOKEN_VARIABLE)
        if not given:
            raise CommandError(f"set the variable {TOKEN_VARIABLE} to a token of the user")

        async def same() -> str:
            return given

        return User(options.connect, same)
    cluster = connect()
    resource = resource_of(options, cluster)
    url = url_of(resource)

    def mint_now() -> str:  # with the current key, because it can be replaced at any time
        return mint(signing_key(cluster, resource), resource, TOKEN_LIFE_S, options.claim)

    mint_now()  # to report problems immediately

    async def fresh() -> str:
        return await asyncio.to_thread(mint_now)

    return User(url, fresh)


def url_of(resource: Mapping[str, Any]) -> str:
    """Return the URL that a user's clients connect to.

    Raises:
        CommandError: the user has no URL.
    """
    url: str | None = resource.get("status", {}).get("url")
    if url is None:
        name = resource["metadata"]["name"]
        raise CommandError(
            f"{name} has no URL, because it has no route (see spec.route.enabled, or: kubectl describe urt {name})"
        )
    return url


def signing_key(cluster: Cluster, resource: Mapping[str, Any]) -> bytes:
    """Return the key that signs a user's tokens.

    Raises:
        CommandError: there is no key, or reading it is not permitted.
    """
    reference = resource.get("status", {}).get("tokenSecret")
    if reference is None:
        name = resource["metadata"]["name"]
        raise CommandError(
            f"{name} has no key yet: the operator has not processed it (is it running? does it serve namespace "
            f"{cluster.namespace}? see: kubectl describe urt {name})"
        )
    secret = cluster.secret(reference["name"])
    try:
        return base64.b64decode(secret["data"][reference["key"]], validate=True)
    except (KeyError, TypeError, ValueError):
        raise CommandError(f"the Secret {secret['metadata']['name']} has no valid {reference['key']}") from None


def mint(key: bytes, resource: Mapping[str, Any], ttl_s: float, claims: list[tuple[str, str]]) -> str:
    """Return a JWT for the user of a resource."""
    # Without `iat`, because the relay would reject it if the clock of this machine is ahead.
    payload = {"sub": resource["spec"]["userId"], "exp": int(time.time() + ttl_s), **dict(claims)}
    return jwt.encode(payload, key, algorithm="HS256")


def claim(text: str) -> tuple[str, str]:
    """Parse an argument with the name and the value of a claim."""
    name, separator, value = text.partition("=")
    if not (name and separator) or name in ("exp", "nbf", "iat"):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE, or is exp, nbf or iat, which this command sets")
    return name, value


def duration(text: str) -> float:
    """Parse an argument with a duration. The result is in seconds."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
