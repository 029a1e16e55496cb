"""Registers the address of this relay with the activators, so that waiting clients need not wait for the cluster.

A kubelet polls its container runtime once a second, and only then is the pod's address in the API. The relay knows its
address when it starts: it sends it to each activator, once, signed with its user's own key. An activator that does not
wait for this user ignores it; an activator that does not receive it waits for the cluster.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Final
from urllib.parse import urlsplit

from userrealtime_core.registration import sign

TIMEOUT: Final = 2
"""Seconds for all of it."""

_logger = logging.getLogger(__name__)


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
