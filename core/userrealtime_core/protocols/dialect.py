"""What a dialect is: one connection in another system's protocol, without I/O and without a clock.

A dialect gets the opening request and the client's messages, and returns *acts*, which `socket` carries out in order.
Each channel that a client joins is a session of the relay with a separate cursor. The dialect translates what such a
session reports: its messages, its events, and its end. Close codes are translated in `ending`, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, ClassVar, Final, NamedTuple

from userrealtime_core.wire.connect_request import CloseCode, ConnectRequest, Resume
from userrealtime_core.wire.session import CloseFrame
from userrealtime_core.wire.submission import Refused, Submission, Unavailable

Outcome = int | Refused | Unavailable
"""The id of a stored message, or why it was not stored."""

MAX_CHANNELS: Final = 16
"""Channels of one connection. Each one costs a task and a cursor."""
TOO_MANY_CHANNELS: Final = CloseFrame(CloseCode.TRY_LATER, "Too many channels")
TOO_MANY_ERRORS: Final = CloseFrame(CloseCode.POLICY_VIOLATION, "Too many errors")
KEYS_UNAVAILABLE: Final = CloseFrame(CloseCode.TRY_LATER, "Signing keys unavailable")
EXPIRED: Final = CloseFrame(CloseCode.TOKEN_EXPIRED, "Token expired")


@dataclass(frozen=True, slots=True)
class Opening:
    """The request that opened a connection."""

    path: str
    """Its path, without the query."""
    query: Mapping[str, str]
    headers: Mapping[str, str]
    """Its headers, by names in lower case."""
    offered: Sequence[str]
    """The subprotocols that the client offers."""
    request: ConnectRequest
    """The token and the position, where a client of the relay's own protocol has them."""
    query_token: bool
    """Whether a token in the URL is accepted."""
    identity: str
    """24 random hexadecimal digits, for the ids that a dialect gives."""
    user_id: str
    broadcasts: bool = False
    """Whether the clients of the user may send broadcasts."""
    bound: bool = True
    """Whether a signature can be bound to the identity: it was not chosen by the client."""


class Say(NamedTuple):
    """Send a text message."""

    text: str


class Signature(NamedTuple):
    """An HMAC-SHA256 with a token key of the user, in hexadecimal.

    The signed text contains `:` and the random identity of the connection, so it is valid on this connection only.
    """

    content: str
    value: str


Credential = str | Signature
"""A token, or a signature in place of one."""


class Authenticate(NamedTuple):
    """Check a credential; `accepted` or `ending` follows. `key` is what it is for, None for the connection."""

    credential: Credential
    key: str | None = None


class Join(NamedTuple):
    """Read the log for a channel, from a position. The credential must have been accepted.

    Args:
        key: identifies the channel on its connection.
        channel: its name in the log.
        since: instead of a position, the time in seconds since 1970 of the first event.
    """

    key: str
    channel: str
    credential: Credential
    resume: Resume
    since: float | None = None


class Leave(NamedTuple):
    """Stop reading for a channel."""

    key: str


class Renew(NamedTuple):
    """Replace the token of a channel."""

    key: str
    token: str


class Publish(NamedTuple):
    """Store a message for the application; `stored` follows."""

    submission: Submission
    key: str | None = None


class Broadcast(NamedTuple):
    """Send a broadcast to the other clients of the user; `broadcasted` follows."""

    event: str
    """Its name outside of the channel."""
    data: Any
    key: str
    ref: str | None = None
    """Identifies it for the dialect."""
    echo: bool = False
    """Whether this connection receives it as well."""


class Mistake(NamedTuple):
    """Count an invalid message of the client. The connection ends with the tenth."""


class Close(NamedTuple):
    """Close the connection."""

    code: int
    reason: str = ""


Act = Say | Authenticate | Join | Leave | Renew | Publish | Broadcast | Mistake | Close


class Dialect:
    """One connection. Each protocol derives its own class."""

    name: ClassVar[str]
    """The name of the protocol in PROTOCOLS."""
    beat_s: ClassVar[float | None] = None
    """The seconds between two calls of `beat`, if there are any."""

    def __init__(self, opening: Opening) -> None:
        self.opening = opening

    @classmethod
    def refusal(cls, query: Mapping[str, str]) -> tuple[HTTPStatus, str] | None:
        """Return why a handshake is rejected, None if it is accepted."""
        return None

    @classmethod
    def subprotocol(cls, offered: Sequence[str]) -> str | None:
        """Return the subprotocol of the connection: one of the offered ones, or None."""
        return None

    def begin(self, unix_s: float) -> Sequence[Act]:
        """Return the first acts of the server."""
        return ()

    def beat(self, unix_s: float) -> Sequence[Act]:
        """Return the acts of one beat. They are left out for a client that does not read."""
        return ()

    def receive(self, message: str | bytes) -> Sequence[Act]:
        """Process one message of the client."""
        raise NotImplementedError

    def accepted(self, key: str | None, remaining_s: float, position: tuple[int, str | None] | None) -> Sequence[Act]:
        """Process a valid credential.

        Args:
            key: what the credential is for, None for the connection.
            remaining_s: for how long the credential is valid.
            position: the head of the log and its epoch, if they are known.
        """
        return ()

    def told(self, key: str, message: Mapping[str, Any], cursor: int, epoch: str | None) -> Sequence[Act]:
        """Translate a message of a channel's session: connected, reset, renewed, or error."""
        return ()

    def caught_up(self, key: str) -> Sequence[Act]:
        """Process that a channel has received the events that existed when it joined."""
        return ()

    def translation(self, key: str) -> Hashable:
        """Return what the text of a channel's events depends on. Channels with the same value share translations."""
        raise NotImplementedError

    def translate(self, key: str, frames: bytes, epoch: str | None) -> Sequence[bytes]:
        """Return the messages for events in joined frames."""
        raise NotImplementedError

    def translate_broadcasts(self, key: str, frames: bytes) -> Sequence[bytes]:
        """Return the messages for broadcasts in joined frames. They depend on `translation`, as those for events."""
        return ()

    def broadcasted(self, act: Broadcast, failure: str | None) -> Sequence[Act]:
        """Process the outcome of `Broadcast`: why it is invalid or over the limit; None if it was sent."""
        return ()

    def stored(self, key: str | None, submission: Submission, outcome: Outcome) -> Sequence[Act]:
        """Process the outcome of `Publish`."""
        return ()

    def ending(self, key: str | None, closing: CloseFrame, *, expired: bool) -> Sequence[Act]:
        """Return the last words, for a channel or for the whole connection if `key` is None.

        A connection is closed afterwards, with the code of `closing` unless an act is another `Close`. The end of a
        channel does not end its connection.

        Args:
            expired: whether the reason is a credential that has expired.
        """
        return ()
