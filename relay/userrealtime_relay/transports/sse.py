"""Server-Sent Events: a response without an end, whose every message is one `data:` line, the JSON of the WebSocket.

Messages except broadcasts have no name, so `EventSource.onmessage` receives all of them. Messages that change the
client's position have an `id`: the event's number, a colon, and the epoch of the log. When an EventSource reconnects,
it sends only the last id, and a number without its epoch does not identify the log.

Before the relay ends a stream, it sends a message `close`, since SSE has no close codes. While the relay drains, new
clients also get a stream with this message: after any other status than 200, an EventSource does not reconnect.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from starlette.types import Receive, Scope, Send

from userrealtime_core.wire.connect_request import CloseCode
from userrealtime_core.wire.frames import payloads
from userrealtime_relay.delivery.clients import CLOSE_TIMEOUT, RESTARTING_REASON, Client, Clients
from userrealtime_relay.delivery.wakeup import WakeupEvent

from .http import Connection
from .request import connect_request_of, connection_of, parameters_of, refusal, retry_after, sender_of

HEADERS: Final = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store, no-transform"),
    (b"x-accel-buffering", b"no"),  # otherwise nginx would buffer the response
    (b"connection", b"close"),
]
KEEP_ALIVE: Final = b":\n\n"
BROADCAST: Final = b"event: broadcast\n"
"""The name of broadcasts, which have no id. `EventSource.onmessage` does not receive them."""
GONE: Final = "1006"
"""The label for a connection that the client ended, as for WebSockets."""

_logger = logging.getLogger(__name__)


class Streams:
    """The ASGI application at `/sse`."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._encoder = Encoder()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        clients, connection = self._clients, connection_of(scope)
        session = await clients.authenticate(connect_request_of(scope, clients.config))
        if session.closing is not None:
            await refusal(session.closing)(scope, receive, send)
            return
        if clients.draining:
            session.close(CloseCode.RESTARTING, RESTARTING_REASON)
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        wake = WakeupEvent()
        config = clients.config
        connection.hold(wake.set, dead_after=2 * max(config.ping_interval, config.send_timeout))
        sender = sender_of(parameters_of(scope))
        client = Client(session, clients, _Writer(connection, self._encoder), wake, sender=sender)
        with clients.present(client):
            try:
                await self._carry(client, connection, send)
            except Exception:
                _logger.exception("a client failed")
                await connection.abort()
        code = GONE if session.closing is None else str(int(session.closing.code))
        clients.count_close(code, session.closing)
        _logger.info("stream closed", extra={"fields": {"code": code, "connected": clients.connected}})

    async def _carry(self, client: Client, connection: Connection, send: Send) -> None:
        connection.write(_retry(retry_after(None)))
        with keeping_alive(connection, self._clients.config.ping_interval):
            await client.run()
        closing = client.session.closing
        if closing is None:
            return
        if closing.code is CloseCode.TRY_LATER:
            connection.write(_retry(retry_after(closing)))
        connection.write(
            _message(json.dumps({"type": "close", "code": closing.code, "reason": closing.reason}).encode())
        )

        async def end() -> None:
            await send({"type": "http.response.body"})
            await connection.lost.wait()

        await connection.finish(end(), patience=CLOSE_TIMEOUT)


class Encoder:
    """Encodes frames as messages of a stream. Clients at the head get the same frames, so the last result is kept."""

    def __init__(self) -> None:
        self._last: tuple[bytes, str | None, bytes] = b"", None, b""

    def __call__(self, frames: bytes, cursor: int, epoch: str | None) -> bytes:
        """The messages for `frames`, of which the last is the event numbered `cursor`."""
        last_frames, last_epoch, encoded = self._last
        if frames != last_frames or epoch != last_epoch:
            texts = list(payloads(frames))
            first = cursor + 1 - len(texts)
            encoded = b"".join(_message(text, _id(first + place, epoch)) for place, text in enumerate(texts))
            self._last = frames, epoch, encoded
        return encoded


class _Writer:
    """The writer of a client's stream."""

    def __init__(self, connection: Connection, encoder: Encoder) -> None:
        self._connection = connection
        self._encoder = encoder

    @property
    def open(self) -> bool:
        return not self._connection.lost.is_set()

    @property
    def paused(self) -> bool:
        return self._connection.paused

    @property
    def unsent(self) -> int:
        return self._connection.unsent

    def authenticated(self) -> None:
        self._connection.authenticated()

    def abort(self) -> None:
        self._connection.transport.abort()

    def write_messages(self, messages: Sequence[str], cursor: int, epoch: str | None) -> None:
        # Only the last one has an id: a client that disconnects between `connected` and `reset` must not skip the gap.
        *before, last = (message.encode() for message in messages)
        self._connection.write(b"".join((*map(_message, before), _message(last, _id(cursor, epoch)))))

    def write_events(self, frames: bytes, cursor: int, epoch: str | None) -> None:
        self._connection.write(self._encoder(frames, cursor, epoch))

    def write_broadcasts(self, frames: bytes) -> None:
        self._connection.write(b"".join(_message(text, BROADCAST) for text in payloads(frames)))


@contextmanager
def keeping_alive(connection: Connection, interval: float) -> Iterator[None]:
    """Send a comment every `interval` seconds, for proxies with an idle timeout, and to detect lost clients."""
    loop = asyncio.get_running_loop()
    timer = loop.call_later(interval, lambda: beat())

    def beat() -> None:
        nonlocal timer
        if not connection.paused:
            connection.write(KEEP_ALIVE)
        timer = loop.call_later(interval, beat)

    try:
        yield
    finally:
        timer.cancel()


def _id(cursor: int, epoch: str | None) -> bytes:
    # An epoch is a UUID, unless an administrator has set one that does not fit in a line.
    if epoch is None or not (epoch.isascii() and epoch.isprintable()):
        return b"id: %d\n" % cursor
    return b"id: %d:%b\n" % (cursor, epoch.encode())


def _message(text: bytes | memoryview, identity: bytes = b"") -> bytes:
    return b"".join((identity, b"data: ", text, b"\n\n"))


def _retry(seconds: float) -> bytes:
    return b"retry: %d\n\n" % round(seconds * 1000)
