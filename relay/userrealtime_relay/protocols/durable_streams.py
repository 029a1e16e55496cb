"""The read side of Durable Streams: the user's log as the stream `/streams/log`, for the clients of that protocol.

A read is a catch-up, which is answered immediately, a long poll, or Server-Sent Events. The messages of the stream are
the events of the log, each as the JSON of the WebSocket. Each read is a client with a cursor into the ring, like those
of the other transports; so is HEAD, which returns only the position of the head.

The offset of a position is the number of the last event before it, in 19 digits, and the epoch of the log:
`0000000000000000042_5f0c…`. The offsets of one log therefore sort as strings. A read may also begin at a result of
`userrealtime.position`, `42:5f0c…`. A log never closes, so a stream has no end.

Where the WebSocket has `reset`, a read gets 410, since an offset must not skip events silently. Server-Sent Events that
have begun only end: the client repeats the read with its last offset, and gets the 410 then.

A catch-up, and every read from the beginning or from now, reads the state of the log again, because its response
reports whether the client has all events.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
import time
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import parse_qsl, quote, unquote

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from userrealtime_core.wire.connect_request import CloseCode, Reason, Resume
from userrealtime_core.wire.frames import payloads
from userrealtime_core.wire.longpoll import DEFAULT_TIMEOUT, LONGEST_TIMEOUT, parse_timeout
from userrealtime_core.wire.session import PendingLookup, Session
from userrealtime_relay.delivery.clients import CLOSE_TIMEOUT, RESTARTING_REASON, Client, Clients
from userrealtime_relay.delivery.tail import Tail
from userrealtime_relay.delivery.wakeup import WakeupEvent
from userrealtime_relay.transports.http import Connection
from userrealtime_relay.transports.longpoll import UNAVAILABLE
from userrealtime_relay.transports.request import connect_request_of, connection_of, refusal, refuse, retry_after
from userrealtime_relay.transports.sse import GONE, keeping_alive

ROOT: Final = "/streams"
PATH: Final = "/streams/log"
METHODS: Final = ("GET", "HEAD")

_CURSOR_BEGIN: Final = 1728432000  # 2024-10-09, from which the protocol counts
_CURSOR_INTERVAL: Final = 20
_CURSOR_JITTER: Final = 180
"""Intervals: an hour, the most by which the protocol lets a cursor go ahead of the time."""
_SECURITY: Final = [(b"x-content-type-options", b"nosniff"), (b"cross-origin-resource-policy", b"same-origin")]
"""Headers of all responses. Pages of other sites read them with CORS, to which the second one does not apply."""
_STREAM_HEADERS: Final = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-store, no-transform"),
    (b"x-accel-buffering", b"no"),  # otherwise nginx would buffer the response
    (b"connection", b"close"),
]
_RESETS: Final[dict[Reason, str]] = {
    "too-old": "the events after this offset are no longer kept",
    "ahead": "the log is shorter than this offset",
    "epoch": "this offset belongs to another log: the log was replaced",
}
_ADVICE: Final = "load the state again, and continue from the offset in Stream-Next-Offset"

_logger = logging.getLogger(__name__)

Mode = Literal["head", "catch-up", "long-poll", "sse"]
_MODES: Final[dict[str | None, Mode]] = {None: "catch-up", "long-poll": "long-poll", "sse": "sse"}
"""The mode of a GET, by the parameter `live`."""


class Position(NamedTuple):
    """A position in a log: after an event, by its number. `epoch` is None while the log has none."""

    cursor: int
    epoch: str | None

    @property
    def offset(self) -> str:
        """The offset of the position. It contains no character with a meaning in a query."""
        number = f"{self.cursor:019}"
        return number if self.epoch is None else f"{number}_{quote(self.epoch, safe='')}"

    @classmethod
    def parse(cls, offset: str) -> Position | None:
        """Return the position of an offset, or of a result of `userrealtime.position`; None if it is neither."""
        if found := _APPLICATION.fullmatch(offset):
            return cls(int(found[1]), found[2])
        found = _OFFSET.fullmatch(offset)
        return None if found is None else cls(int(found[1]), None if found[2] is None else unquote(found[2]))


_OFFSET: Final = re.compile(r"([0-9]{19})(?:_([A-Za-z0-9_.~%-]{1,1000}))?")
_APPLICATION: Final = re.compile(r"([0-9]{1,19}):([^\s,&=?/]{1,1000})")
"""With the position of the state that it has loaded, an application begins without a gap and without a repetition."""


class BadRead(Exception):
    """A request that is not a read of the protocol. The text is for the client."""


class Read(NamedTuple):
    """The parameters of a request."""

    mode: Mode
    start: Position | Literal["beginning", "now"]
    cursor: int
    """The last `Stream-Cursor` that the client received; -1 if it sends none."""
    timeout: float

    @classmethod
    def parse(cls, method: str, query: str) -> Read:
        """Parse the query of a GET or HEAD request.

        Raises:
            BadRead: a parameter is invalid or missing.
        """
        try:
            pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=32)
        except ValueError:
            raise BadRead("the query has too many parameters") from None
        parameters = dict(pairs)
        offsets = [value for name, value in pairs if name == "offset"]
        if len(offsets) > 1:
            raise BadRead("the query has more than one offset")
        if method == "HEAD":
            return cls("head", "now", -1, DEFAULT_TIMEOUT)
        mode = _MODES.get(parameters.get("live"))
        if mode is None:
            raise BadRead("live must be long-poll or sse; a request without it returns the events that exist")
        if mode != "catch-up" and not offsets:
            raise BadRead("a live read needs an offset: -1, now, or the Stream-Next-Offset of a response")
        offset = offsets[0] if offsets else "-1"
        start: Position | Literal["beginning", "now"] | None
        if offset == "-1":
            start = "beginning"
        elif offset == "now":
            start = "now"
        else:
            start = Position.parse(offset)
        if start is None:
            raise BadRead("offset must be -1, now, or the Stream-Next-Offset of a response")
        timeout = parse_timeout(parameters.get("timeout", "")) if mode == "long-poll" else DEFAULT_TIMEOUT
        if timeout is None:
            raise BadRead(f"timeout must be seconds, from 0 to {LONGEST_TIMEOUT}")
        cursor = parameters.get("cursor", "")
        known = int(cursor) if re.fullmatch(r"[0-9]{1,15}", cursor) else -1
        return cls(mode, start, known, timeout)

    @property
    def resume(self) -> Resume:
        """The position for the session. The beginning is known only when the log was read."""
        return Resume(*self.start) if isinstance(self.start, Position) else Resume()

    @property
    def fresh(self) -> bool:
        """Whether the state of the log must be read again."""
        return self.mode in ("head", "catch-up") or not isinstance(self.start, Position)


def interval(now: float) -> int:
    """Return the cursor of a time, in seconds since 1970."""
    return int(now - _CURSOR_BEGIN) // _CURSOR_INTERVAL


def next_cursor(given: int, now: float) -> int:
    """Return the cursor for a response to a client that has sent `given`. It is always greater."""
    current = interval(now)
    return current if given < current else given + random.randint(1, _CURSOR_JITTER)  # noqa: S311 (no secret)


def routes(clients: Clients) -> list[Route]:
    """Return the routes of the protocol."""
    paths = clients.config.paths
    return [
        *(Route(path, DurableStreams(clients)) for path in paths(PATH)),
        *(Route(f"{path}/{{name:path}}", _NoStream()) for path in paths(ROOT)),
    ]


class DurableStreams:
    """The ASGI application at `/streams/log`."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._encoder = Encoder()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method: str = scope["method"]
        secured = _secured(send)
        if method not in METHODS:
            error = (
                "the stream is read only: the application publishes to it, in its database; "
                "a client sends messages to the application with POST /publish"
            )
            headers = {"Allow": ", ".join(METHODS), "Cache-Control": "no-store"}
            await JSONResponse({"error": error}, HTTPStatus.METHOD_NOT_ALLOWED, headers)(scope, receive, secured)
        elif connection_of(scope).has_body:
            await refuse(HTTPStatus.BAD_REQUEST, f"a {method} request has no body here")(scope, receive, secured)
        else:
            await self._read(method, scope, receive, secured)

    async def _read(self, method: str, scope: Scope, receive: Receive, send: Send) -> None:
        clients = self._clients
        read: Read | BadRead
        try:
            read = Read.parse(method, scope["query_string"].decode("latin-1"))
            resume = read.resume
        except BadRead as error:
            read, resume = error, Resume()
        session = await clients.authenticate(connect_request_of(scope, clients.config)._replace(resume=resume))
        if clients.draining:
            session.close(CloseCode.RESTARTING, RESTARTING_REASON)
        if session.closing is not None:
            await refusal(session.closing)(scope, receive, send)
        elif isinstance(read, BadRead):
            await refuse(HTTPStatus.BAD_REQUEST, str(read))(scope, receive, send)
        else:
            if read.fresh:
                session.question = PendingLookup.FRESH_POSITION
            if read.mode == "sse":
                await self._stream(session, read, scope, receive, send)
            else:
                await self._answer(session, read, scope, receive, send)

    async def _answer(self, session: Session, read: Read, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond to a read that is not a stream."""
        clients, connection = self._clients, connection_of(scope)
        wake = WakeupEvent()
        _hold(connection, wake, clients)
        writer = _Collector(connection, clients.tail, session, read)
        client = Client(session, clients, writer, wake, None, parkable=False)
        with clients.present(client):
            await _run(client, writer, read.timeout)
            responding = _respond(writer, session, scope, receive, send)
            await connection.finish(responding, patience=clients.config.send_timeout)
        if session.closing is not None:
            clients.count_close(str(int(session.closing.code)), session.closing)

    async def _stream(self, session: Session, read: Read, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond with Server-Sent Events."""
        clients, connection = self._clients, connection_of(scope)
        wake = WakeupEvent()
        _hold(connection, wake, clients)
        writer = _Stream(connection, clients.tail, session, read, self._encoder)
        client = Client(session, clients, writer, wake, None, parkable=False)
        with clients.present(client):
            try:
                await _run(client, writer, DEFAULT_TIMEOUT)
                if writer.position is None or writer.reset is not None:
                    await _refuse(writer, session, scope, receive, send)
                else:
                    await self._carry(client, writer, connection, send)
            except Exception:
                _logger.exception("a client failed")
                await connection.abort()
        code = GONE if session.closing is None else str(int(session.closing.code))
        clients.count_close(code, session.closing)
        _logger.info("stream closed", extra={"fields": {"code": code, "connected": clients.connected}})

    async def _carry(self, client: Client, writer: _Stream, connection: Connection, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})
        writer.begin()
        with keeping_alive(connection, self._clients.config.ping_interval):
            await client.run()
        if connection.lost.is_set():
            return

        async def end() -> None:
            await send({"type": "http.response.body"})
            await connection.lost.wait()

        await connection.finish(end(), patience=CLOSE_TIMEOUT)


class Encoder:
    """Encodes frames as a `data` event. Clients at the head get the same frames, so the last result is kept."""

    def __init__(self) -> None:
        self._last: tuple[bytes, bytes] = b"", b""

    def __call__(self, frames: bytes) -> bytes:
        """Return the event: one array of all messages, on one line, as JSON text of Postgres has no line breaks."""
        if frames != self._last[0]:
            self._last = frames, b"".join((b"event: data\ndata:[", b",".join(payloads(frames)), b"]\n\n"))
        return self._last[1]


class _Writer:
    """What the writers of all modes share: the position of the client, and how it is found."""

    def __init__(self, connection: Connection, tail: Tail, session: Session, read: Read) -> None:
        self._connection = connection
        self._tail = tail
        self._session = session
        self.read = read
        self.start = Position(0, None)
        """Where the read begins, once there is a `position`."""
        self.position: Position | None = None
        """The position after the events that were written; None before the client was located."""
        self.reset: Reason | None = None
        """Why the log cannot be read from the offset of the client."""
        self.up_to_date = False
        """Whether the client had all events of the log at its position."""
        self.ended = False
        """Whether nothing more is written. The client ends then, or pauses until the response has begun."""
        self.expired = False
        """Whether the time for which the read waits for events has passed."""

    @property
    def open(self) -> bool:
        return not self.ended and not self._connection.lost.is_set()

    @property
    def paused(self) -> bool:
        return self.ended or self._connection.paused

    @property
    def unsent(self) -> int:
        return self._connection.unsent

    def authenticated(self) -> None:
        self._connection.authenticated()

    def abort(self) -> None:
        self._connection.transport.abort()

    def write_broadcasts(self, frames: bytes) -> None:
        """Send nothing: the client does not ask for broadcasts, which have no offset."""

    def write_messages(self, messages: Sequence[str], cursor: int, epoch: str | None) -> None:
        fields: list[dict[str, Any]] = [json.loads(message) for message in messages]
        resets = [message["reason"] for message in fields if message["type"] == "reset"]
        if resets:
            self.position = Position(cursor, epoch)
            self.reset = resets[-1]
            self.ended = True
            return
        for message in fields:
            if message["type"] == "connected":
                self._locate(Position(cursor, epoch), earliest=message["earliest"])

    def _locate(self, position: Position, *, earliest: int) -> None:
        if self.read.start == "beginning" and earliest - 1 < position.cursor:
            position = position._replace(cursor=earliest - 1)
            request = {"type": "resume", "lastEventId": position.cursor, "epoch": position.epoch}
            self._session.receive(json.dumps(request), asyncio.get_running_loop().time())
        self.start = position
        self.arrive(position)
        self.located()

    def arrive(self, position: Position) -> None:
        """Note the position after what was written."""
        self.position = position
        self.up_to_date = position.cursor >= self._tail.state.head

    def located(self) -> None:
        """Continue, now that the position is known."""
        raise NotImplementedError


class _Collector(_Writer):
    """Collects the response to one request. The client ends when the response is complete."""

    def __init__(self, connection: Connection, tail: Tail, session: Session, read: Read) -> None:
        super().__init__(connection, tail, session, read)
        self._events: list[memoryview] = []

    def located(self) -> None:
        waits = self.read.mode == "long-poll" and not self.expired
        self.ended = self.read.mode == "head" or (self.up_to_date and not waits)

    def write_events(self, frames: bytes, cursor: int, epoch: str | None) -> None:
        self._events += payloads(frames)
        self.arrive(Position(cursor, epoch))
        self.ended = True

    @property
    def empty(self) -> bool:
        return not self._events

    @property
    def body(self) -> bytes:
        return b"".join((b"[", b",".join(self._events), b"]"))


class _Stream(_Writer):
    """Writes Server-Sent Events. It pauses between the time when the client is located and `begin`."""

    def __init__(self, connection: Connection, tail: Tail, session: Session, read: Read, encoder: Encoder) -> None:
        super().__init__(connection, tail, session, read)
        self._encoder = encoder
        self._cursor = next_cursor(read.cursor, time.time())

    def located(self) -> None:
        self.ended = True

    def begin(self) -> None:
        """Continue after the head of the response was sent."""
        self.ended = False
        if self.up_to_date:
            self._connection.write(self._control())

    def write_events(self, frames: bytes, cursor: int, epoch: str | None) -> None:
        self.arrive(Position(cursor, epoch))
        self._connection.write(self._encoder(frames) + self._control())

    def _control(self) -> bytes:
        self._cursor = max(self._cursor, interval(time.time()))
        position = self.position or self.start
        fields: dict[str, object] = {"streamNextOffset": position.offset, "streamCursor": str(self._cursor)}
        if self.up_to_date:
            fields["upToDate"] = True
        return b"event: control\ndata:" + json.dumps(fields, separators=(",", ":")).encode() + b"\n\n"


def _hold(connection: Connection, wake: WakeupEvent, clients: Clients) -> None:
    config = clients.config
    connection.hold(wake.set, dead_after=2 * max(config.ping_interval, config.send_timeout))


async def _run(client: Client, writer: _Writer, timeout: float) -> None:
    """Serve a client until its writer has ended, or the timeout has passed. It may take longer to locate the client."""
    loop = asyncio.get_running_loop()
    timer = loop.call_later(timeout, lambda: time_out())

    def time_out() -> None:
        nonlocal timer
        writer.ended = writer.expired or writer.position is not None
        writer.expired = True
        if writer.ended:
            client.wake.set()
        else:
            timer = loop.call_later(max(0.0, DEFAULT_TIMEOUT - timeout), time_out)

    try:
        await client.run()
    finally:
        timer.cancel()


async def _respond(writer: _Collector, session: Session, scope: Scope, receive: Receive, send: Send) -> None:
    """Send the response that was collected."""
    position, read = writer.position, writer.read
    if position is None or writer.reset is not None:
        await _refuse(writer, session, scope, receive, send)
        return
    status, body = HTTPStatus.OK, writer.body
    headers = [
        (b"stream-next-offset", position.offset.encode()),
        (b"cache-control", b"no-store"),  # the events are of one user
    ]
    if writer.up_to_date and read.mode != "head":
        headers.append((b"stream-up-to-date", b"true"))
    if read.mode == "long-poll":
        headers.append((b"stream-cursor", str(next_cursor(read.cursor, time.time())).encode()))
    if session.closing is not None:
        headers.append((b"connection", b"close"))  # the next request is for another relay, or has another token
    if read.mode != "head" and read.start != "now":
        tag = f'"{writer.start.offset}:{position.offset}"'
        headers.append((b"etag", tag.encode()))
        if read.mode == "catch-up" and _matches(Headers(scope=scope).get("If-None-Match", ""), tag):
            status = HTTPStatus.NOT_MODIFIED
    if read.mode == "long-poll" and writer.empty and writer.up_to_date:
        status = HTTPStatus.NO_CONTENT
    if status is HTTPStatus.OK:
        headers.append((b"content-type", b"application/json"))
        if read.mode != "head":
            headers.append((b"content-length", str(len(body)).encode()))
    else:
        body = b""
    await send({"type": "http.response.start", "status": int(status), "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    await send({"type": "http.response.body"})  # which waits for room


async def _refuse(writer: _Writer, session: Session, scope: Scope, receive: Receive, send: Send) -> None:
    """Respond to a read that could not be located, or whose offset the log cannot serve."""
    if writer.position is not None and writer.reset is not None and isinstance(writer.read.start, Position):
        error = {"error": f"{_RESETS[writer.reset]}; {_ADVICE}", "reset": writer.reset}
        headers = {"Cache-Control": "no-store", "Stream-Next-Offset": writer.position.offset}
        await JSONResponse(error, HTTPStatus.GONE, headers)(scope, receive, send)
    elif writer.position is not None:  # the log has changed during the request, which names no position
        error_text = "the log has changed: repeat the request"
        await refuse(HTTPStatus.SERVICE_UNAVAILABLE, error_text, retry_s=retry_after(None))(scope, receive, send)
    else:
        await refusal(session.closing or UNAVAILABLE)(scope, receive, send)


def _matches(if_none_match: str, tag: str) -> bool:
    return any(value.strip().removeprefix("W/") in (tag, "*") for value in if_none_match.split(","))


def _secured(send: Send) -> Send:
    """Return a `send` that adds the headers of all responses."""

    async def secured(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *_SECURITY]}
        await send(message)

    return secured


class _NoStream:
    """The ASGI application at all other paths below `/streams`."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = f"no such stream: a user has one stream, {PATH}, which exists without being created"
        headers = {"Cache-Control": "no-store"}
        await JSONResponse({"error": error}, HTTPStatus.NOT_FOUND, headers)(scope, receive, _secured(send))
