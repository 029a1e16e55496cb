"""Carries the connections of all dialects: the shared WebSocket, with a client of the relay for each of its channels.

A channel has a separate session, cursor and task, so catch-up, reset, lag and expiry are those of any
client. Limits and presence count the connection. Translated events are shared by all channels with the same wording.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import time
from collections.abc import Callable, Hashable, Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Final, Protocol
from urllib.parse import parse_qsl

from websockets.frames import CloseCode as StandardCode
from websockets.http11 import Request

from userrealtime_core.auth import connection_identity
from userrealtime_core.auth.errors import KeySetStale, Unauthorized
from userrealtime_core.protocols.dialect import (
    EXPIRED,
    KEYS_UNAVAILABLE,
    MAX_CHANNELS,
    TOO_MANY_CHANNELS,
    TOO_MANY_ERRORS,
    Act,
    Authenticate,
    Broadcast,
    Close,
    Credential,
    Dialect,
    Join,
    Leave,
    Mistake,
    Opening,
    Outcome,
    Publish,
    Renew,
    Say,
    Signature,
)
from userrealtime_core.wire.connect_request import CloseCode, ConnectRequest, Resume
from userrealtime_core.wire.frames import encode_payload, encode_text
from userrealtime_core.wire.rate_limit import TokenBucket
from userrealtime_core.wire.session import MAX_ERRORS, TOO_MANY_MESSAGES, UNAUTHORIZED, CloseFrame
from userrealtime_core.wire.submission import Refused, Unavailable
from userrealtime_relay.delivery.clients import RESTARTING_REASON, TOO_MANY_REASON, Client, Clients
from userrealtime_relay.delivery.tail import Tail
from userrealtime_relay.delivery.wakeup import WakeupEvent
from userrealtime_relay.transports.websocket import SILENT, Pinged, close_label, connect_request, subprotocols
from userrealtime_relay.transports.websocket_connection import ConnectionEnded, WebSocketConnection

MAX_TRANSLATIONS: Final = 64
"""Wordings whose last translation is kept."""
SIGNATURE_LIFETIME_S: Final = 3600
"""Seconds for which a connection may be authorized by signatures, which have no expiry of their own."""
RESTARTING: Final = CloseFrame(CloseCode.RESTARTING, RESTARTING_REASON)

_logger = logging.getLogger(__name__)


class Carrier(Protocol):
    """What carries the messages of one connection, in both directions: a WebSocket, or a session of Engine.IO.

    See `WebSocketConnection` for its members.
    """

    changed: Callable[[], None] | None

    @property
    def open(self) -> bool: ...
    @property
    def paused(self) -> bool: ...
    @property
    def unsent(self) -> int: ...
    def authenticated(self) -> None: ...
    def write(self, frames: bytes) -> None: ...
    def ping(self) -> bool: ...
    def abort(self) -> None: ...
    async def receive(self) -> str | bytes: ...
    async def drain(self) -> None: ...
    async def close(self, code: int, reason: str) -> None: ...


class SocketEndpoint:
    """Serves the WebSockets of one dialect."""

    def __init__(self, clients: Clients, dialect: type[Dialect]) -> None:
        self.clients = clients
        self.translations = Translations()
        self._dialect = dialect
        self._sockets: set[_Socket] = set()
        self._timer: asyncio.TimerHandle | None = None

    def refusal(self, request: Request) -> tuple[HTTPStatus, str] | None:
        """Return why a handshake is rejected, None if it is accepted."""
        return self._dialect.refusal(query_of(request))

    def subprotocol(self, offered: Sequence[str]) -> str | None:
        """Return the subprotocol of a connection."""
        return self._dialect.subprotocol(offered)

    async def serve(self, connection: WebSocketConnection, request: Request, pinged: set[Pinged]) -> None:
        """Serve one connection until its end."""
        closing = await self.carry(connection, self.opening(request), pinged)
        self.count_close(close_label(connection.protocol), closing)

    def opening(self, request: Request) -> Opening:
        """Return what a dialect gets of a handshake."""
        config = self.clients.config
        given = request.headers.get_all(connection_identity.HEADER)
        parsed = connection_identity.parse(given[0], config.token_keys()) if len(given) == 1 else None
        identity, bound = parsed or (secrets.token_hex(12), True)
        return Opening(
            path=request.path.partition("?")[0],
            query=query_of(request),
            headers={name.lower(): value for name, value in request.headers.raw_items()},
            offered=subprotocols(request),
            request=connect_request(request, query_token=config.allow_query_token),
            query_token=config.allow_query_token,
            identity=identity,
            user_id=config.user_id,
            broadcasts=self.clients.broadcast_allowance is not None,
            bound=bound,
        )

    async def carry(self, carrier: Carrier, opening: Opening, pinged: set[Pinged]) -> CloseFrame | None:
        """Serve a client until its end. Return the reason of its end, if the relay has one."""
        socket = _Socket(self, carrier, self._dialect(opening))
        self._sockets.add(socket)
        pinged.add(socket)
        self._schedule()
        try:
            with self.clients.present(socket):
                await socket.run()
        finally:
            pinged.discard(socket)
            self._sockets.discard(socket)
        return socket.closing

    def count_close(self, code: str, closing: CloseFrame | None) -> None:
        """Count and log the end of a connection."""
        self.clients.count_close(code, closing)
        if code == str(int(StandardCode.MESSAGE_TOO_BIG)):
            self.clients.metrics.limited.labels("message_bytes").inc()
        fields = {"code": code, "protocol": self._dialect.name, "connected": self.clients.connected}
        _logger.info("connection closed", extra={"fields": fields})

    def _schedule(self) -> None:
        """Start the timer of the beats, which runs while there are connections."""
        if self._timer is None and self._sockets and self._dialect.beat_s is not None:
            self._timer = asyncio.get_running_loop().call_later(self._dialect.beat_s, self._beat)

    def _beat(self) -> None:
        self._timer = None
        for socket in list(self._sockets):
            socket.beat(time.time())
        self._schedule()


class Translations:
    """The last translation of each wording. Channels at the head get the same frames one after another."""

    def __init__(self) -> None:
        self._last: dict[Hashable, tuple[bytes, str | None, bytes]] = {}

    def __call__(self, dialect: Dialect, key: str, frames: bytes, epoch: str | None) -> bytes:
        """Return the frames of the messages for events, for one channel of a connection."""
        wording = (dialect.name, dialect.translation(key))
        return self._once(wording, frames, epoch, lambda: dialect.translate(key, frames, epoch))

    def broadcasts(self, dialect: Dialect, key: str, frames: bytes) -> bytes:
        """Return the frames of the messages for broadcasts, for one channel of a connection."""
        wording = (dialect.name, "broadcasts", dialect.translation(key))
        return self._once(wording, frames, None, lambda: dialect.translate_broadcasts(key, frames))

    def _once(
        self, wording: Hashable, frames: bytes, epoch: str | None, translate: Callable[[], Sequence[bytes]]
    ) -> bytes:
        last = self._last.get(wording)
        if last is not None and last[0] == frames and last[1] == epoch:
            return last[2]
        translated = b"".join(map(encode_payload, translate()))
        if wording not in self._last and len(self._last) >= MAX_TRANSLATIONS:
            self._last.clear()
        self._last[wording] = frames, epoch, translated
        return translated


class _Socket:
    """One connection: a dialect, and its channels. `closing` is the reason of its end, if the relay has one."""

    def __init__(self, endpoint: SocketEndpoint, connection: Carrier, dialect: Dialect) -> None:
        clients = endpoint.clients
        self.clients = clients
        self.connection = connection
        self.dialect = dialect
        self.translations = endpoint.translations
        self.sender = clients.tail.broadcasts.new_sender()
        """The name of the client as a sender of broadcasts, which none of its channels receives."""
        self.closing: CloseFrame | None = None
        self.ended = False
        """Whether no more messages can be sent or come."""
        self._channels: dict[str, _Channel] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._wake = WakeupEvent()
        self._begin = self._loop.time()
        self._deadline = self._begin + clients.config.auth_timeout
        self._allowance = TokenBucket(clients.config.max_messages_per_second, self._loop.time())
        self._authenticated = False
        self._leaving = False
        self._errors = 0
        self._close: Close | None = None

    # What the relay's clients see of a socket: a `Place`.

    parkable: Final = False

    @property
    def lag(self) -> int:
        return max((channel.lag for channel in self._channels.values()), default=0)

    @property
    def unsent(self) -> int:
        return self.connection.unsent

    def leave(self) -> None:
        self._leaving = True
        for channel in self._channels.values():
            channel.leave()
        self._wake.set()

    def abort(self) -> None:
        self.connection.abort()

    @property
    def stopping(self) -> bool:
        """Whether the connection is being closed by the relay."""
        return self._close is not None

    def ping(self) -> None:
        if not self.connection.ping():
            self._stop(Close(*SILENT))

    def beat(self, unix_s: float) -> None:
        """Let the dialect send its heartbeat, unless the client does not read."""
        if not self.connection.paused and self._close is None:
            self._say_all(self.dialect.beat(unix_s))

    # The connection's task.

    async def run(self) -> None:
        """Serve the connection until its end."""
        self.connection.changed = self._changed
        reader = asyncio.create_task(self._read())
        reader.add_done_callback(lambda _: self._end())
        timer: asyncio.TimerHandle | None = None
        try:
            while self._close is None and not self.ended:
                self._wake.clear()
                now = self._loop.time()
                if self._leaving and not self._channels:
                    self._finish(RESTARTING)
                elif self._deadline <= now and not self._channels:  # a channel has a separate deadline
                    if not self._authenticated:
                        self.clients.metrics.limited.labels("request_time").inc()
                    self._finish(EXPIRED if self._authenticated else UNAUTHORIZED, expired=self._authenticated)
                else:
                    if not self._channels:
                        timer = self._loop.call_at(self._deadline, self._wake.set)
                    await self._wake.wait()
                    if timer is not None:
                        timer.cancel()
            if reader.done() and not reader.cancelled():
                reader.result()  # raises an unexpected error
            close = self._close or Close(StandardCode.NORMAL_CLOSURE)
            await self.connection.close(close.code, close.reason)
        except Exception:
            _logger.exception("a client failed")
            await self.connection.close(StandardCode.INTERNAL_ERROR, "Internal error")
        finally:
            self.ended = True
            self.connection.changed = None
            if timer is not None:
                timer.cancel()
            tasks = [reader, *self._tasks]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self) -> None:
        """Pass the client's messages to the dialect, no faster than the answers leave."""
        if self.clients.draining:
            self._finish(RESTARTING)
            return
        await self._perform(self.dialect.begin(time.time()))
        with contextlib.suppress(ConnectionEnded):
            while self._close is None:
                message = await self.connection.receive()
                if self._close is not None:
                    return
                if not self._allowance.take(self._loop.time()):
                    self._finish(TOO_MANY_MESSAGES)
                    return
                await self._perform(self.dialect.receive(message))
                await asyncio.sleep(0)
                await self.connection.drain()

    def _changed(self) -> None:
        for channel in self._channels.values():
            channel.wake.set()
        self._wake.set()

    def _end(self) -> None:
        self.ended = True
        self._changed()

    def _stop(self, close: Close) -> None:
        """Close the connection, unless it is being closed. Channels write nothing after this."""
        if self._close is None:
            self._close = close
            self._changed()

    def _finish(self, closing: CloseFrame, *, expired: bool = False) -> None:
        """End the connection for a reason, with the dialect's last words."""
        if self._close is None:
            self.closing = closing
            self._say_all(self.dialect.ending(None, closing, expired=expired))
            self._stop(Close(closing.code, closing.reason))

    # Acts.

    async def _perform(self, acts: Sequence[Act]) -> None:
        """Carry out acts, in order. Some wait for Postgres or for signing keys."""
        for act in acts:
            match act:
                case _ if self._close is not None:
                    return
                case Authenticate():
                    await self._authenticate(act)
                case Publish():
                    await self._perform(self.dialect.stored(act.key, act.submission, await self._store(act)))
                case Renew():
                    await self._renew(act)
                case _:
                    self._do(act)

    def _say_all(self, acts: Sequence[Act]) -> None:
        """Carry out acts that need no waiting."""
        for act in acts:
            if self._close is None:
                self._do(act)

    def _do(self, act: Act) -> None:
        match act:
            case Say():
                self.connection.write(encode_text(act.text))
            case Join():
                self._join(act)
            case Leave():
                self._leave(act.key)
            case Broadcast():
                failure = self.clients.try_broadcast(act.event, act.data, None if act.echo else self.sender)
                self._say_all(self.dialect.broadcasted(act, failure))
            case Mistake():
                self._errors += 1
                if self._errors >= MAX_ERRORS:
                    self._finish(TOO_MANY_ERRORS)
            case Close():
                self._stop(act)
            case _:
                raise TypeError(f"{type(act).__name__} needs waiting")

    async def _authenticate(self, act: Authenticate) -> None:
        try:
            try:
                remaining = self.verify(act.credential)
            except KeySetStale:
                await self.clients.verify.refresh()
                remaining = self.verify(act.credential)
        except KeySetStale:
            await self._reject(act.key, KEYS_UNAVAILABLE)
            return
        except Unauthorized as error:
            await self._reject(act.key, UNAUTHORIZED, expired=str(error) == "expired")
            return
        if not self._authenticated:
            self.connection.authenticated()
            if not self.clients.admit(self):
                self._finish(CloseFrame(CloseCode.TRY_LATER, TOO_MANY_REASON))
                return
            self._authenticated = True
            self._deadline = 0.0
        # Without a channel, the connection lasts as long as its longest credential.
        self._deadline = max(self._deadline, self._loop.time() + remaining)
        self._wake.set()
        tail = self.clients.tail
        position = (tail.state.head, tail.state.epoch) if tail.located else None
        await self._perform(self.dialect.accepted(act.key, remaining, position))

    def verify(self, credential: Credential) -> float:
        """Return for how many seconds a credential is still valid.

        Raises:
            Unauthorized, KeySetStale: it is not accepted, or not yet; see `TokenVerifier`.
        """
        if not isinstance(credential, Signature):
            return self.clients.verify(credential)
        if not self.dialect.opening.bound:
            raise Unauthorized("unbound connection")
        self.clients.verify.check_signature(*credential)
        lifetime = min(SIGNATURE_LIFETIME_S, self.clients.config.token_max_lifetime)
        remaining = self._begin + lifetime - self._loop.time()
        if remaining <= 0:
            raise Unauthorized("expired")
        return remaining

    async def _reject(self, key: str | None, closing: CloseFrame, *, expired: bool = False) -> None:
        if key is None:
            self._finish(closing, expired=expired)
        else:
            await self._perform(self.dialect.ending(key, closing, expired=expired))

    async def _store(self, act: Publish) -> Outcome:
        try:
            return await self.clients.submit(act.submission)
        except (Refused, Unavailable) as error:
            return error

    async def _renew(self, act: Renew) -> None:
        channel = self._channels.get(act.key)
        if channel is not None:
            await channel.renew(act.token)
            self._deadline = max(self._deadline, channel.deadline)

    # Channels.

    def _join(self, act: Join) -> None:
        if act.key not in self._channels and len(self._channels) >= MAX_CHANNELS:
            self._say_all(self.dialect.ending(act.key, TOO_MANY_CHANNELS, expired=False))
            return
        self._leave(act.key)
        channel = _Channel(self, act)
        self._channels[act.key] = channel
        task = asyncio.create_task(self._run_channel(channel))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self._leaving:
            channel.leave()

    def _leave(self, key: str) -> None:
        channel = self._channels.pop(key, None)
        if channel is not None:
            channel.left = True
            channel.wake.set()
            self._wake.set()

    def tell(self, key: str, message: str, cursor: int, epoch: str | None) -> None:
        """Pass a message of a channel's session to the dialect."""
        self._say_all(self.dialect.told(key, json.loads(message), cursor, epoch))

    def catch_up(self, key: str) -> None:
        """Report that a channel has received what existed when it joined."""
        self._say_all(self.dialect.caught_up(key))

    async def _run_channel(self, channel: _Channel) -> None:
        try:
            closing = await channel.run()
        except Exception:
            _logger.exception("a channel failed")
            self._stop(Close(StandardCode.INTERNAL_ERROR, "Internal error"))
            return
        if channel.left or closing is None:
            return
        del self._channels[channel.key]
        self._wake.set()
        if closing.code is CloseCode.RESTARTING:
            return  # the connection ends after its last channel
        if closing.code is CloseCode.TOO_SLOW:
            self._finish(closing)
            return
        expired = closing.code is CloseCode.TOKEN_EXPIRED
        self._say_all(self.dialect.ending(channel.key, closing, expired=expired))


class _Channel:
    """A channel of a connection, and the writer of its client."""

    def __init__(self, socket: _Socket, join: Join) -> None:
        self.key = join.key
        self.wake = WakeupEvent()
        self.left = False
        """Whether the client has left the channel."""
        self._socket = socket
        self._join = join
        self._client: Client | None = None  # until its position is known
        self._leaving = False
        self._caught_up = False

    async def run(self) -> CloseFrame | None:
        """Serve the channel until it is left or ends; return the reason in the second case."""
        join, clients = self._join, self._socket.clients
        resume = join.resume if join.since is None else await position_at(clients.tail, join.since)
        if isinstance(join.credential, Signature):
            signature = join.credential
            session = clients.session(ConnectRequest("", resume), lambda _: self._socket.verify(signature))
        else:
            session = clients.session(ConnectRequest(join.credential, resume))
        sender = self._socket.sender
        self._client = Client(session, clients, self, self.wake, admitted=True, sender=sender)
        if self._leaving:
            self._client.leave()
        await self._client.run()
        return self._client.session.closing

    def leave(self) -> None:
        """End as soon as what is in the ring is sent."""
        self._leaving = True
        if self._client is not None:
            self._client.leave()

    async def renew(self, token: str) -> None:
        """Replace the token."""
        if self._client is not None:
            renewal = json.dumps({"type": "auth", "token": token})
            self._client.session.receive(renewal, asyncio.get_running_loop().time())
            self.wake.set()
            await self._client.process_submissions()

    @property
    def lag(self) -> int:
        return 0 if self._client is None else self._client.lag

    @property
    def deadline(self) -> float:
        return 0 if self._client is None else self._client.session.deadline

    @property
    def open(self) -> bool:
        socket = self._socket
        return socket.connection.open and not socket.ended and not self.left and not socket.stopping

    @property
    def paused(self) -> bool:
        return self._socket.connection.paused

    @property
    def unsent(self) -> int:
        return self._socket.unsent

    def authenticated(self) -> None:
        pass  # the connection is

    def abort(self) -> None:
        self._socket.abort()

    def write_messages(self, messages: Sequence[str], cursor: int, epoch: str | None) -> None:
        for message in messages:
            if not self.left:
                self._socket.tell(self.key, message, cursor, epoch)
        self._check_head(cursor)

    def write_events(self, frames: bytes, cursor: int, epoch: str | None) -> None:
        socket = self._socket
        if self.open:
            socket.connection.write(socket.translations(socket.dialect, self.key, frames, epoch))
            self._check_head(cursor)

    def write_broadcasts(self, frames: bytes) -> None:
        socket = self._socket
        if self.open:
            socket.connection.write(socket.translations.broadcasts(socket.dialect, self.key, frames))

    def _check_head(self, cursor: int) -> None:
        """Report once that the channel has received what existed when it joined."""
        if not self._caught_up and not self.left and cursor >= self._socket.clients.tail.ring.head:
            self._caught_up = True
            self._socket.catch_up(self.key)


async def position_at(tail: Tail, since: float) -> Resume:
    """Return the position before the first event since a time, in seconds since 1970.

    If older events were removed, it is a position that the log cannot serve.
    """
    if not tail.located:
        await tail.locate()
    state, ring = tail.state, tail.ring
    before, after = state.earliest - 1, state.head + 1  # events whose times are earlier, and not earlier
    while before + 1 < after:
        number = (before + after) // 2
        if ring.first <= number <= ring.head:
            time_s = ring.time(number)
        else:
            page = await tail.page(number - 1, 1)
            if not page or page.first != number:
                before = number  # removed since
                continue
            time_s = datetime.fromisoformat(page.times()[0]).timestamp()
        if time_s < since:
            before = number
        else:
            after = number
    if before == state.earliest - 1 and before > 0:
        before -= 1
    return Resume(before, state.epoch)


def query_of(request: Request) -> dict[str, str]:
    """Return the parameters in the URL of a handshake."""
    try:
        return dict(parse_qsl(request.path.partition("?")[2], keep_blank_values=True, max_num_fields=32))
    except ValueError:
        return {}
