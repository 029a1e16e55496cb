"""Redis publish/subscribe: a message without a subscriber is dropped, which is sufficient for a signal.

The channel is `user:{id}:events`. The protocol, RESP2, is implemented here: the client library would take 19 MiB for
every user, for four commands.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Final
from urllib.parse import unquote, urlsplit

from userrealtime_core.secret import Secret
from userrealtime_core.trust import client_context
from userrealtime_core.wire.broadcast import Broadcast
from userrealtime_core.wire.position import LogMoved

from . import OnMessage, Publish, Subscription, Unreachable, encode

DEFAULT_PORT: Final = 6379
CONNECT_TIMEOUT: Final = 5
ANSWER_TIMEOUT: Final = 5
PING_INTERVAL: Final = 10
"""Seconds. A server that does not answer a ping counts as lost."""
MAX_DEPTH: Final = 4
MAX_BYTES: Final = 64 << 10
"""The longest line, and the longest reply with all that it contains. Signals, broadcasts and the replies to our
commands are smaller."""
ELEMENT_BYTES: Final = 64
"""What an element of a reply counts, with its content or without."""

Reply = bytes | int | list["Reply"] | None


class _Refused(Exception):
    """The server answered with an error; the message is its own."""


class _Malformed(Exception):
    """The server does not speak RESP."""


def channel(user_id: str) -> str:
    """Where signals of one user are published."""
    return f"user:{user_id}:events"


def broadcast_channel(name: str) -> str:
    """Where the broadcasts of one user are published."""
    return f"user:{name}:broadcasts"


async def subscribe(url: Secret, user_id: str, on_message: OnMessage, broadcasts: Subscription | None = None) -> None:
    """As `Broker.subscribe`."""
    async with _connected(url) as connection:
        with _failures():
            signals, names = channel(user_id).encode(), [channel(user_id)]
            if broadcasts is not None:
                names.insert(0, broadcast_channel(broadcasts[0]))
            connection.send("SUBSCRIBE", *names)
            async for reply in _replies(connection):
                if isinstance(reply, list) and len(reply) == 3:
                    kind, name, payload = reply
                    if kind == b"subscribe" and name == signals:
                        on_message(b"")
                    elif kind == b"message" and isinstance(payload, bytes):
                        if name == signals:
                            on_message(payload)
                        elif broadcasts is not None:
                            broadcasts[1](payload)


@asynccontextmanager
async def publishing(url: Secret) -> AsyncIterator[Publish]:
    """As `Broker.publishing`."""
    async with _connected(url) as connection:

        async def publish(messages: Sequence[LogMoved | Broadcast]) -> None:
            with _failures():
                async with asyncio.timeout(ANSWER_TIMEOUT):
                    for message in messages:
                        if isinstance(message, Broadcast):
                            connection.send("PUBLISH", broadcast_channel(message.channel), message.message)
                        else:
                            connection.send("PUBLISH", channel(message.user_id), encode(message.position))
                    connection.send("PING")
                    for _ in range(len(messages) + 1):
                        await connection.receive()

        yield publish


class _Connection:
    """One connection. Replies come in the order of the commands."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._allowed = 0
        """What the rest of the current reply can count."""

    def send(self, *words: str | bytes) -> None:
        """Send a command without waiting: commands are small, and the caller waits for the replies."""
        parts = [b"*%d\r\n" % len(words)]
        for word in words:
            data = word.encode() if isinstance(word, str) else word
            parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
        self._writer.write(b"".join(parts))

    async def receive(self, depth: int = 0) -> Reply:
        """Return the next reply or message. After a cancellation, the connection is unusable.

        Raises:
            _Refused, _Malformed, OSError, EOFError, asyncio.LimitOverrunError: the connection is then unusable.
        """
        if depth == 0:
            self._allowed = MAX_BYTES
        line = (await self._reader.readuntil(b"\r\n"))[:-2]
        kind, rest = line[:1], line[1:]
        self._count(ELEMENT_BYTES + len(rest) if depth else 0)
        if kind == b"+":
            return rest
        if kind == b"-":
            raise _Refused(rest.decode(errors="replace"))
        try:
            number = int(rest)
        except ValueError:
            raise _Malformed(f"a line of type {kind!r}") from None
        if kind == b":":
            return number
        if kind == b"$":
            self._count(number)
            return None if number < 0 else (await self._reader.readexactly(number + 2))[:-2]
        if kind == b"*" and number <= MAX_BYTES // ELEMENT_BYTES and depth < MAX_DEPTH:
            return [await self.receive(depth + 1) for _ in range(number)]
        raise _Malformed(f"a line of type {kind!r}")

    def _count(self, size: int) -> None:
        self._allowed -= max(0, size)
        if self._allowed < 0:
            raise _Malformed(f"a reply of more than {MAX_BYTES} bytes")


async def _replies(connection: _Connection) -> AsyncIterator[Reply]:
    """Yield all replies and messages, as long as the server answers pings."""
    while True:
        # A task: a reply that has arrived in part must not be dropped when a ping is due.
        receiving = asyncio.create_task(connection.receive())
        try:
            done, _ = await asyncio.wait([receiving], timeout=PING_INTERVAL)
            if not done:
                connection.send("PING")
                done, _ = await asyncio.wait([receiving], timeout=PING_INTERVAL)
            if not done:
                raise TimeoutError("it does not answer")
            yield receiving.result()
        finally:
            receiving.cancel()


@asynccontextmanager
async def _connected(url: Secret) -> AsyncIterator[_Connection]:
    """A connection to the first of the servers that answers, with the database's user logged in."""
    with _failures():
        reader, writer = await _open(url)
    try:
        yield _Connection(reader, writer)
    finally:
        writer.transport.abort()


async def _open(url: Secret) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    servers = url.reveal().split(",")
    for index, server in enumerate(servers):
        parts = urlsplit(server)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                reader, writer = await asyncio.open_connection(
                    parts.hostname,
                    parts.port or DEFAULT_PORT,
                    ssl=client_context() if parts.scheme == "rediss" else None,
                    limit=MAX_BYTES,
                )
                try:
                    if parts.password is not None:
                        connection = _Connection(reader, writer)
                        user = [unquote(parts.username)] if parts.username else []
                        connection.send("AUTH", *user, unquote(parts.password))
                        await connection.receive()
                    return reader, writer
                except BaseException:
                    writer.transport.abort()
                    raise
        except (OSError, TimeoutError, EOFError):
            if index == len(servers) - 1:
                raise
    raise OSError("there is no server")


@contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except (OSError, TimeoutError, EOFError, _Refused, _Malformed, asyncio.LimitOverrunError) as error:
        raise Unreachable(f"{type(error).__name__.strip('_')}: {error}") from None
