"""The protocol of a client (docs/protocol.md) as a state machine, without I/O and without a clock.

The caller passes inputs (`message`, `closed`, `tick` at `deadline` …) and executes the actions that `take` returns.
clients/js/src/machine.ts is the same machine in TypeScript; protocol/vectors/client.json has the tests of both.

    new --start--> token --token--> opening --connected--> connected
                     ^                 |                       |
                     '---- waiting <---+-----------------------'      paused: dropped until `resume`; closed: for good

With a state function, `loading` comes before `token`, initially and after each `reset`.

All times are milliseconds. `now` is the time of a monotonic clock.
"""

from __future__ import annotations

import enum
import json
import math
import re
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

Message = dict[str, Any]
"""A JSON object of the protocol."""
Transport = Literal["websocket", "sse", "poll"]
StateName = Literal["loading", "connecting", "connected", "waiting", "paused", "closed"]

ATTEMPTS: Final = 3
"""Consecutive failures to connect after which the next transport is tried."""
STABLE: Final = 5_000
"""How long a connection must have lasted to reset the backoff."""
RETURN: Final = 60_000
"""How long a connection by a fallback must have lasted for the next attempt to use the first transport again."""
TOKEN_TIMEOUT: Final = 30_000
LOAD_TIMEOUT: Final = 30_000
RENEW_LEAD: Final = 60_000
"""A token is renewed this long before its expiry, or after three quarters of its remaining time if that is later."""
RENEW_LEAST: Final = 2_000
RENEW_AGAIN: Final = 5_000
PROBE_TIMEOUT: Final = 5_000
POLL_WAIT: Final = 25
"""Seconds that a poll asks the relay to wait."""
POLL_FIRST: Final = 2
"""The same for the first poll, whose response proves the connection. A relay that has just started needs some time."""
POLL_GRACE: Final = 10_000
TRY_LATER: Final = (10_000, 20_000)
"""The delay after 1013: the minimum, and the bound of a random addition."""
RETRY_AFTER_MOST: Final = 300_000
"""The longest `Retry-After` that is respected. A proxy may send a longer one."""
LONGEST_NAME: Final = 253
MOST_BROADCAST_BYTES: Final = 7000
"""The limit of the JSON of a broadcast's name and data."""
MAX_WAITING_BROADCASTS: Final = 32
"""Broadcasts that wait for the response to the one before, over HTTP."""
GREATEST_ID: Final = 2**53 - 1
FIRST_REFUSALS: Final = 2
"""Consecutive rejected tokens after which the client ends. A single one may have expired."""


_SHAPES: Final[Mapping[str, Mapping[str, tuple[type, ...]]]] = {
    "connected": {"cursor": (int,), "epoch": (str, type(None))},
    "event": {"id": (int,), "event": (str,)},
    "broadcast": {"event": (str,)},
    "reset": {"reason": (str,), "cursor": (int,), "epoch": (str, type(None))},
    "ack": {"ref": (str,), "id": (int,)},
    "error": {"code": (str,), "message": (str,)},
    "renewed": {"expiresIn": (int,)},
    "close": {"code": (int,), "reason": (str,)},
    "answer": {"cursor": (int,), "epoch": (str, type(None)), "events": (list,)},
}
"""The members of messages, and of the response to a poll, that a client relies on."""


class Code(enum.IntEnum):
    """Close codes that a client treats specially. After any other code, it reconnects."""

    ABNORMAL = 1006
    """Never sent: the connection was lost or could not be opened."""
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    TRY_LATER = 1013
    TOKEN_EXPIRED = 4001


@dataclass(frozen=True, slots=True)
class Options:
    """Timeouts in milliseconds, and limits of a client."""

    transports: tuple[Transport, ...] = ("websocket", "sse", "poll")
    open_timeout: float = 35_000
    """The time until `connected` must arrive. A sleeping pod may take 30 s to wake."""
    ping_interval: float = 25_000
    """The time without a message on a WebSocket after which a ping is sent."""
    pong_timeout: float = 10_000
    silence: float = 60_000
    """The time without a byte after which a stream is dead: more than twice the relay's PING_INTERVAL."""
    backoff: float = 500
    backoff_most: float = 30_000
    max_pending: int = 100
    """The largest number of published messages that are not acknowledged."""
    max_message_bytes: int = 65_536
    messages_per_second: float = 50
    broadcasts_per_second: float = 30


class Position(NamedTuple):
    """A client's position in the log: the last event that it has, and the epoch of the log."""

    id: int
    epoch: str | None

    @classmethod
    def parse(cls, text: str) -> Position:
        """Return the position in a text that `userrealtime.position` in the database has returned.

        Raises:
            ValueError: the text is not a position.
        """
        number, _, epoch = text.partition(":")
        if not re.fullmatch(r"[0-9]{1,16}", number) or int(number) > GREATEST_ID:
            raise ValueError(f"{text[:60]!r} is not a position: return the text of userrealtime.position() unchanged")
        return cls(int(number), epoch or None)

    def __str__(self) -> str:
        """Return the text that `parse` and every transport of the relay accept."""
        return str(self.id) if self.epoch is None else f"{self.id}:{self.epoch}"


@dataclass(frozen=True, slots=True)
class Load:
    """Call the application's state function. The result is passed to `loaded` or `not_loaded`, with the same number.

    Messages that the application has not received yet are obsolete, as is the result of an earlier call: discard them.
    """

    load: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """Deliver the state that this call has returned, read at this position of the log."""

    load: int
    cursor: int
    epoch: str | None
    reset: str | None
    """The reason of the `reset` that required it; None for the first state."""


@dataclass(frozen=True, slots=True)
class Token:
    """Request a token from the application. The result is passed to `token` or `no_token`."""


@dataclass(frozen=True, slots=True)
class Open:
    """Open a connection, or send one poll."""

    transport: Transport
    token: str
    cursor: int | None
    epoch: str | None
    wait: int = 0
    """The seconds that a poll requests the relay to wait."""
    broadcasts: str | None = None
    """After which broadcasts a poll receives broadcasts; empty: from now on; None: none."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message over the WebSocket."""

    message: Message


@dataclass(frozen=True, slots=True)
class Post:
    """Send `POST /publish`. The result is passed to `posted`."""

    message: Message
    token: str


@dataclass(frozen=True, slots=True)
class PostBroadcast:
    """Send `POST /broadcast`. The result is passed to `broadcast_posted`, with the same number."""

    number: int
    message: Message
    token: str


@dataclass(frozen=True, slots=True)
class Drop:
    """Abort the connection and all requests, and report none of their results."""


@dataclass(frozen=True, slots=True)
class Hand:
    """Deliver an `event` or a `reset` to the application."""

    message: Message
    epoch: str | None
    """The epoch of its log, None if it is not known."""


@dataclass(frozen=True, slots=True)
class Broadcast:
    """Deliver a broadcast to the application, if it has asked for broadcasts."""

    message: Message


@dataclass(frozen=True, slots=True)
class State:
    """The state has changed."""

    state: StateName
    transport: Transport
    reason: str = ""
    """Why the client is not connected."""
    error: str | None = None
    """Why the client is closed permanently; None if the application closed it."""


@dataclass(frozen=True, slots=True)
class Published:
    """The message is stored in the application's inbox with this id."""

    ref: str
    id: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The message was not published, and is not retried."""

    ref: str
    code: str
    message: str


class Unsent(NamedTuple):
    """Why a broadcast was not sent.

    `code` is "invalid" or "too-big"; "refused" if the relay has rejected one as disabled; "not-connected"; or
    "too-many".
    """

    code: str
    message: str


Action = (
    Load | Loaded | Token | Open | Send | Post | PostBroadcast | Drop | Hand | Broadcast | State | Published | Failed
)


@dataclass(slots=True)
class _Publication:
    message: Message
    size: int
    sent: bool = False


class _Phase(enum.Enum):
    NEW = enum.auto()
    LOADING = enum.auto()
    TOKEN = enum.auto()
    OPENING = enum.auto()
    CONNECTED = enum.auto()
    WAITING = enum.auto()
    PAUSED = enum.auto()
    CLOSED = enum.auto()


@dataclass(slots=True)
class _Allowance:
    """A token bucket that limits the messages per second."""

    rate: float
    level: float = field(init=False)
    at: float = 0

    def __post_init__(self) -> None:
        self.level = self.rate

    def wait(self, now: float) -> float:
        """Take one token and return 0, or return the time until one is available."""
        self.level = min(self.rate, self.level + (now - self.at) / 1000 * self.rate)
        self.at = now
        if self.level < 1:
            return math.ceil((1 - self.level) / self.rate * 1000)
        self.level -= 1
        return 0


class Machine:
    """The state machine of one client.

    Args:
        random: returns numbers from 0 to 1, 1 excluded.
        stateful: whether the application has a state function (docs/protocol.md, "State").
        broadcasts: whether polls request broadcasts.
    """

    def __init__(
        self,
        options: Options = Options(),
        *,
        random: Callable[[], float],
        position: Position | None = None,
        stateful: bool = False,
        broadcasts: bool = False,
    ) -> None:
        self._broadcasts = broadcasts
        self._broadcast_cursor = ""  # of the last response to a poll
        self._options = options
        self._random = random
        self._actions: list[Action] = []
        self._phase = _Phase.NEW
        self._timers: dict[str, float] = {}
        self._place = 0  # the index of the transport
        self._cursor = None if position is None else position.id
        self._epoch = None if position is None else position.epoch
        self._stateful = stateful
        self._stale = stateful and position is None  # the state must be loaded before the next connection
        self._reset_reason: str | None = None
        self._load = 0  # the number of the last call of the state function
        self._token: str | None = None
        self._good_until: float | None = None
        self._renewing = False  # the next token has been requested from the application
        self._offered: str | None = None  # the next token, sent to the relay
        self._refused = 0  # consecutive tokens
        self._offline = False
        self._attempt = 0
        self._unopened = 0  # consecutive attempts of this transport that did not connect
        self._connected_at = 0.0
        self._asked_at = 0.0
        self._waited = 0  # seconds that the last poll requested
        self._pending: dict[str, _Publication] = {}
        self._hold_until = 0.0
        self._post_attempt = 0
        self._posting: str | None = None
        self._allowance = _Allowance(options.messages_per_second)
        self._broadcast_allowance = _Allowance(options.broadcasts_per_second)
        self._outgoing: deque[Message] = deque()  # broadcasts that wait, over HTTP
        self._broadcast_number = 0
        self._posting_broadcast = False
        self._broadcasts_refused: str | None = None  # the reason, from the relay of this connection
        self._biggest_broadcast = 0  # bytes of the largest message with one, on this connection
        self._most_broadcast_bytes = options.max_message_bytes

    @property
    def deadline(self) -> float | None:
        """The time at which to call `tick`, None for never."""
        return min(self._timers.values(), default=None)

    @property
    def position(self) -> Position | None:
        """The position after the last delivered message; None until it is known."""
        return None if self._cursor is None else Position(self._cursor, self._epoch)

    @property
    def closed_for_good(self) -> bool:
        return self._phase is _Phase.CLOSED

    def take(self) -> list[Action]:
        """Return the actions to execute now, in order. Each is returned once."""
        actions, self._actions = self._actions, []
        return actions

    # --- calls of the application

    def start(self, now: float) -> None:
        """Start to connect."""
        if self._phase is _Phase.NEW:
            self._connect(now)

    def publish(self, now: float, ref: str, event: str, data: Any) -> None:
        """Send a message to the application's inbox; `Published` or `Failed` follows."""
        message = {"type": "publish", "ref": ref, "event": event, "data": data}
        size = len(encode(message))
        if self._phase is _Phase.CLOSED:
            self._actions.append(Failed(ref, "closed", "the client is closed"))
        elif not (_is_name(ref) and _is_name(event)):
            why = f"ref and event have 1 to {LONGEST_NAME} characters, none of them a control one"
            self._actions.append(Failed(ref, "invalid", why))
        elif ref in self._pending:
            self._actions.append(Failed(ref, "invalid", "a message with this ref is under way"))
        elif size > self._options.max_message_bytes:
            why = f"the message has {size} bytes; {self._options.max_message_bytes} are allowed"
            self._actions.append(Failed(ref, "too-big", why))
        elif len(self._pending) >= self._options.max_pending:
            why = f"{self._options.max_pending} messages wait to be acknowledged: wait for some, then try again"
            self._actions.append(Failed(ref, "queue-full", why))
        else:
            self._pending[ref] = _Publication(message, size)
            self._flush(now)

    def forget(self, ref: str) -> None:
        """Do not publish this message, unless it has been sent."""
        publication = self._pending.get(ref)
        if publication is not None and not publication.sent:
            del self._pending[ref]

    def broadcast(self, now: float, event: str, data: Any) -> Unsent | None:
        """Send a broadcast to the user's other connected clients, at most once. Return the reason if it is not sent."""
        message = {"type": "broadcast", "event": event, "data": data}
        size = len(encode(message))
        if not _is_name(event):
            return Unsent("invalid", f"event has 1 to {LONGEST_NAME} characters, none of them a control one")
        content = len(encode(event)) + len(encode(data))
        if content > MOST_BROADCAST_BYTES:
            why = f"event and data have {content} bytes of JSON; {MOST_BROADCAST_BYTES} are allowed"
            return Unsent("too-big", why)
        if size > self._most_broadcast_bytes:
            return Unsent("too-big", f"the message has {size} bytes, more than the relay takes")
        if self._phase is not _Phase.CONNECTED:
            return Unsent("not-connected", "the client is not connected")
        if self._broadcasts_refused is not None:
            return Unsent("refused", self._broadcasts_refused)
        if len(self._outgoing) >= MAX_WAITING_BROADCASTS or self._broadcast_allowance.wait(now) > 0:
            return Unsent("too-many", "too many broadcasts")
        if self._transport == "websocket":
            self._biggest_broadcast = max(self._biggest_broadcast, size)
            self._actions.append(Send(message))
        else:
            self._outgoing.append(message)
            self._post_broadcast()
        return None

    def pause(self) -> None:
        """Close the connection until `resume`, because too many messages wait for the application."""
        if self._phase not in (_Phase.NEW, _Phase.PAUSED, _Phase.CLOSED):
            self._drop()
            self._phase = _Phase.PAUSED
            self._state("paused", "events wait to be taken")

    def resume(self, now: float) -> None:
        """Connect again after `pause`."""
        if self._phase is _Phase.PAUSED:
            self._connect(now)

    def probe(self, now: float) -> None:
        """Check the connection immediately. The network may be available again, or the machine was suspended."""
        self._offline = False
        if self._phase in (_Phase.WAITING, _Phase.LOADING):
            self._timers.clear()
            self._connect(now)
        elif self._phase is _Phase.CONNECTED and self._transport == "websocket":
            self._ping(now, PROBE_TIMEOUT)
        elif self._phase is _Phase.CONNECTED:
            self._drop()
            self._connect(now)

    def offline(self) -> None:
        """Record that there is no network until `probe`. Failures in this time do not count against a transport."""
        self._offline = True

    def close(self) -> None:
        """Close the client permanently."""
        if self._phase is not _Phase.CLOSED:
            self._drop()
            self._end("", None)

    # --- inputs

    def loaded(self, now: float, load: int, position: str) -> None:
        """Process the result of call number `load` of the state function: a state, read at this position."""
        if self._phase is not _Phase.LOADING or load != self._load:
            return
        try:
            self._cursor, self._epoch = Position.parse(position)
        except ValueError as error:
            self.not_loaded(now, load, str(error))
            return
        self._timers.pop("load", None)
        self._actions.append(Loaded(load, self._cursor, self._epoch, self._reset_reason))
        self._stale, self._reset_reason = False, None
        self._connect(now)

    def not_loaded(self, now: float, load: int, reason: str) -> None:
        """Process the failure of call number `load` of the state function."""
        if self._phase is _Phase.LOADING and load == self._load:
            self._retry(now, f"no state: {reason}")

    def token(self, now: float, token: str, good_for: float | None) -> None:
        """Process a token of the application, which is valid for `good_for` milliseconds; None if that is not known."""
        self._timers.pop("token", None)
        if self._phase is _Phase.TOKEN:
            self._keep(now, token, good_for)
            self._open(now)
        elif self._renewing:
            self._renewing = False
            if token != self._token:
                self._offered = token
                self._actions.append(Send({"type": "auth", "token": token}))

    def no_token(self, now: float, reason: str) -> None:
        """Process the failure of the application to provide a token."""
        self._timers.pop("token", None)
        if self._phase is _Phase.TOKEN:
            self._retry(now, f"no token: {reason}")
        elif self._renewing:
            self._renewing = False
            self._timers["renew"] = now + RENEW_AGAIN

    def heard(self, now: float) -> None:
        """Process the arrival of any data over the connection."""
        if self._phase is not _Phase.CONNECTED:
            return
        if self._transport == "websocket":
            self._timers.pop("silence", None)
            self._timers["ping"] = now + self._options.ping_interval
        elif self._transport == "sse":
            self._timers["silence"] = now + self._options.silence

    def message(self, now: float, message: Any) -> None:
        """Process a message of the relay over a WebSocket or a stream: a JSON value."""
        if self._phase not in (_Phase.OPENING, _Phase.CONNECTED):
            return
        self.heard(now)
        kind = message.get("type") if isinstance(message, dict) else None
        if not _is_sound(kind, message):
            self.lose(now, "what the relay says cannot be understood")
            return
        match kind:
            case "connected":
                self._greet(now, message)
            case "event":
                self._event(now, message)
            case "broadcast":
                self._broadcast(message)
            case "reset":
                self._reset(now, message)
            case "ack":
                self._published(message["ref"], message["id"])
            case "error":
                self._complain(now, message)
            case "renewed":
                self._refused = 0
                self._token, self._offered = self._offered or self._token, None
                self._good_until = now + 1000 * message["expiresIn"]
                self._plan_renewal(now)
            case "close":
                self._actions.append(Drop())
                self.closed(now, message["code"], message["reason"])

    def answered(self, now: float, answer: Any) -> None:
        """Process the response to a poll with status 200."""
        if self._phase not in (_Phase.OPENING, _Phase.CONNECTED):
            return
        if not _is_sound("answer", answer) or not all(_is_sound("event", event) for event in answer["events"]):
            self.lose(now, "what the relay says cannot be understood")
            return
        cursor, epoch = answer["cursor"], answer["epoch"]
        reason = answer.get("reset")
        # `connected` contains the position at which a client begins; so does the response to a poll without events.
        begin = cursor if self._cursor is None else self._cursor
        self._greet(now, {"cursor": begin, "epoch": epoch if reason is None else None})
        if reason is not None:
            self._reset(now, {"type": "reset", "reason": reason, "cursor": cursor, "epoch": epoch})
        for event in answer["events"]:
            self._event(now, event)
        broadcasts = answer.get("broadcasts")
        broadcasts = broadcasts if isinstance(broadcasts, list) else []
        for broadcast in broadcasts:
            if _is_sound("broadcast", broadcast):
                self._broadcast(broadcast)
        if isinstance(mark := answer.get("broadcastCursor"), str):
            self._broadcast_cursor = mark
        if self._phase is _Phase.CONNECTED:
            idle = reason is None and not answer["events"] and not broadcasts
            if (
                idle and self._waited == POLL_WAIT and now - self._asked_at < 1000
            ):  # a proxy responds instead of the relay
                self._timers.pop("silence", None)
                self._timers["poll"] = now + 1000 * self._random()
            else:
                self._poll(now, POLL_WAIT)

    def closed(self, now: float, code: int, reason: str) -> None:
        """Process the end of the connection, or the failure to open one (1006)."""
        if self._phase not in (_Phase.OPENING, _Phase.CONNECTED):
            return
        if code == Code.ABNORMAL:
            self._count_unopened()
        why = f"{code} {reason}".rstrip()
        if code == Code.POLICY_VIOLATION and reason == "Unauthorized":
            self._refuse(now, why)
        elif code == Code.POLICY_VIOLATION:
            self._end(why, "refused")
        elif code == Code.MESSAGE_TOO_BIG:
            self._fail_biggest(now, why)
        elif code == Code.TRY_LATER:
            at_least, more = TRY_LATER
            self._retry(now, why, delay=at_least + more * self._random())
        else:
            if code == Code.TOKEN_EXPIRED:
                self._token = None
            self._retry(now, why)

    def refused(self, now: float, status: int, reason: str, retry_after: float | None = None) -> None:
        """Process an error status in the response to a stream, a poll or the handshake of a WebSocket."""
        if self._phase not in (_Phase.OPENING, _Phase.CONNECTED):
            return
        why = f"HTTP {status} {reason}".rstrip()
        if status == 401:
            self._refuse(now, why)
        elif status in (400, 403):
            self._end(why, "refused")
        else:
            if status not in (429, 503):
                self._count_unopened()
            self._retry(now, why, at_least=min(retry_after or 0, RETRY_AFTER_MOST))

    def posted(self, now: float, ref: str, status: int, body: Message, retry_after: float | None = None) -> None:
        """Process the response to `POST /publish`. The status is 0 without a response."""
        if self._posting != ref:
            return
        self._posting = None
        if status == 401:
            self._drop()
            self._refuse(now, "HTTP 401")
            return
        if status == 200 and type(body.get("id")) is int:
            self._post_attempt = 0
            self._published(ref, body["id"])
        elif status in (400, 403, 413):
            self._failed(ref, "too-big" if status == 413 else "refused", str(body.get("error", f"HTTP {status}")))
        else:
            if (publication := self._pending.get(ref)) is not None:
                publication.sent = False
            delay = self._random() * min(self._options.backoff_most, self._options.backoff * 2**self._post_attempt)
            self._post_attempt = min(self._post_attempt + 1, 30)
            self._hold_until = now + min(retry_after or 0, RETRY_AFTER_MOST) + delay
        self._flush(now)

    def broadcast_posted(self, number: int, status: int, body: Message) -> None:
        """Process the response to `POST /broadcast`. The status is 0 without a response. Nothing is repeated."""
        if not self._posting_broadcast or number != self._broadcast_number:
            return
        self._posting_broadcast = False
        if status == 403:
            self._broadcasts_refused = str(body.get("error", "HTTP 403"))
            self._outgoing.clear()
        self._post_broadcast()

    def tick(self, now: float) -> None:
        """Process the timers that are due."""
        for name in sorted(name for name, due in self._timers.items() if due <= now):
            if self._timers.pop(name, None) is None:
                continue  # an earlier timer has cancelled it
            match name:
                case "retry":
                    self._connect(now)
                case "load":
                    self.not_loaded(now, self._load, "the application did not answer")
                case "token":
                    self.no_token(now, "the application did not answer")
                case "open":
                    self._actions.append(Drop())
                    self.closed(now, Code.ABNORMAL, "no greeting in time")
                case "ping":
                    self._ping(now, self._options.pong_timeout)
                case "silence":
                    self.lose(now, "silent")
                case "poll":
                    self._poll(now, POLL_WAIT)
                case "renew":
                    self._renewing = True
                    self._timers["token"] = now + TOKEN_TIMEOUT
                    self._actions.append(Token())
                case "publish":
                    self._flush(now)

    def lose(self, now: float, reason: str) -> None:
        """Abort the connection, because it is dead or violates the protocol."""
        if self._phase in (_Phase.OPENING, _Phase.CONNECTED):
            self._actions.append(Drop())
            self.closed(now, Code.ABNORMAL, reason)

    # --- connecting

    @property
    def _transport(self) -> Transport:
        return self._options.transports[self._place]

    def _state(self, state: StateName, reason: str = "", error: str | None = None) -> None:
        self._actions.append(State(state, self._transport, reason, error))

    def _connect(self, now: float) -> None:
        if self._stale:
            self._phase = _Phase.LOADING
            self._load += 1
            self._timers["load"] = now + LOAD_TIMEOUT
            self._state("loading")
            self._actions.append(Load(self._load))
            return
        self._phase = _Phase.TOKEN
        self._state("connecting")
        if self._token is None or (self._good_until is not None and self._good_until <= now):
            self._timers["token"] = now + TOKEN_TIMEOUT
            self._actions.append(Token())
        else:
            self._open(now)

    def _keep(self, now: float, token: str, good_for: float | None) -> None:
        self._token = token
        # A new token that seems to have expired indicates a wrong local clock: the relay decides.
        self._good_until = None if good_for is None or good_for <= 0 else now + good_for

    def _open(self, now: float) -> None:
        self._phase = _Phase.OPENING
        self._broadcast_cursor = ""
        if self._transport == "poll":
            self._poll(now, POLL_FIRST)
        else:
            self._actions.append(Open(self._transport, self._token or "", self._cursor, self._epoch))
        self._timers["open"] = now + self._options.open_timeout

    def _poll(self, now: float, wait: int) -> None:
        self._asked_at, self._waited = now, wait
        broadcasts = self._broadcast_cursor if self._broadcasts else None
        self._actions.append(Open("poll", self._token or "", self._cursor, self._epoch, wait, broadcasts))
        if self._phase is _Phase.CONNECTED:
            self._timers["silence"] = now + 1000 * wait + POLL_GRACE

    def _greet(self, now: float, message: Message) -> None:
        if self._cursor is None:
            self._cursor, self._epoch = message["cursor"], message["epoch"]
        elif self._epoch is None and message["cursor"] == self._cursor:
            self._epoch = message["epoch"]
        # A different cursor belongs to the `reset` that follows. Until then, this client's cursor stays.
        if self._phase is _Phase.OPENING:
            self._phase = _Phase.CONNECTED
            self._timers.pop("open", None)
            self._connected_at = now
            self._refused = self._unopened = 0
            self._state("connected")
            self.heard(now)
            if self._transport == "websocket":
                self._plan_renewal(now)
            self._flush(now)

    def _ping(self, now: float, timeout: float) -> None:
        self._actions.append(Send({"type": "ping"}))
        self._timers.pop("ping", None)
        self._timers["silence"] = min(self._timers.get("silence", math.inf), now + timeout)

    def _count_unopened(self) -> None:
        if self._phase is _Phase.OPENING and not self._offline:
            self._unopened += 1

    def _leave(self) -> None:
        """Reset the state of the connection. Messages without an acknowledgement are sent again on the next one."""
        self._timers.clear()
        self._renewing = False
        self._offered = None
        self._posting = None
        self._outgoing.clear()
        self._posting_broadcast = False
        self._broadcasts_refused = None
        self._biggest_broadcast = 0
        for publication in self._pending.values():
            publication.sent = False

    def _drop(self) -> None:
        if self._phase in (_Phase.OPENING, _Phase.CONNECTED):
            self._actions.append(Drop())
        self._leave()

    def _retry(self, now: float, why: str, *, delay: float | None = None, at_least: float = 0) -> None:
        """Connect after a random delay, whose bound doubles with each consecutive attempt."""
        if self._phase is _Phase.CONNECTED:
            lasted = now - self._connected_at
            self._attempt = 0 if lasted >= STABLE else min(self._attempt, 2)
            if self._place and lasted >= RETURN:
                self._place = self._unopened = 0
        if self._unopened >= ATTEMPTS:
            self._place = (self._place + 1) % len(self._options.transports)
            self._unopened = 0
        self._leave()
        bound = min(self._options.backoff_most, self._options.backoff * 2**self._attempt)
        self._attempt = min(self._attempt + 1, 30)
        self._phase = _Phase.WAITING
        self._timers["retry"] = now + (at_least + bound * self._random() if delay is None else delay)
        self._state("waiting", why)

    def _refuse(self, now: float, why: str) -> None:
        """Discard a rejected token and retry with a new one; after `FIRST_REFUSALS` of them, end."""
        self._refused += 1
        self._token = None
        if self._refused >= FIRST_REFUSALS:
            self._end(why, "unauthorized")
        else:
            self._retry(now, why)

    def _end(self, reason: str, error: str | None) -> None:
        self._leave()
        self._phase = _Phase.CLOSED
        for ref in list(self._pending):
            self._failed(ref, "closed", "the client is closed; whether the message has arrived is not known")
        self._state("closed", reason, error)

    # --- the log

    def _event(self, now: float, event: Message) -> None:
        if self._phase is not _Phase.CONNECTED or self._cursor is None:
            self.lose(now, "an event before the greeting")
        elif event["id"] > self._cursor + 1:
            self.lose(now, f"event {event['id']} after {self._cursor}")
        elif event["id"] == self._cursor + 1:
            self._cursor = event["id"]
            self._actions.append(Hand(event, self._epoch))

    def _broadcast(self, message: Message) -> None:
        if self._phase is _Phase.CONNECTED:
            self._actions.append(Broadcast(message))

    def _reset(self, now: float, message: Message) -> None:
        self._cursor, self._epoch = message["cursor"], message["epoch"]
        if self._stateful:
            # With a random delay, as for any other reconnection: a restored database resets all clients together.
            self._stale, self._reset_reason = True, message["reason"]
            self._actions.append(Drop())
            self._retry(now, f"reset: {message['reason']}")
        else:
            self._actions.append(Hand(message, self._epoch))

    def _plan_renewal(self, now: float) -> None:
        self._timers.pop("renew", None)
        if self._good_until is not None and (left := self._good_until - now) >= RENEW_LEAST:
            self._timers["renew"] = now + left - min(RENEW_LEAD, left / 4)

    # --- publishing

    def _flush(self, now: float) -> None:
        """Send the messages that the rate limit allows now."""
        if self._phase is not _Phase.CONNECTED:
            return
        for ref, publication in self._pending.items():
            if publication.sent:
                continue
            if self._posting is not None:
                return
            wait = self._hold_until - now
            if wait <= 0:
                wait = self._allowance.wait(now)
            if wait > 0:
                self._timers["publish"] = now + wait
                return
            publication.sent = True
            if self._transport == "websocket":
                self._actions.append(Send(publication.message))
            else:
                self._posting = ref
                self._actions.append(Post(publication.message, self._token or ""))

    def _post_broadcast(self) -> None:
        if self._outgoing and not self._posting_broadcast:
            self._posting_broadcast = True
            self._broadcast_number += 1
            message = self._outgoing.popleft()
            self._actions.append(PostBroadcast(self._broadcast_number, message, self._token or ""))

    def _published(self, ref: str, number: int) -> None:
        if self._pending.pop(ref, None) is not None:
            self._actions.append(Published(ref, number))

    def _failed(self, ref: str, code: str, message: str) -> None:
        if self._pending.pop(ref, None) is not None:
            self._actions.append(Failed(ref, code, message))

    def _complain(self, now: float, message: Mapping[str, Any]) -> None:
        ref, code = message.get("ref"), message["code"]
        if ref is None:
            if code == "unavailable":  # the token keys
                self._timers["renew"] = now + RENEW_AGAIN
            elif code == "broadcasts-disabled":
                self._broadcasts_refused = message["message"]
        elif code != "unavailable":
            self._failed(ref, code, message["message"])
        elif ref in self._pending:
            self._pending[ref].sent = False
            self._hold_until = now + self._options.backoff + self._options.backoff * self._random()
            self._flush(now)

    def _fail_biggest(self, now: float, why: str) -> None:
        sent = {ref: publication.size for ref, publication in self._pending.items() if publication.sent}
        if self._biggest_broadcast > max(sent.values(), default=0):
            self._most_broadcast_bytes = self._biggest_broadcast - 1
            self._retry(now, why)
            return
        if not sent:
            self._end(why, "refused")
            return
        self._failed(max(sent, key=lambda ref: sent[ref]), "too-big", "the relay does not take a message of this size")
        self._retry(now, why)


def encode(message: Any) -> bytes:
    """Return a message, or a part of one, as JSON.

    Raises:
        TypeError, ValueError: JSON cannot represent the message.
    """
    try:
        return json.dumps(message, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can represent and UTF-8 cannot
        return json.dumps(message, separators=(",", ":"), allow_nan=False).encode()


def _is_sound(kind: object, message: object) -> bool:
    """Return whether a message has the required members. A message of an unknown type has none."""
    if not isinstance(message, dict) or not isinstance(kind, str):
        return False
    shape = _SHAPES.get(kind, {})
    return all(type(message.get(name, ...)) in types for name, types in shape.items())


def _is_name(value: str) -> bool:
    # A lone surrogate is a character in JSON, but not in UTF-8.
    return 1 <= len(value) <= LONGEST_NAME and re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", value) is None
