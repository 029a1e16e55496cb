"""Registers the address of this relay with the activators, which clients of a new pod wait for.

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
"""Seconds for the whole registration."""

_logger = logging.getLogger(__name__)


async def register_address(url: str, address: str, key: str) -> None:
    """Send the address to every host that the name in `url` resolves to. Raises nothing."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 80
    request = (
        f"POST {parts.path or '/'} HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: Bearer {sign(key, address)}\r\n"
        "Content-Length: 0\r\nConnection: close\r\n\r\n"
    ).encode()
    try:
        async with asyncio.timeout(TIMEOUT):
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
            outcomes = await asyncio.gather(*(_send(str(place[4][0]), port, request) for place in found))
    except (OSError, TimeoutError) as error:
        outcomes = [type(error).__name__]
    _logger.debug("registered the address", extra={"fields": {"outcomes": outcomes}})


async def _send(host: str, port: int, request: bytes) -> str:
    """Return the status line of the response, or the error."""
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
