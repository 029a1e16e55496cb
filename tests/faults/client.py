"""A client that does what docs/relay.md and docs/delivery.md tell, and writes down all it hears.

It keeps a cursor and an epoch, resumes with both whenever it is cut off, and takes a new pair from `reset` alone. It
judges nothing: `history.judge` does, from the transcript.
"""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage

PING_S: Final = 1.0
OPEN_S: Final = 2.0
RETRY_S: Final = 0.1


class Asked(NamedTuple):
    """The client connected, and asked to go on from here."""

    cursor: int | None
    epoch: str | None


class Heard(NamedTuple):
    """The relay said this."""

    message: dict[str, Any]


Entry = Asked | Heard


class Place:
    """Where a client stands, as it follows from what it has heard. The one rule a client needs, in one place."""

    def __init__(self) -> None:
        self.cursor: int | None = None
        self.epoch: str | None = None

    def hear(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "reset" or (kind == "connected" and self.cursor is None):
            self.cursor, self.epoch = message["cursor"], message["epoch"]
        elif kind == "connected":
            # A `connected` at another cursor than ours comes before a `reset`, and is not to be acted on.
            if self.epoch is None and message["cursor"] == self.cursor:
                self.epoch = message["epoch"]
        elif kind == "event":
            self.cursor = message["id"]


class Client:
    """One client, for as long as `run` runs.

    Args:
        by_header: send cursor and epoch as `Last-Event-ID` and in the URL; else both in the URL.
    """

    def __init__(self, name: str, port: int, token: str, *, by_header: bool) -> None:
        self.name = name
        self.place = Place()
        self.transcript: list[Entry] = []
        self.closes: list[int] = []
        self.awake = asyncio.Event()
        self.awake.set()
        """While not set, the client is away."""
        self._port = port
        self._token = token
        self._by_header = by_header
        self._connection: ClientConnection | None = None

    async def run(self) -> None:
        """Connect, listen, and again, until cancelled."""
        while True:
            await self.awake.wait()
            try:
                await self._listen()
            except ConnectionClosed as closed:
                self.closes.append(closed.rcvd.code if closed.rcvd is not None else 1006)
            except (OSError, TimeoutError, EOFError, InvalidHandshake, InvalidMessage):
                pass
            finally:
                self._connection = None
            await asyncio.sleep(random.uniform(RETRY_S / 2, RETRY_S))  # noqa: S311 (no secret)

    def drop(self) -> None:
        """Break the connection off, without a word."""
        if self._connection is not None:
            self._connection.transport.abort()

    def sleep(self) -> None:
        """Be away until `awake` is set."""
        self.awake.clear()
        self.drop()

    async def _listen(self) -> None:
        asked = Asked(self.place.cursor, self.place.epoch)
        headers = {"Authorization": f"Bearer {self._token}"}
        query: dict[str, str] = {}
        if asked.cursor is not None:
            if self._by_header:
                headers["Last-Event-ID"] = str(asked.cursor)
            else:
                query["last_event_id"] = str(asked.cursor)
            if asked.epoch is not None:
                query["epoch"] = asked.epoch
        async with connect(
            f"ws://127.0.0.1:{self._port}/ws?{urlencode(query)}",
            additional_headers=headers,
            proxy=None,
            compression=None,
            max_size=None,
            open_timeout=OPEN_S,
            close_timeout=0.5,
            ping_interval=PING_S,
            ping_timeout=PING_S,
        ) as connection:
            self._connection = connection
            self.transcript.append(asked)
            if not self.awake.is_set():
                return
            async for text in connection:
                message = json.loads(text)
                self.place.hear(message)
                self.transcript.append(Heard(message))
            raise ConnectionClosed(connection.protocol.close_rcvd, connection.protocol.close_sent)
