"""Which user a command is about: named by their resource, by their userId, or by their URL alone."""

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
    """A user's URL, and what makes their tokens."""

    url: str
    token: Callable[[], Awaitable[str]]


def add_who(parser: argparse.ArgumentParser, *, by_url: bool = False) -> None:
    """The arguments that say which user it is."""
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("name", nargs="?", help="the name of the UserRealtime")
    who.add_argument("--user-id", metavar="ID", help="or its userId; it takes the right to list UserRealtimes")
    if by_url:
        who.add_argument(
            "--connect", metavar="URL", help=f"or the user's URL, with a token in {TOKEN_VARIABLE}; no cluster is asked"
        )
    parser.add_argument(
        "--claim",
        type=claim,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="one more claim of the token, such as iss=... or aud=... where the platform asks for them; "
        "may be repeated",
    )


def resource_of(options: argparse.Namespace, cluster: Cluster) -> Mapping[str, Any]:
    """The resource that the arguments name."""
    return cluster.resource(options.name) if options.name else cluster.resource_of(options.user_id)


def user_of(options: argparse.Namespace, connect: Connect) -> User:
    """The user that the arguments name, who can be reached.

    Raises:
        CommandError: there is no such user, or no way to them.
    """
    if options.connect:
        given = os.environ.get(TOKEN_VARIABLE)
        if not given:
            raise CommandError(f"put the user's token into the variable {TOKEN_VARIABLE}")

        async def same() -> str:
            return given

        return User(options.connect, same)
    cluster = connect()
    resource = resource_of(options, cluster)
    url = url_of(resource)

    def mint_now() -> str:  # with the key as it is now: it may be replaced meanwhile
        return mint(signing_key(cluster, resource), resource, TOKEN_LIFE_S, options.claim)

    mint_now()  # what stands in the way is told at once

    async def fresh() -> str:
        return await asyncio.to_thread(mint_now)

    return User(url, fresh)


def url_of(resource: Mapping[str, Any]) -> str:
    """Where a user's clients connect.

    Raises:
        CommandError: nowhere.
    """
    url: str | None = resource.get("status", {}).get("url")
    if url is None:
        name = resource["metadata"]["name"]
        raise CommandError(
            f"{name} has no URL: it has no route (see spec.route.enabled, or: kubectl describe urt {name})"
        )
    return url


def signing_key(cluster: Cluster, resource: Mapping[str, Any]) -> bytes:
    """The key of a user's tokens.

    Raises:
        CommandError: there is none, or it may not be read.
    """
    reference = resource.get("status", {}).get("tokenSecret")
    if reference is None:
        name = resource["metadata"]["name"]
        raise CommandError(
            f"{name} has no key yet: the operator has not seen it (is it running? does it serve namespace "
            f"{cluster.namespace}? see: kubectl describe urt {name})"
        )
    secret = cluster.secret(reference["name"])
    try:
        return base64.b64decode(secret["data"][reference["key"]], validate=True)
    except (KeyError, TypeError, ValueError):
        raise CommandError(
            f"the Secret {secret['metadata']['name']} has no {reference['key']} that can be read"
        ) from None


def mint(key: bytes, resource: Mapping[str, Any], ttl_s: float, claims: list[tuple[str, str]]) -> str:
    """A JWT for the user of a resource."""
    # Without `iat`: it would be refused where this machine's clock is ahead.
    payload = {"sub": resource["spec"]["userId"], "exp": int(time.time() + ttl_s), **dict(claims)}
    return jwt.encode(payload, key, algorithm="HS256")


def claim(text: str) -> tuple[str, str]:
    """A claim's name and value, for argparse."""
    name, separator, value = text.partition("=")
    if not (name and separator) or name in ("exp", "nbf", "iat"):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE, or one of exp, nbf and iat, which are made here")
    return name, value


def duration(text: str) -> float:
    """Seconds, for argparse."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
