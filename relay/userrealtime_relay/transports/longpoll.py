"""Long poll: a request is answered immediately if there are events, or else when one arrives or the timeout passes.

A request with the parameter `broadcasts` is answered for a broadcast as well. Its value is the mark in the last
response: broadcasts that arrive between two requests are not lost.

Each request is a separate client while it waits; only the cursor of its response lasts. A response has at most one
chunk of events: a client that is behind repeats the request, and is answered immediately.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final

from starlette.types import Receive, Scope, Send

from userrealtime_core.wire.connect_request import CloseCode
from userrealtime_core.wire.frames import payloads
from userrealtime_core.wire.longpoll import LONGEST_TIMEOUT, parse_timeout
from userrealtime_core.wire.session import CloseFrame
from userrealtime_relay.delivery.clients import RESTARTING_REASON, Client, Clients
from userrealtime_relay.delivery.wakeup import WakeupEvent

from .http import Connection
from .request import connect_request_of, connection_of, parameters_of, refusal, refuse, sender_of

UNAVAILABLE: Final = CloseFrame(CloseCode.TRY_LATER, "Not connected to Postgres")


class Polls:
    """The ASGI application at `/poll`."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        clients, connection = self._clients, connection_of(scope)
        parameters = parameters_of(scope)
        session = await clients.authenticate(
            connect_request_of(scope, clients.config, cursor=parameters.get("cursor", ""))
        )
        if clients.draining:
            session.close(CloseCode.RESTARTING, RESTARTING_REASON)
        if session.closing is not None:
            await refusal(session.closing)(scope, receive, send)
            return
        timeout = parse_timeout(parameters.get("timeout", ""))
        if timeout is None:
            error = f"timeout must be seconds, from 0 to {LONGEST_TIMEOUT}"
            await refuse(HTTPStatus.BAD_REQUEST, error)(scope, receive, send)
            return
        wake = WakeupEvent()
        config = clients.config
        connection.hold(wake.set, dead_after=2 * max(config.ping_interval, config.send_timeout))
        writer = _Writer(connection, resumes=session.resumes)
        client = Client(session, clients, writer, wake, parameters.get("broadcasts"), sender=sender_of(parameters))

        def time_out() -> None:
            writer.answered = True
            wake.set()

        timer = asyncio.get_running_loop().call_later(timeout, time_out)
        with clients.present(client):
            try:
                await client.run()
            finally:
                timer.cancel()
            await connection.finish(self._respond(client, writer, scope, receive, send), patience=config.send_timeout)
        if session.closing is not None:
            clients.count_close(str(int(session.closing.code)), session.closing)

    async def _respond(self, client: Client, writer: _Writer, scope: Scope, receive: Receive, send: Send) -> None:
        closing = client.session.closing
        if closing is not None and (closing.code is not CloseCode.RESTARTING or not writer.located):
            await refusal(closing)(scope, receive, send)
        elif not writer.located:
            await refusal(UNAVAILABLE)(scope, receive, send)
        else:
            mark = self._clients.tail.broadcasts.mark(client.broadcast_cursor) if client.wants_broadcasts else None
            body = writer.answer(client.session.cursor, mark)
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"cache-control", b"no-store"),
            ]
            if closing is not None:
                headers.append((b"connection", b"close"))  # the next request is for another relay
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body, "more_body": True})
            await send({"type": "http.response.body"})  # which waits for room


class _Writer:
    """Collects the response to one poll. The client ends when the writer is not `open` any more."""

    def __init__(self, connection: Connection, *, resumes: bool) -> None:
        self._connection = connection
        self._resumes = resumes
        self._events: list[memoryview] = []
        self._broadcasts: list[memoryview] = []
        self._epoch: str | None = None
        self._reset: dict[str, str] = {}
        self.located = False
        """Whether the position of the client is known; before that, there is no response."""
        self.answered = False
        """Whether the response is complete."""

    @property
    def open(self) -> bool:
        return not self.answered and not self._connection.lost.is_set()

    @property
    def paused(self) -> bool:
        return False

    @property
    def unsent(self) -> int:
        return 0

    def authenticated(self) -> None:
        self._connection.authenticated()

    def abort(self) -> None:
        self._connection.transport.abort()

    def write_messages(self, messages: Sequence[str], cursor: int, epoch: str | None) -> None:
        self._epoch = epoch
        self.located = True
        for message in messages:
            fields: dict[str, Any] = json.loads(message)
            if fields["type"] == "reset":
                self._reset = {"reset": fields["reason"]}
        self.answered = self.answered or bool(self._reset) or not self._resumes

    def write_events(self, frames: bytes, cursor: int, epoch: str | None) -> None:
        self._epoch = epoch
        self._events += payloads(frames)
        self.answered = True

    def write_broadcasts(self, frames: bytes) -> None:
        self._broadcasts += payloads(frames)
        self.answered = True

    def answer(self, cursor: int, mark: str | None) -> bytes:
        """Return the body of the response to a client that is now at `cursor`, and at `mark` if it gets broadcasts."""
        fields: dict[str, Any] = {"cursor": cursor, "epoch": self._epoch, **self._reset}
        broadcasts = b""
        if mark is not None:
            fields["broadcastCursor"] = mark
            broadcasts = b"".join((b'"broadcasts":[', b",".join(self._broadcasts), b"],"))
        rest = json.dumps(fields, separators=(",", ":"))
        return b"".join((b'{"events":[', b",".join(self._events), b"],", broadcasts, rest[1:].encode()))
