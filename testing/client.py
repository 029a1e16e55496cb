"""A well-behaved client: it stays connected, and resumes after its last event."""

from __future__ import annotations

import asyncio
import contextlib
import json
import urllib.request
from collections.abc import AsyncIterator, Callable, Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from .patience import PATIENCE_S

OPEN_TIMEOUT_S = 10
LOOPBACK = "127.0.0.1"
RETRY_S = 0.2


def is_this_machine(url: str) -> bool:
    """Return whether a URL's host is `localhost` or below it (RFC 6761), which some resolvers do not support."""
    return f".{urlsplit(url).hostname}".endswith(".localhost")


def http_get(url: str, headers: Mapping[str, str], timeout: float = PATIENCE_S) -> Any:
    """`urllib.request.urlopen` of a URL, which may be of this machine; to be used as a context manager."""
    address = urlsplit(url)
    if is_this_machine(url):
        headers = {**headers, "Host": address.netloc}
        address = address._replace(netloc=LOOPBACK if address.port is None else f"{LOOPBACK}:{address.port}")
    return urllib.request.urlopen(urllib.request.Request(address.geturl(), headers=dict(headers)), timeout=timeout)


async def open_connection(
    url: str,
    token: str | None,
    *,
    last_event_id: int | None = None,
    origin: str | None = None,
    open_timeout: float = OPEN_TIMEOUT_S,
) -> ClientConnection:
    """Open one connection. The token is in the header, as servers and command-line clients send it."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    if last_event_id is not None:
        headers["Last-Event-ID"] = str(last_event_id)
    if origin is not None:
        headers["Origin"] = origin
    elsewhere: dict[str, Any] = {"host": LOOPBACK} if is_this_machine(url) else {}
    return await connect(
        url, additional_headers=headers, open_timeout=open_timeout, max_size=4 << 20, proxy=None, **elsewhere
    )


async def receive(connection: ClientConnection, timeout: float = PATIENCE_S) -> dict[str, Any]:
    """Return the next message."""
    message: dict[str, Any] = json.loads(await asyncio.wait_for(connection.recv(), timeout))
    return message


class ResumingClient:
    """Records all received events in `events`, over any number of connections. An async context manager."""

    def __init__(
        self,
        url: str,
        token: str,
        *,
        on_event: Callable[[dict[str, Any]], None] | None = None,
        last_event_id: int | None = None,
        open_timeout: float = OPEN_TIMEOUT_S,
    ) -> None:
        self.events: list[dict[str, Any]] = []
        self.resets: list[dict[str, Any]] = []
        self.connections = 0
        self._url = url
        self._token = token
        self._on_event = on_event
        self._cursor = last_event_id
        self._open_timeout = open_timeout
        self._changed = asyncio.Condition()
        self._task: asyncio.Task[None]

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        async with asyncio.timeout(PATIENCE_S):
            async with self._changed:
                await self._changed.wait_for(lambda: self.connections > 0 or self._task.done())
        if self._task.done():
            self._task.result()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    @property
    def ids(self) -> list[int]:
        return [event["id"] for event in self.events]

    async def wait_for(self, condition: Callable[[], bool], timeout: float = PATIENCE_S) -> None:
        """Wait until `condition` holds; it is checked after each message."""
        async with asyncio.timeout(timeout), self._changed:
            await self._changed.wait_for(condition)

    async def wait_for_events(self, count: int, timeout: float = PATIENCE_S) -> None:
        """Wait until this number of events has arrived since the start of the client."""
        await self.wait_for(lambda: len(self.events) >= count, timeout)

    async def wait_for_more(self, count: int, timeout: float = PATIENCE_S) -> None:
        """Wait until this number of further events has arrived."""
        await self.wait_for_events(len(self.events) + count, timeout)

    async def wait_for_connections(self, count: int, timeout: float = PATIENCE_S) -> None:
        """Wait until the client has connected this number of times."""
        await self.wait_for(lambda: self.connections >= count, timeout)

    async def _run(self) -> None:
        while True:
            try:
                connection = await open_connection(
                    self._url, self._token, last_event_id=self._cursor, open_timeout=self._open_timeout
                )
            except (OSError, TimeoutError, InvalidHandshake):
                await asyncio.sleep(RETRY_S)
                continue
            async with connection:
                async for message in self._messages(connection):
                    await self._take(message)
            await asyncio.sleep(RETRY_S)

    async def _messages(self, connection: ClientConnection) -> AsyncIterator[dict[str, Any]]:
        with contextlib.suppress(ConnectionClosed):
            async for text in connection:
                yield json.loads(text)
        if connection.close_code == 1008:
            raise PermissionError("the relay refused the token")

    async def _take(self, message: dict[str, Any]) -> None:
        async with self._changed:
            if message["type"] == "connected":
                self.connections += 1
                self._cursor = message["cursor"]
            elif message["type"] == "event":
                self.events.append(message)
                self._cursor = message["id"]
                if self._on_event:
                    self._on_event(message)
            elif message["type"] == "reset":
                self.resets.append(message)
                self._cursor = message["cursor"]
            self._changed.notify_all()
