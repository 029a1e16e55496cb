"""The clients of parked connections: they connect a socket with the parts that do no I/O."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from userrealtime_core.wire.connect_request import CloseCode
from userrealtime_core.wire.position import LogState
from userrealtime_core.wire.session import Session
from userrealtime_operator.activator.proxy.admission import Admitted
from userrealtime_operator.activator.proxy.connection import MAX_BUFFERED_BYTES, ClientConnection
from userrealtime_operator.activator.proxy.responses import Rejected
from userrealtime_operator.kube.types import NamespacedName

from .session import ParkedSession
from .stream import KEEP_ALIVE, begin_stream, empty_poll, end_stream

MAX_UNSENT: Final = 64 << 10
"""Bytes that may wait for a parked client that does not read."""


def closed(code: int, reason: str) -> Rejected:
    """Return the rejection that closes a parked connection."""
    outcome = "expired" if code == CloseCode.TOKEN_EXPIRED else "unauthorized"
    return Rejected(HTTPStatus.UNAUTHORIZED, reason, code, outcome)


class Client(ABC):
    """A parked client. `done` has the reason why it is not parked any more, as the label of the metric."""

    __slots__ = ("_admitted", "_connection", "_loop", "_timer", "done")

    def __init__(self, connection: ClientConnection, admitted: Admitted) -> None:
        self._connection = connection
        self._admitted = admitted
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self.done: asyncio.Future[str] = self._loop.create_future()

    @property
    def resource(self) -> NamespacedName:
        return self._admitted.route.user

    @property
    def admitted(self) -> Admitted:
        """The request of the client."""
        return self._admitted

    def wake(self, reason: str) -> None:
        if not self.done.done():
            self.done.set_result(reason)

    async def begin(self) -> None:
        """Send the greeting, and process what the client sends from here on."""
        await self._connection.divert(self.receive)

    def end(self) -> None:
        """Process nothing more, and keep what the client has sent for the pod."""
        self._set_timer(None)
        self._connection.undivert(b"")

    def receive(self, data: bytes) -> None:
        """Process bytes of the client, b"" at the end of the connection."""
        if not data:
            self.wake("gone")

    @abstractmethod
    def keep_alive(self) -> None:
        """Show proxies and the client that the connection is alive."""

    @abstractmethod
    def result(self, reason: str) -> Admitted:
        """Return the request for the pod.

        Raises:
            Rejected: the connection has to be closed.
        """

    @abstractmethod
    def _tick(self) -> None:
        """Check the expiry of the token."""

    def _set_timer(self, due: float | None) -> None:
        if self._timer is not None and self._timer.when() != due:
            self._timer.cancel()
            self._timer = None
        if self._timer is None and due is not None:
            self._timer = self._loop.call_at(due, self._tick)

    def _send(self, data: bytes) -> None:
        writer = self._connection.writer
        writer.write(data)
        if writer.transport.get_write_buffer_size() > MAX_UNSENT:
            writer.transport.abort()

    def _resumed(self, token: str, position: LogState) -> Admitted:
        request = self._admitted.request.resumed(token, position.head, position.epoch or "")
        return self._admitted._replace(request=request)


class _HttpClient(Client):
    """A client that sends nothing after its request.

    Args:
        session: authenticated, and at its position.
    """

    __slots__ = ("_position", "_session", "_token")

    def __init__(
        self, connection: ClientConnection, admitted: Admitted, session: Session, token: str, position: LogState
    ) -> None:
        super().__init__(connection, admitted)
        self._session = session
        self._token = token
        self._position = position

    def result(self, reason: str) -> Admitted:
        if self._session.closing is not None:
            raise closed(*self._session.closing)
        return self._resumed(self._token, self._position)

    def _tick(self) -> None:
        self._session.tick(self._loop.time())
        if self._session.closing is not None:
            self.wake("closed")


class ParkedStream(_HttpClient):
    """A parked stream of Server-Sent Events."""

    __slots__ = ()

    async def begin(self) -> None:
        connection = self._connection
        [greeting] = self._session.take()
        connection.begin_response(
            begin_stream(greeting, self._position, connection.cors_headers),
            lambda rejected: end_stream(rejected.close_code, str(rejected)),
        )
        await super().begin()
        self._set_timer(self._session.deadline)

    def keep_alive(self) -> None:
        self._send(KEEP_ALIVE)


class ParkedPoll(_HttpClient):
    """A parked poll, which is answered without events after its timeout."""

    __slots__ = ("_end",)

    def __init__(
        self,
        connection: ClientConnection,
        admitted: Admitted,
        session: Session,
        token: str,
        position: LogState,
        timeout_s: float,
    ) -> None:
        super().__init__(connection, admitted, session, token, position)
        self._end = self._loop.time() + timeout_s

    async def begin(self) -> None:
        await super().begin()
        self._set_timer(min(self._session.deadline, self._end))

    def keep_alive(self) -> None:
        """Do nothing: the response has no beginning yet."""

    def result(self, reason: str) -> Admitted:
        if reason in ("timeout", "woken"):
            # The next request is forwarded to the pod if there is one.
            mark = self._admitted.request.parameters.get("broadcasts")
            raise Rejected(
                HTTPStatus.OK,
                "",
                outcome="polled",
                response=empty_poll(self._position, mark, self._connection.cors_headers),
            )
        if self._session.closing is not None:
            raise closed(*self._session.closing)
        return self._admitted

    def _tick(self) -> None:
        super()._tick()
        if self._loop.time() >= self._end:
            self.wake("timeout")


class ParkedWebSocket(Client):
    """A parked WebSocket: passes bytes between its socket and its session.

    Args:
        fetch_keys: called if a new token needs keys; calls `renew` then.
    """

    __slots__ = ("_fetch_keys", "_renewing", "session")

    def __init__(
        self,
        connection: ClientConnection,
        admitted: Admitted,
        session: ParkedSession,
        fetch_keys: Callable[[ParkedWebSocket], None],
    ) -> None:
        super().__init__(connection, admitted)
        self.session = session
        self._fetch_keys = fetch_keys
        self._renewing = False

    async def begin(self) -> None:
        await self._connection.divert(self.receive)
        self._advance()

    def end(self) -> None:
        self._set_timer(None)
        self._connection.undivert(self.session.rest)

    def result(self, reason: str) -> Admitted:
        session = self.session
        if session.closing is not None:
            raise closed(*session.closing)
        return self._resumed(session.token, session.position)

    def keep_alive(self) -> None:
        self.session.ping()
        self._advance()

    def receive(self, data: bytes) -> None:
        if not data:
            self.wake("gone")
            return
        self.session.receive(data, self._loop.time())
        self._advance()
        if len(self.session.rest) > MAX_BUFFERED_BYTES:  # while keys are fetched
            self._connection.writer.transport.abort()

    def renew(self) -> None:
        """Note that the keys for a new token were fetched."""
        self._renewing = False
        self.session.renew(self._loop.time())
        self._advance()

    def _advance(self) -> None:
        """Do what the session asks for."""
        session, writer = self.session, self._connection.writer
        if output := session.take():
            writer.write(output)
            if writer.transport.get_write_buffer_size() > MAX_UNSENT:
                writer.transport.abort()
        if session.ended:
            self.wake("gone")
        elif session.closing is not None:
            self.wake("closed")
        elif session.needs_pod:
            self.wake("message")
        elif session.renewing and not self._renewing:
            self._renewing = True
            self._fetch_keys(self)
        else:
            self._set_timer(session.deadline)

    def _tick(self) -> None:
        self.session.tick(self._loop.time())
        self._advance()
