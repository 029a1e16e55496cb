"""Long poll: one request, answered at once if there is something, else when there is, or when its time is over.

Each request is a client of its own, for as long as it waits; the cursor that it gets is all that lasts. An answer has
at most one chunk of events: who is behind asks again, and is answered at once.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qsl

from starlette.types import Receive, Scope, Send

from userrealtime_core.wire.connect_request import CloseCode
from userrealtime_relay.delivery.clients import RESTARTING_REASON, Client, Clients
from userrealtime_relay.delivery.wakeup import WakeupEvent
from userrealtime_relay.wire.frames import payloads
from userrealtime_relay.wire.session import CloseFrame

from .http import Connection
from .request import connect_request_of, connection_of, refusal, refuse

DEFAULT_TIMEOUT: Final = 25
LONGEST_TIMEOUT: Final = 60
"""Seconds. Proxies commonly end a request after 30 or 60."""
UNAVAILABLE: Final = CloseFrame(CloseCode.TRY_LATER, "Not connected to Postgres")


class Polls:
    """The ASGI application at `/poll`."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        clients, connection = self._clients, connection_of(scope)
        parameters = _parameters(scope)
        session = await clients.authenticate(
            connect_request_of(scope, clients.config, cursor=parameters.get("cursor", ""))
        )
        if clients.draining:
            session.close(CloseCode.RESTARTING, RESTARTING_REASON)
        if session.closing is not None:
            await refusal(session.closing)(scope, receive, send)
            return
        timeout = _timeout(parameters.get("timeout", ""))
        if timeout is None:
            error = f"timeout must be seconds, from 0 to {LONGEST_TIMEOUT}"
            await refuse(HTTPStatus.BAD_REQUEST, error)(scope, receive, send)
            return
        wake = WakeupEvent()
        config = clients.config
        connection.hold(wake.set, dead_after=2 * max(config.ping_interval, config.send_timeout))
        carrier = _Carrier(connection, resumes=session.resumes)
        client = Client(session, clients, carrier, wake)

        def time_out() -> None:
            carrier.answered = True
            wake.set()

        timer = asyncio.get_running_loop().call_later(timeout, time_out)
        with clients.present(client):
            try:
                await client.run()
            finally:
                timer.cancel()
            await connection.finish(self._respond(client, carrier, scope, receive, send), patience=config.send_timeout)
        if session.closing is not None:
            clients.count_close(str(int(session.closing.code)), session.closing)

    async def _respond(self, client: Client, carrier: _Carrier, scope: Scope, receive: Receive, send: Send) -> None:
        closing = client.session.closing
        if closing is not None and (closing.code is not CloseCode.RESTARTING or not carrier.located):
            await refusal(closing)(scope, receive, send)
        elif not carrier.located:
            await refusal(UNAVAILABLE)(scope, receive, send)
        else:
            body = carrier.answer(client.session.cursor)
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


class _Carrier:
    """Collects the answer of one poll, as `Client` gives it out; it ends the client by being no longer `open`."""

    def __init__(self, connection: Connection, *, resumes: bool) -> None:
        self._connection = connection
        self._resumes = resumes
        self._events: list[memoryview] = []
        self._epoch: str | None = None
        self._reset: dict[str, str] = {}
        self.located = False
        """Whether the client was told where it is in the log; before, there is no answer."""
        self.answered = False
        """Whether there is nothing to wait for any more."""

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

    def answer(self, cursor: int) -> bytes:
        """The body of the answer to a client that is now at `cursor`."""
        rest = json.dumps({"cursor": cursor, "epoch": self._epoch, **self._reset}, separators=(",", ":"))
        return b"".join((b'{"events":[', b",".join(self._events), b"],", rest[1:].encode()))


def _parameters(scope: Scope) -> dict[str, str]:
    try:
        return dict(parse_qsl(scope["query_string"].decode("latin-1"), max_num_fields=32))
    except ValueError:
        return {}  # which the session refuses, as it reads the same


def _timeout(text: str) -> float | None:
    """The timeout that a request asks for, in seconds; None if it is none."""
    if not text:
        return DEFAULT_TIMEOUT
    if not re.fullmatch(r"[0-9]{1,2}(\.[0-9]{1,3})?", text) or float(text) > LONGEST_TIMEOUT:
        return None
    return float(text)
