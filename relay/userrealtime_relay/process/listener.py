"""A port on which a process listens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable


class Listener:
    """A port, and the connections that end with it.

    Args:
        transports: returns the transports of these connections.
    """

    def __init__(self, server: asyncio.Server, transports: Callable[[], Iterable[asyncio.Transport]]) -> None:
        self._server = server
        self._transports = transports

    @property
    def port(self) -> int:
        """The number of the port; the system chooses one for 0."""
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def close(self) -> None:
        """Stop listening, and abort the connections."""
        self._server.close()
        for transport in list(self._transports()):
            transport.abort()
