"""The client for applications: runs the machine with asyncio and aiohttp."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import secrets
import ssl
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import aiohttp

from . import transports
from .decode import Parse, Unparsed
from .machine import (
    Action,
    Drop,
    Failed,
    Hand,
    Load,
    Machine,
    Message,
    Open,
    Options,
    Position,
    Post,
    PostBroadcast,
    Published,
    Send,
    State,
    StateName,
    Token,
    Transport,
)
from .machine import Broadcast as BroadcastAction
from .machine import Loaded as LoadedAction

NOTHING: Final[Message] = {}
BUFFER: Final = 1000
"""Messages that wait for the application before the client pauses. It resumes when half of them are taken."""
MAX_BROADCASTS: Final = 100
"""Broadcasts that wait for the application. Later ones are dropped."""
WATCH_S: Final = 5.0
JUMP_S: Final = 10.0
"""The difference between wall clock and monotonic clock from which the machine is taken to have been suspended."""


@dataclass(frozen=True, slots=True)
class Event:
    """An event of the user's log."""

    id: int
    event: str
    at: str
    """The time just before the commit of its transaction; RFC 3339, UTC."""
    data: Any
    """A number that is too large for int or float is a Decimal."""
    error: Exception | None = None
    """The exception of the client's `parse`. In this case, `data` is None and `text` is the JSON."""
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Broadcast:
    """An event that is not part of the log. It was sent to the clients that are connected, and may be lost."""

    event: str
    data: Any
    error: Exception | None = None
    """The exception of the client's `parse`. In this case, `data` is None and `text` is the JSON."""
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Reset:
    """The log cannot deliver all events after the position: load the state again, then apply the events that follow."""

    reason: str
    """`too-old`, `ahead` or `epoch`."""
    cursor: int
    epoch: str | None


@dataclass(frozen=True, slots=True)
class Loaded:
    """The state that the application's function returned. It replaces all earlier messages; events follow."""

    state: Any
    position: Position
    """The state contains the changes of all events up to this one. It may contain later ones."""
    reset: str | None
    """The reason of the `Reset` after which the state was loaded; None the first time."""


LoadState = Callable[[], Awaitable[tuple[Any, str]]]
"""Returns the state and the text that `userrealtime.position` returned in the same snapshot."""


class ClientError(Exception):
    """The client has ended permanently. `code` is "unauthorized" or "refused"."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.code = code


class PublishError(ClientError):
    """A message was not published, and is not retried.

    `code` is "invalid", "too-big", "queue-full", "refused", "invalid-publish" or "closed". With "closed", the message
    may have been published.
    """


class BroadcastError(ClientError):
    """A broadcast can never be sent. `code` is "invalid", "too-big", or "refused" if the relay does not allow them."""


def _tls() -> ssl.SSLContext:
    """Return a context that verifies servers as OpenSSL does by default.

    The default of Python 3.13 also rejects authorities without `keyUsage`, which many companies use.
    """
    context = ssl.create_default_context()  # noqa: TID251 (this package depends on no other of the project)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


class Client:
    """A client of one user's events: an async context manager and, inside of it, an iterator of messages.

    The messages are `Event` and `Reset`; with `state`, they are `Loaded` and `Event`. With `broadcasts`, there are also
    messages of the type `Broadcast`.

    Args:
        url: the user's URL, `status.url` of the UserRealtime.
        token: a token, or a function that returns one. It is called for the first token, before a token expires, and
            after a token was rejected.
        position: the position after which to start, by default the head of the log. A text is one that
            `userrealtime.position` returned.
        state: returns the state of the application and its position. It is called before the client connects, unless
            there is a `position`, and after each reset. The client then delivers `Loaded` first, and in place of each
            `Reset`.
        broadcasts: True to receive broadcasts as well. They have no position, and those that the application does not
            take in time are dropped.
        receive: False for a client that only publishes. It keeps no messages for the iterator.
        on_state: called when the state changes.
        session: used for all requests, for example with a proxy or custom certificates. The client does not close it.
        options: timeouts and limits.
        parse: converts the JSON text of an event's data to `Event.data`; by default `json.loads`, with larger numbers
            and deeper nesting.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | Callable[[], Awaitable[str]],
        position: Position | str | None = None,
        state: LoadState | None = None,
        broadcasts: bool = False,
        receive: bool = True,
        on_state: Callable[[State], None] | None = None,
        session: aiohttp.ClientSession | None = None,
        options: Options | None = None,
        parse: Parse | None = None,
    ) -> None:
        self._base = transports.base_of(url)
        self._token = token
        self._receive = receive
        self._broadcasts = broadcasts
        self._waiting_broadcasts = 0
        self._on_state = on_state
        self._given_session = session
        self._parse = parse
        if isinstance(position, str):
            position = Position.parse(position)
        self._load_state = state
        self._sender = secrets.token_hex(8)  # over HTTP, the relay recognizes the broadcasts of this client by it
        self._machine = Machine(
            options or Options(),
            random=random.random,
            position=position,
            stateful=state is not None,
            broadcasts=broadcasts,
        )
        self._position = position
        self._state: State | None = None
        self._buffer: deque[Hand | Loaded | Broadcast] = deque()
        self._news = asyncio.Event()
        self._published: dict[str, asyncio.Future[int]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._connection: set[asyncio.Task[None]] = set()  # the part of `_tasks` that `Drop` cancels
        self._asking: asyncio.Task[None] | None = None
        self._loading: asyncio.Task[None] | None = None
        self._loaded_state: Any = None
        self._ear: _Ear | None = None
        self._outgoing: asyncio.Queue[Message] = asyncio.Queue()
        self._running: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._watcher: asyncio.TimerHandle | None = None

    # --- for the application

    @property
    def state(self) -> StateName:
        """The state of the client.

        `loading` (the application's state), `connecting`, `connected`, `waiting` (before a retry), `paused` (until the
        application takes messages), or `closed`.
        """
        return "connecting" if self._state is None else self._state.state

    @property
    def transport(self) -> Transport | None:
        """The transport of the connection, or of the attempt to connect."""
        return None if self._state is None else self._state.transport

    @property
    def position(self) -> Position | None:
        """The position after the last message that the application has taken. Store it to continue there later."""
        return self._position

    @property
    def error(self) -> ClientError | None:
        """Why the client is closed permanently; None if it is open or the application closed it."""
        if self._state is None or self._state.error is None:
            return None
        return ClientError(self._state.error, self._state.reason)

    async def publish(self, event: str, data: Any = NOTHING, *, ref: str | None = None) -> int:
        """Send a message to the application's inbox; return its id when it is stored.

        The message is repeated on new connections until it is acknowledged, and stored once. After a cancellation, it
        may have been stored: publish it again with the same `ref` to get its id.

        Raises:
            PublishError: the message is not stored.
            TypeError, ValueError: JSON cannot represent `data`.
        """
        ref = str(uuid.uuid4()) if ref is None else ref
        if ref in self._published:
            raise PublishError("invalid", "a message with this ref is under way")
        future = self._published[ref] = asyncio.get_running_loop().create_future()
        try:
            self._machine.publish(self._now(), ref, event, data)
            self._settle()
            number: int = await future
            return number
        finally:
            del self._published[ref]
            self._machine.forget(ref)

    def broadcast(self, event: str, data: Any = NOTHING) -> bool:
        """Send an event to the user's other clients that are connected, at most once. It is not stored.

        Returns:
            False if it was dropped, because this client is not connected or sends too many. After True, it may be
            lost as well.

        Raises:
            BroadcastError: the name or the data is not valid, or the relay has rejected an earlier broadcast because
                broadcasts of clients are disabled.
            TypeError, ValueError: JSON cannot represent `data`.
        """
        unsent = self._machine.broadcast(self._now(), event, data)
        self._settle()
        if unsent is not None and unsent.code not in ("not-connected", "too-many"):
            raise BroadcastError(*unsent)
        return unsent is None

    async def close(self) -> None:
        """Close the connection. The publication of messages without an acknowledgement fails."""
        self._machine.close()
        self._settle()
        for task in self._tasks:
            task.cancel()
        while self._tasks:
            await asyncio.wait(self._tasks)
        if self._given_session is None:
            await self._session.close()

    async def __aenter__(self) -> Self:
        self._running = asyncio.get_running_loop()
        self._session = self._given_session or aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=_tls()))
        self._watch(self._offset())
        self._machine.start(self._now())
        self._settle()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event | Reset | Loaded | Broadcast:
        """Return the next message.

        Raises:
            ClientError: the client has ended permanently.
        """
        while not self._buffer:
            if self._state is None:
                raise RuntimeError("the client is not running: use it inside `async with client:`")
            if self.state == "closed":
                if (error := self.error) is not None:
                    raise error
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        taken = self._buffer.popleft()
        if self.state == "paused" and len(self._buffer) <= BUFFER // 2:
            self._machine.resume(self._now())
            self._settle()
        return self._took(taken)

    # --- actions and inputs of the machine

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        if self._running is None:
            raise RuntimeError("the client is not running: use it inside `async with client:`")
        return self._running

    def _now(self) -> float:
        return self._loop.time() * 1000

    def _offset(self) -> float:
        return time.time() - self._loop.time()

    def _watch(self, before: float) -> None:
        """Detect periodically whether the machine was suspended."""
        offset = self._offset()
        if offset - before > JUMP_S:
            self._machine.probe(self._now())
            self._settle()
        self._watcher = self._loop.call_later(WATCH_S, self._watch, offset)

    def _settle(self) -> None:
        """Execute the actions of the machine, and schedule the next `tick`."""
        while actions := self._machine.take():
            for action in actions:
                self._carry_out(action)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if (deadline := self._machine.deadline) is not None:
            self._timer = self._loop.call_at(deadline / 1000, self._tick)

    def _tick(self) -> None:
        # A timer may go off a moment early, by the loop's own resolution.
        self._machine.tick(max(self._now(), self._machine.deadline or 0))
        self._settle()

    def _carry_out(self, action: Action) -> None:
        match action:
            case Load(load):
                self._buffer.clear()
                self._waiting_broadcasts = 0
                if self._loading is not None:
                    self._loading.cancel()
                self._loading = self._spawn(self._run_state(load))
            case LoadedAction():
                self._deliver(Loaded(self._loaded_state, Position(action.cursor, action.epoch), action.reset))
                self._loaded_state = None
            case Token():
                if self._asking is not None:
                    self._asking.cancel()
                self._asking = self._spawn(self._ask_token())
            case Open():
                self._open(action)
            case Send(message):
                self._outgoing.put_nowait(message)
            case Post(message, token):
                self._connection.add(self._spawn(self._post(message, token)))
            case PostBroadcast():
                self._connection.add(self._spawn(self._post_broadcast(action)))
            case Drop():
                self._drop()
            case Hand():
                self._deliver(action)
            case BroadcastAction(message):
                self._deliver_broadcast(message)
            case State():
                self._change(action)
            case Published(ref, number):
                if ref in self._published and not self._published[ref].done():
                    self._published[ref].set_result(number)
            case Failed(ref, code, why):
                if ref in self._published and not self._published[ref].done():
                    self._published[ref].set_exception(PublishError(code, why))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finish)
        return task

    def _finish(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._connection.discard(task)
        if not task.cancelled() and (fault := task.exception()) is not None:
            self._loop.call_exception_handler({"message": "userrealtime: a client failed", "exception": fault})
            self._machine.lose(self._now(), "a fault of the client")
            self._settle()

    async def _ask_token(self) -> None:
        try:
            token = self._token if isinstance(self._token, str) else await self._token()
        except Exception as error:  # noqa: BLE001 (the application's own)
            self._machine.no_token(self._now(), str(error) or type(error).__name__)
        else:
            self._machine.token(self._now(), token, _life(token))
        self._settle()

    async def _run_state(self, load: int) -> None:
        try:
            if self._load_state is None:
                raise TypeError("there is no function `state`")
            state, position = await self._load_state()
            if not isinstance(position, str):
                raise TypeError("`state` must return the state and the text of userrealtime.position()")
        except Exception as error:  # noqa: BLE001 (the application's own)
            self._machine.not_loaded(self._now(), load, str(error) or type(error).__name__)
        else:
            self._loaded_state = state
            self._machine.loaded(self._now(), load, position)
        self._settle()

    def _open(self, action: Open) -> None:
        self._ear = ear = _Ear(self)
        if action.transport == "websocket":
            self._outgoing = asyncio.Queue()  # limited by `max_pending`
            work = transports.websocket(self._session, self._base, action, self._outgoing, ear, self._parse)
        elif action.transport == "sse":
            work = transports.stream(self._session, self._base, action, self._sender, ear, self._parse)
        else:
            work = transports.poll(self._session, self._base, action, self._sender, ear, self._parse)
        self._connection.add(self._spawn(work))

    async def _post(self, message: Message, token: str) -> None:
        url = f"{self._base}/publish"
        status, body, retry_after = await transports.post(self._session, url, message, token)
        self._machine.posted(self._now(), message["ref"], status, body, retry_after)
        self._settle()

    async def _post_broadcast(self, action: PostBroadcast) -> None:
        url = f"{self._base}/broadcast?sender={self._sender}"
        status, body, _ = await transports.post(self._session, url, action.message, action.token)
        self._machine.broadcast_posted(action.number, status, body)
        self._settle()

    def _drop(self) -> None:
        self._ear = None
        for task in list(self._connection):
            task.cancel()

    def _deliver(self, message: Hand | Loaded) -> None:
        if not self._receive:
            self._took(message)
            return
        self._buffer.append(message)
        self._news.set()
        if len(self._buffer) >= BUFFER:
            self._machine.pause()

    def _deliver_broadcast(self, message: Message) -> None:
        # A broadcast never makes the client pause: it is dropped instead.
        if not (self._broadcasts and self._receive) or self._waiting_broadcasts >= MAX_BROADCASTS:
            return
        data = message.get("data")
        text, error = data if isinstance(data, Unparsed) else (None, None)
        self._buffer.append(Broadcast(message["event"], None if error else data, error, text))
        self._waiting_broadcasts += 1
        self._news.set()

    def _took(self, action: Hand | Loaded | Broadcast) -> Event | Reset | Loaded | Broadcast:
        if isinstance(action, Broadcast):
            self._waiting_broadcasts -= 1
            return action
        if isinstance(action, Loaded):
            self._position = action.position
            return action
        message = action.message
        if message["type"] == "reset":
            self._position = Position(message["cursor"], action.epoch)
            return Reset(message["reason"], message["cursor"], action.epoch)
        self._position = Position(message["id"], action.epoch)
        data = message.get("data")
        text, error = data if isinstance(data, Unparsed) else (None, None)
        return Event(message["id"], message["event"], message.get("at", ""), None if error else data, error, text)

    def _change(self, state: State) -> None:
        self._state = state
        if state.state == "closed":
            if self._watcher is not None:
                self._watcher.cancel()
        elif state.state == "connected" and self._position is None:
            self._position = self._machine.position
        self._news.set()
        if self._on_state is not None:
            try:
                self._on_state(state)
            except Exception as error:  # noqa: BLE001 (an error of the application must not stop the client)
                context = {"message": "userrealtime: on_state failed", "exception": error}
                self._loop.call_exception_handler(context)


class _Ear:
    """Passes the reports of a connection to the machine while it is the current connection."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def message(self, message: Any) -> None:
        if self._is_current:
            self._client._machine.message(self._client._now(), message)
            self._client._settle()

    def answered(self, answer: Any) -> None:
        if self._is_current:
            self._client._machine.answered(self._client._now(), answer)
            self._client._settle()

    def heard(self) -> None:
        if self._is_current:
            self._client._machine.heard(self._client._now())
            self._client._settle()

    def closed(self, code: int, reason: str) -> None:
        if self._is_current:
            self._client._ear = None
            self._client._machine.closed(self._client._now(), code, reason)
            self._client._settle()

    def refused(self, status: int, reason: str, retry_after: float | None) -> None:
        if self._is_current:
            self._client._ear = None
            self._client._machine.refused(self._client._now(), status, reason, retry_after)
            self._client._settle()

    @property
    def _is_current(self) -> bool:
        return self._client._ear is self


def _life(token: str) -> float | None:
    """Return the milliseconds until a token expires, by the local clock; None if it has no readable `exp`."""
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return float(claims["exp"] - time.time()) * 1000
    except (IndexError, KeyError, TypeError, ValueError, ArithmeticError, RecursionError):
        return None
