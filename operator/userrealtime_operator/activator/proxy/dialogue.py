"""What the activator says to a client of another system's protocol before the pod takes over. No I/O.

The activator speaks the same dialect as the relay until a credential of the client is accepted. The pod then receives
all messages of the client from the beginning, and says the same again. `Preamble` leaves this out, so the client sees
one conversation.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Final

from websockets.frames import Close as CloseData
from websockets.frames import Frame, Opcode

from userrealtime_core.protocols.dialect import (
    TOO_MANY_ERRORS,
    Act,
    Authenticate,
    Close,
    Dialect,
    Mistake,
    Opening,
    Say,
)
from userrealtime_core.wire.connect_request import CloseCode
from userrealtime_core.wire.frames import encode_text
from userrealtime_core.wire.session import MAX_ERRORS, CloseFrame

if TYPE_CHECKING:
    from .responses import Rejected

_DIALECTS: Final = {
    "actioncable": ("actioncable", "ActionCable"),
    "pusher": ("pusher", "Pusher"),
    "socketio": ("socketio", "SocketIO"),
    "supabase": ("supabase", "Supabase"),
}
_TEXT: Final = 0x81
LONGEST_GREETING: Final = 4 << 10
"""Bytes of the first message of a pod."""


def dialect_of(protocol: str) -> type[Dialect]:
    """Return the dialect of a protocol with WebSockets. It is imported only if a client uses it."""
    module, name = _DIALECTS[protocol]
    dialect: type[Dialect] = getattr(import_module(f"userrealtime_core.protocols.{module}"), name)
    return dialect


class Dialogue:
    """The conversation with one client.

    Args:
        greeting: a first message that is not of the dialect.

    `question` is the credential that has to be checked, if there is one. `reject` continues the conversation.
    `closing` is the end of the connection, if the dialect has ended it.
    """

    def __init__(self, opening: Opening, dialect: type[Dialect], greeting: str = "") -> None:
        self.question: Authenticate | None = None
        self.closing: Close | None = None
        self.beat_s = dialect.beat_s
        """The seconds between two calls of `beat`, if there are any."""
        self.subprotocol: Callable[[Sequence[str]], str | None] = dialect.subprotocol
        """Returns the subprotocol of the connection, one of those that the client offers, or None."""
        self._dialect = dialect(opening)
        self._acts: deque[Act] = deque()
        self._said: list[str] = []
        self._output = b""
        self._greeting = greeting
        self._greeted = False
        self._errors = 0

    def begin(self, unix_s: float) -> None:
        """Begin the conversation."""
        if self._greeting:
            self._say(self._greeting)
        self._perform(self._dialect.begin(unix_s))
        self._greeted = bool(self._said)

    def receive(self, message: str | bytes) -> None:
        """Process a message of the client."""
        self._perform(self._dialect.receive(message))

    def reject(self, closing: CloseFrame, *, expired: bool = False) -> None:
        """Process that the credential is not accepted, and continue."""
        assert self.question is not None  # noqa: S101 (otherwise no credential was checked)
        key, self.question = self.question.key, None
        if key is None:
            self._finish(closing, expired=expired)
        else:
            self._perform(self._dialect.ending(key, closing, expired=expired))

    def beat(self, unix_s: float) -> bytes:
        """Return the frames of a heartbeat. The pod does not repeat them."""
        return b"".join(encode_text(act.text) for act in self._dialect.beat(unix_s) if isinstance(act, Say))

    def take(self) -> bytes:
        """Return the frames for the client."""
        output, self._output = self._output, b""
        return output

    def end(self, rejected: Rejected) -> bytes:
        """Return the last frames for a client whose connection is not forwarded, or not any more."""
        if self.closing is None:
            self._finish(CloseFrame(CloseCode(rejected.close_code), str(rejected)), expired=False)
        assert self.closing is not None  # noqa: S101 (the line above sets it)
        code, reason = self.closing
        return self.take() + Frame(Opcode.CLOSE, CloseData(code, reason).serialize()).serialize(mask=False)

    def preamble(self) -> Preamble:
        """Return what leaves out of the pod's messages what was said here."""
        return Preamble([text.encode() for text in self._said], greeted=self._greeted)

    def _finish(self, closing: CloseFrame, *, expired: bool) -> None:
        self._acts.clear()
        self.question = None
        self._perform(self._dialect.ending(None, closing, expired=expired))
        self.closing = self.closing or Close(closing.code, closing.reason)

    def _perform(self, acts: Sequence[Act]) -> None:
        """Carry out acts, before the acts that wait for a credential."""
        self._acts.extendleft(reversed(acts))
        while self._acts and self.question is None and self.closing is None:
            match self._acts.popleft():
                case Say(text):
                    self._say(text)
                case Authenticate() as question:
                    self.question = question
                case Close() as close:
                    self.closing = close
                case Mistake():
                    self._errors += 1
                    if self._errors >= MAX_ERRORS:
                        self._finish(TOO_MANY_ERRORS, expired=False)
                case _:
                    pass  # of a channel, and none is joined before a credential is accepted

    def _say(self, text: str) -> None:
        self._said.append(text)
        self._output += encode_text(text)


class Preamble:
    """Leaves out of a pod's messages, at their beginning, what the client has.

    Args:
        greeted: whether the first message is left out whatever it is. The activator has sent another one in its place.
    """

    def __init__(self, said: Sequence[bytes], *, greeted: bool) -> None:
        self._said = deque(said)
        self._greeted = greeted
        self._received = b""

    def feed(self, data: bytes) -> bytes:
        """Return what the client receives of these bytes of the pod."""
        if not self._said:
            return data
        self._received += data
        output = b""
        while self._said:
            size = _frame_size(self._received)
            if size is None:
                return output
            is_text = self._received[0] == _TEXT
            longest = LONGEST_GREETING if self._greeted else len(encode_text(self._said[0].decode()))
            if is_text and size > longest:
                break
            if len(self._received) < size:
                return output
            frame, rest = self._received[:size], self._received[size:]
            if not is_text:
                output += frame  # a ping, or the end
            elif self._greeted or frame == encode_text(self._said[0].decode()):
                self._said.popleft()
                self._greeted = False
            else:
                break
            self._received = rest
        self._said.clear()
        output += self._received
        self._received = b""
        return output


def _frame_size(data: bytes) -> int | None:
    """Return the size of the frame of a server at the beginning; None if more bytes are needed."""
    if len(data) < 2:
        return None
    size = data[1] & 0x7F
    if size < 126:
        return 2 + size
    head = struct.Struct("!H" if size == 126 else "!Q")
    if len(data) < 2 + head.size:
        return None
    return 2 + head.size + int(head.unpack_from(data, 2)[0])
