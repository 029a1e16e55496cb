"""The connections of a port that have not authenticated: a limited number, of which the oldest makes room.

A port has to accept a connection before it can check a token, so anyone can open one.
If a full port refused new connections, a few idle ones would keep out every client with a valid token.
So a new connection is always taken, and the oldest one without a token is closed for it.
A client with a valid token leaves this budget as soon as the token is accepted, within one round trip if it sends the
token with its request; then no unauthenticated connection can displace it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable


class Unauthenticated:
    """The unauthenticated connections, oldest first.

    Args:
        limit: how many may be open at a time.
        evicted: called for each connection that is closed to make room for another one.
    """

    def __init__(self, limit: int, evicted: Callable[[], None] = lambda: None) -> None:
        self.limit = limit
        self._evicted = evicted
        self._open: dict[Hashable, Callable[[], None]] = {}

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, connection: Hashable) -> bool:
        return connection in self._open

    def enter(self, connection: Hashable, close: Callable[[], None]) -> None:
        """Add a connection, and close the oldest one if there are too many.

        Args:
            close: closes the connection. Of a connection that is here already, it replaces the former way to close it;
                its age stays the same.
        """
        self._open[connection] = close
        if len(self._open) > self.limit:
            oldest = next(iter(self._open))
            close_oldest = self._open.pop(oldest)
            self._evicted()
            close_oldest()

    def leave(self, connection: Hashable) -> bool:
        """Remove a connection, which has authenticated or ended. False if it is not here, as after its eviction."""
        return self._open.pop(connection, None) is not None
