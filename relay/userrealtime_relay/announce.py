"""Tells the activators where this relay listens, so that who waits for it need not wait until the cluster says so.

A kubelet looks at what its runtime has started once a second, and only then is the pod's address in the API. The relay
knows its address when it starts: it says it to each activator, once, signed with its user's own key. An activator that
does not wait for this user has no use for it; one that does not hear it waits for the cluster, as ever.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from typing import Final
from urllib.parse import urlsplit

import jwt

TIMEOUT: Final = 2
"""Seconds for all of it."""
LIFETIME: Final = 30
"""Seconds for which what was said is good."""
TYPE: Final = "announcement+jwt"
"""No client's token: a relay lets nobody in by it (RFC 8725, 3.11)."""
AUDIENCE: Final = "userrealtime-activator"

_logger = logging.getLogger(__name__)


class BadAnnouncement(Exception):
    """It does not come from the user's own relay, or is not of now."""


def sign(key: str, address: str) -> str:
    """An announcement of an IP address, as a JWT signed with a user's HS256 key."""
    claims = {"aud": AUDIENCE, "address": address, "exp": int(time.time()) + LIFETIME}
    return jwt.encode(claims, key, algorithm="HS256", headers={"typ": TYPE})


def read(token: str, keys: tuple[str, ...]) -> str:
    """The address that an announcement tells, if one of these keys has signed it.

    Raises:
        BadAnnouncement: none has, it has expired, or it is something else.
    """
    try:
        if jwt.get_unverified_header(token).get("typ") != TYPE:
            raise BadAnnouncement
    except jwt.PyJWTError:
        raise BadAnnouncement from None
    for key in keys:
        try:
            claims = jwt.decode(
                token, key, algorithms=["HS256"], audience=AUDIENCE, options={"require": ["exp", "aud", "address"]}
            )
        except jwt.InvalidSignatureError:
            continue
        except jwt.PyJWTError:
            break
        return str(claims["address"])
    raise BadAnnouncement


async def announce(url: str, address: str, key: str) -> None:
    """Tell all whom the host of `url` stands for that this relay listens at `address`. Raises nothing."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 80
    request = (
        f"POST {parts.path or '/'} HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: Bearer {sign(key, address)}\r\n"
        "Content-Length: 0\r\nConnection: close\r\n\r\n"
    ).encode()
    try:
        async with asyncio.timeout(TIMEOUT):
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
            outcomes = await asyncio.gather(*(_tell(str(place[4][0]), port, request) for place in found))
    except (OSError, TimeoutError) as error:
        outcomes = [type(error).__name__]
    _logger.debug("announced", extra={"fields": {"outcomes": outcomes}})


async def _tell(host: str, port: int, request: bytes) -> str:
    """The status that one of them answers, or what went wrong."""
    try:
        reader, writer = await asyncio.open_connection(host, port)
    except OSError as error:
        return type(error).__name__
    try:
        writer.write(request)
        line = await reader.readline()
    except (OSError, ValueError) as error:
        return type(error).__name__
    finally:
        writer.close()
    return line.decode("latin-1").strip()
