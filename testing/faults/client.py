"""A client that follows docs/relay.md and docs/delivery.md, and records everything that it receives.

It keeps a cursor and an epoch, resumes with both whenever it is cut off, and takes a new pair only from a `reset`. It
judges nothing: `history.judge` does, from the transcript.
"""

from __future__ import annotations

import asyncio
import json
import random
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, Literal, NamedTuple, get_args
from urllib.parse import urlencode

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage

from testing.relay.http_client import Stream, exchange

Transport = Literal["websocket", "sse", "poll"]
TRANSPORTS: Final[tuple[Transport, ...]] = get_args(Transport)
PING_S: Final = 1.0
OPEN_S: Final = 2.0
RETRY_S: Final = 0.1
POLL_S: Final = 1
SILENCE_S: Final = 3.0
"""The limit for a stream without a keep-alive, and for a poll without an answer."""


class Asked(NamedTuple):
    """The client has connected, and requested to resume from here."""

    cursor: int | None
    epoch: str | None


class Heard(NamedTuple):
    """A message of the relay."""

    message: dict[str, Any]


Entry = Asked | Heard


class Place:
    """The position of a client, which follows from the received messages. The only rule that a client needs."""

    def __init__(self) -> None:
        self.cursor: int | None = None
        self.epoch: str | None = None

    def hear(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "reset" or (kind == "connected" and self.cursor is None):
            self.cursor, self.epoch = message["cursor"], message["epoch"]
        elif kind == "connected":
            # A `connected` with another cursor precedes a `reset`, and must be ignored.
            if self.epoch is None and message["cursor"] == self.cursor:
                self.epoch = message["epoch"]
        elif kind == "event":
            self.cursor = message["id"]


class Client(ABC):
    """One client, while `run` runs. Each transport resumes in a different way."""

    def __init__(self, name: str, port: int, token: str) -> None:
        self.name = name
        self.place = Place()
        self.transcript: list[Entry] = []
        self.closes: list[int] = []
        self.awake = asyncio.Event()
        self.awake.set()
        """While it is not set, the client is disconnected."""
        self._port = port
        self._token = token
        self._abort: Callable[[], None] | None = None

    async def run(self) -> None:
        """Connect and receive, repeatedly, until cancelled."""
        while True:
            await self.awake.wait()
            try:
                await self._listen()
            except ConnectionClosed as closed:
                self.closes.append(closed.rcvd.code if closed.rcvd is not None else 1006)
            except (OSError, TimeoutError, EOFError, InvalidHandshake, InvalidMessage):
                pass
            finally:
                self._abort = None
            await asyncio.sleep(random.uniform(RETRY_S / 2, RETRY_S))  # noqa: S311 (no secret)

    def drop(self) -> None:
        """Abort the connection without a close."""
        if self._abort is not None:
            self._abort()

    def sleep(self) -> None:
        """Stay disconnected until `awake` is set."""
        self.awake.clear()
        self.drop()

    @abstractmethod
    async def _listen(self) -> None:
        """Connect once, and record everything that arrives."""

    def _hear(self, message: dict[str, Any]) -> None:
        self.place.hear(message)
        self.transcript.append(Heard(message))

    @asynccontextmanager
    async def _get(self, path: str, headers: dict[str, str]) -> AsyncIterator[Stream]:
        async with exchange(self._port, path, self._token, "GET", headers, b"") as answered:
            self._abort = answered.abort
            yield answered


class WebSocketClient(Client):
    """Sends its cursor as `last_event_id`, or as `Last-Event-ID`, and its epoch in the URL."""

    def __init__(self, name: str, port: int, token: str, *, by_header: bool) -> None:
        super().__init__(name, port, token)
        self._by_header = by_header

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
            self._abort = connection.transport.abort
            self.transcript.append(asked)
            if not self.awake.is_set():
                return
            async for text in connection:
                self._hear(json.loads(text))
            raise ConnectionClosed(connection.protocol.close_rcvd, connection.protocol.close_sent)


class StreamClient(Client):
    """Behaves like an EventSource: its position is only the last id, which it sends back unchanged."""

    def __init__(self, name: str, port: int, token: str) -> None:
        super().__init__(name, port, token)
        self._last_id = ""

    async def _listen(self) -> None:
        cursor, _, epoch = self._last_id.partition(":")
        headers = {"Last-Event-ID": self._last_id} if self._last_id else {}
        async with asyncio.timeout(OPEN_S) as opening, self._get("/sse", headers) as answered:
            if answered.answer.status != 200 or not self.awake.is_set():
                return
            self.transcript.append(Asked(int(cursor) if cursor else None, epoch or None))
            rest = b""
            while True:
                opening.reschedule(asyncio.get_running_loop().time() + SILENCE_S)
                chunk = await answered.chunk()
                if not chunk:
                    return
                *blocks, rest = (rest + chunk).split(b"\n\n")
                for block in blocks:
                    self._take(dict(line.partition(": ")[::2] for line in block.decode().split("\n")))

    def _take(self, fields: dict[str, str]) -> None:
        self._last_id = fields.get("id", self._last_id)
        if "data" in fields:
            message = json.loads(fields["data"])
            if message["type"] == "close":
                self.closes.append(message["code"])
            else:
                self._hear(message)


class PollClient(Client):
    """Polls with `cursor` and `epoch`. A response is recorded as the messages of a connection."""

    async def _listen(self) -> None:
        while self.awake.is_set():
            asked = Asked(self.place.cursor, self.place.epoch)
            query = {name: value for name, value in asked._asdict().items() if value is not None}
            path = f"/poll?{urlencode({**query, 'timeout': POLL_S})}"
            async with asyncio.timeout(SILENCE_S), self._get(path, {}) as answered:
                if answered.answer.status != 200:
                    return
                body = await answered.reader.readexactly(int(answered.answer.headers["content-length"]))
            self._take(asked, json.loads(body))

    def _take(self, asked: Asked, answer: dict[str, Any]) -> None:
        cursor, epoch = answer["cursor"], answer["epoch"]
        self.transcript.append(asked)
        if "reset" in answer:
            self._hear({"type": "connected", "cursor": cursor, "epoch": epoch})
            self._hear({"type": "reset", "reason": answer["reset"], "cursor": cursor, "epoch": epoch})
        else:
            begin = cursor if asked.cursor is None else asked.cursor
            self._hear({"type": "connected", "cursor": begin, "epoch": epoch})
        for event in answer["events"]:
            self._hear(event)
        if self.place.cursor != cursor:
            self._hear({"type": "a cursor that is not that of the last event", "cursor": cursor})


def make(transport: Transport, name: str, port: int, token: str, *, by_header: bool) -> Client:
    """Return a client of one transport. Only a WebSocket can send its cursor in two ways."""
    if transport == "websocket":
        return WebSocketClient(name, port, token, by_header=by_header)
    return (StreamClient if transport == "sse" else PollClient)(name, port, token)
