"""What one activator knows of the sessions of long polling of Socket.IO (`polling`). No I/O.

It remembers which sessions had a valid token, since their requests must not make room for others, and why it has
rejected a token, since a client reads that with its next poll.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Final

MAX_SESSIONS: Final = 10_000
"""The number of sessions that are remembered; the oldest are dropped."""


class Polls:
    """The sessions of long polling, as far as one activator knows them."""

    def __init__(self) -> None:
        self._authenticated: OrderedDict[str, None] = OrderedDict()
        self._rejections: OrderedDict[str, bytes] = OrderedDict()
        self._waiting: dict[str, set[asyncio.Future[bytes]]] = {}

    def authenticate(self, sid: str) -> None:
        """Note that a session has a valid token."""
        self._authenticated[sid] = None
        if len(self._authenticated) > MAX_SESSIONS:
            self._authenticated.popitem(last=False)

    def is_authenticated(self, sid: str) -> bool:
        """Return whether a session had a valid token."""
        return sid in self._authenticated

    def reject(self, sid: str, body: bytes) -> None:
        """Keep the last packets of a session, for its next poll."""
        self._rejections[sid] = body
        if len(self._rejections) > MAX_SESSIONS:
            self._rejections.popitem(last=False)
        for waiter in self._waiting.get(sid, ()):
            if not waiter.done():
                waiter.set_result(body)

    async def rejection(self, sid: str) -> bytes:
        """Wait for the last packets of a session."""
        if sid in self._rejections:
            return self._rejections[sid]
        waiter: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        waiters = self._waiting.setdefault(sid, set())
        waiters.add(waiter)
        try:
            return await waiter
        finally:
            waiters.discard(waiter)
            if not waiters:
                self._waiting.pop(sid, None)
