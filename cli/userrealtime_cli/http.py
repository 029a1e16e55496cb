"""HTTP sessions of the commands."""

from __future__ import annotations

import aiohttp

from userrealtime_core.trust import client_context


def session(timeout: float | None = None) -> aiohttp.ClientSession:
    """Return a session that trusts servers as `userrealtime_core.trust` describes.

    `timeout` is the limit of a request in seconds, None for no limit.
    """
    connector = aiohttp.TCPConnector(ssl=client_context())
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=timeout))
