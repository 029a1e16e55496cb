"""The protocol with one parked WebSocket, without I/O and without a clock.

It is the relay's `Session` for a client that has all events: it answers `auth` and `ping`, and enforces the expiry of
tokens. Everything else needs the pod, which receives it unchanged: the frames from the first one on stay in `rest`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Final, NamedTuple

from userrealtime_core.wire.connect_request import ConnectRequest
from userrealtime_core.wire.frames import encode_text
from userrealtime_core.wire.position import LogState
from userrealtime_core.wire.session import PendingLookup, Session

MAX_MESSAGE_BYTES: Final = 12 << 10
"""The largest message that is parsed. The largest token has 8 KiB; a longer message is for the pod."""
PING: Final = b"\x89\x00"
SILENT: Final = (1011, "No answer to a ping")
_CLOSE, _PONG = 8, 10


class Frame(NamedTuple):
    """A frame of a client. `end` is the place after its bytes, `payload` is unmasked."""

    opcode: int
    final: bool
    payload: bytes
    end: int


class ParkedSession:
    """One client whose position is the head of the log.

    Args:
        opening: the request of the client, with a cursor.
        state: where the log stands.
        verify: returns for how many seconds a token is still valid; raises Unauthorized or KeySetStale.
    """

    __slots__ = (
        "_output",
        "_pinged",
        "_session",
        "_silent",
        "_state",
        "_verify",
        "ended",
        "needs_pod",
        "rest",
        "token",
    )

    def __init__(
        self,
        opening: ConnectRequest,
        state: LogState,
        *,
        user_id: str,
        verify: Callable[[str], float],
        auth_timeout: float,
        now: float,
        messages_per_second: float,
    ) -> None:
        self.token = ""
        """The token that was accepted last."""
        self.rest = b""
        """Bytes of the client that were not processed."""
        self.needs_pod = False
        """Whether the client has sent something that only the pod can process."""
        self.ended = False
        """Whether the client has closed the connection."""
        self._state = state
        self._verify = verify
        self._pinged = False
        self._silent = False
        self._output: list[bytes] = []
        self._session = Session(
            opening,
            user_id=user_id,
            verify=self._accept,
            auth_timeout=auth_timeout,
            now=now,
            messages_per_second=messages_per_second,
        )
        self._advance()

    @property
    def position(self) -> LogState:
        """Where the client stands."""
        return self._state

    @property
    def closing(self) -> tuple[int, str] | None:
        """The code and the reason with which the connection has to be closed, None if it stays open."""
        return SILENT if self._silent else self._session.closing

    @property
    def deadline(self) -> float:
        """When to call `tick`."""
        return self._session.deadline

    @property
    def renewing(self) -> bool:
        """Whether a new token waits for keys. Fetch them, and call `renew`."""
        return self._session.renewing or self._session.question is PendingLookup.KEYS

    def receive(self, data: bytes, now: float) -> None:
        """Process bytes of the client."""
        self.rest += data
        at = 0
        while not (self.needs_pod or self.ended or self.renewing or self.closing is not None):
            frame = _read_frame(self.rest, at)
            if frame is None:
                break
            if isinstance(frame, Frame) and self._process(frame, now):
                at = frame.end
            else:
                self.needs_pod = True
        self.rest = self.rest[at:]

    def take(self) -> bytes:
        """Return the frames to send now, and remove them."""
        output, self._output = b"".join(self._output), []
        return output

    def tick(self, now: float) -> None:
        """Check the expiry of the token."""
        self._session.tick(now)

    def renew(self, now: float) -> None:
        """Note that keys were fetched, with or without success."""
        if self._session.question is PendingLookup.KEYS:
            self._session.retry(now)
        else:
            self._session.renew(now)
        self._advance()
        self.receive(b"", now)

    def ping(self) -> None:
        """Send a ping, or close the connection if the last one was not answered."""
        if self._pinged:
            self._silent = True
        else:
            self._pinged = True
            self._output.append(PING)

    def _accept(self, token: str) -> float:
        remaining = self._verify(token)
        self.token = token
        return remaining

    def _advance(self) -> None:
        session = self._session
        while session.question in (PendingLookup.POSITION, PendingLookup.FRESH_POSITION):
            session.locate(self._state)
        self._output += [encode_text(message) for message in session.take()]

    def _process(self, frame: Frame, now: float) -> bool:
        """Process a frame. Return False if only the pod can do it."""
        match frame.opcode:
            case 1 if frame.final:
                return self._process_text(frame.payload, now)
            case 8:
                self._output.append(_control_frame(_CLOSE, frame.payload))
                self.ended = True
            case 9:
                self._output.append(_control_frame(_PONG, frame.payload))
            case 10:
                self._pinged = False
            case _:
                return False
        return True

    def _process_text(self, payload: bytes, now: float) -> bool:
        try:
            text = payload.decode()
            fields = json.loads(text)
        except (ValueError, RecursionError):
            return False
        if not isinstance(fields, dict):
            return False
        match fields.get("type"):
            case "auth" | "ping":
                self._session.receive(text, now)
                self._advance()
                return True
            case "resume":
                # The relay answers a `resume` at the head with nothing.
                known = (self._state.head, self._state.epoch)
                return self._session.authenticated and (fields.get("lastEventId"), fields.get("epoch")) == known
        return False


def _control_frame(opcode: int, payload: bytes) -> bytes:
    return bytes((0x80 | opcode, len(payload))) + payload


def _read_frame(data: bytes, at: int) -> Frame | bool | None:
    """Return the frame at a place in the bytes, None if it is incomplete, False if the pod must judge it."""
    if len(data) < at + 2:
        return None
    first, second = data[at], data[at + 1]
    opcode, size, begin = first & 0x0F, second & 0x7F, at + 2
    if first & 0x70 or not second & 0x80 or (opcode >= _CLOSE and (size > 125 or not first & 0x80)):
        return False
    if size == 127:
        return False
    if size == 126:
        if len(data) < at + 4:
            return None
        size, begin = int.from_bytes(data[at + 2 : at + 4]), at + 4
    if size > MAX_MESSAGE_BYTES:
        return False
    end = begin + 4 + size
    if len(data) < end:
        return None
    mask = data[begin : begin + 4]
    masked = data[begin + 4 : end]
    pattern = (mask * (size // 4 + 1))[:size]
    payload = (int.from_bytes(masked) ^ int.from_bytes(pattern)).to_bytes(size)
    return Frame(opcode, bool(first & 0x80), payload, end)
