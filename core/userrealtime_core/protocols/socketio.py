"""Socket.IO 4: the clients of protocol 5, with recovery of the connection state. No I/O.

A client that recovers keeps two strings of the server: `pid`, which it gets when it connects, and the last argument of
the last event. Both are positions in the log here, so any pod of the user resumes exactly after the last event that the
client has received, and nothing is kept for clients that are not connected.

`pid` is `<position>:<random>`, where a position is `<id>:<epoch>`. A position in an event is newer than the one in
`pid`, or equal to it: a client whose position the log cannot serve gets another `pid` with the same position, and then
the reset with the position of the head. If the connection breaks in between, the client is reset again, since it does
not know yet that it has missed events.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, ClassVar, Final

from userrealtime_core.wire.connect_request import CloseCode, Resume
from userrealtime_core.wire.session import UNAUTHORIZED, CloseFrame
from userrealtime_core.wire.submission import Invalid, Refused, Submission

from .cutting import WHOLE_LOG, Event, cut_broadcasts, cut_channel
from .dialect import (
    Act,
    Authenticate,
    Broadcast,
    Close,
    Dialect,
    Join,
    Mistake,
    Opening,
    Outcome,
    Publish,
    Renew,
    Say,
)
from .socketio_packets import ACK, BINARY, CONNECT, CONNECT_ERROR, DISCONNECT, EVENT, MESSAGE, Packet

VERSION: Final = "4"
"""Of Engine.IO, in the parameter `EIO`."""
LOG: Final = "/"
"""The namespace of the log, and the key of its only channel."""
OWN: Final = "userrealtime:"
"""How the names of the relay's own events begin."""
RENAMED: Final = "userrealtime:event:"
"""What is put before the names of events of the log that a client would take for others."""
LONGEST_NAMESPACE: Final = 200
MAX_RENEWALS: Final = 8
"""Renewals of the token that may wait for an answer."""
NORMAL: Final = 1000
UNSUPPORTED_DATA: Final = 1003

_RESERVED: Final = frozenset(
    (b"connect", b"connect_error", b"disconnect", b"disconnecting", b"newListener", b"removeListener")
)
"""Names with which a client rejects an event, and closes the connection."""
_POSITION: Final = re.compile(r"([0-9]{1,19}):(.{0,300})")
_BINARY_REFUSED: Final = "binary data is not supported: send JSON, with bytes as a string in base64"
_PARSER_REFUSED: Final = "Only the default parser of Socket.IO is supported"
_NAMESPACE_REFUSED: Final = (
    'Invalid namespace: there is only "/". The path of the URL is a namespace in Socket.IO: '
    'pass the path of the server in the option "path", as /…/socket.io'
)


class SocketIO(Dialect):
    """One connection."""

    name: ClassVar[str] = "socketio"

    def __init__(self, opening: Opening) -> None:
        super().__init__(opening)
        self._token: str | None = None
        self._given = Resume()
        self._pid: str | None = None  # of the client, if it is a position
        self._envelope = False
        self._connected = False
        self._attachments = 0  # binary messages that belong to a rejected packet
        self._published = 0
        self._acknowledgement: int | None = None  # of the message that is being stored; they are stored one by one
        self._renewals: list[int | None] = []  # the acknowledgements of tokens that are being checked

    @classmethod
    def refusal(cls, query: Mapping[str, str]) -> tuple[HTTPStatus, str] | None:
        if query.get("EIO") == VERSION:
            return None
        return HTTPStatus.BAD_REQUEST, "Unsupported protocol version: use a client of Socket.IO 3 or 4 (EIO=4)"

    def receive(self, message: str | bytes) -> Sequence[Act]:
        if isinstance(message, bytes):
            return self._receive_attachment()
        try:
            packet = Packet.parse(message)
        except ValueError:
            return [Mistake()]
        if packet.namespace != LOG:
            return self._refuse_namespace(packet)
        if packet.kind == CONNECT:
            return self._connect(packet.data or {})
        if packet.kind == DISCONNECT:
            return [Close(NORMAL)]
        if not self._connected or packet.kind == CONNECT_ERROR:
            return [Mistake()]
        if packet.kind in BINARY:
            self._attachments = packet.attachments
            return [*self._fail(packet.number, "invalid-publish", _BINARY_REFUSED), Mistake()]
        if packet.kind == ACK:
            return []  # the relay asks for none
        return self._emit(packet.number, *packet.data)

    def accepted(self, key: str | None, remaining_s: float, position: tuple[int, str | None] | None) -> Sequence[Act]:
        return [Join(LOG, WHOLE_LOG, str(self._token), self._given)]

    def told(self, key: str, message: Mapping[str, Any], cursor: int, epoch: str | None) -> Sequence[Act]:
        match message["type"]:
            case "connected":
                self._connected = True
                return [self._greeting(message["cursor"], message["epoch"])]
            case "reset":
                return [_event(f"{OWN}reset", message, _position(message["cursor"], message["epoch"]))]
            case "renewed":
                return self._answer_renewals({"expiresIn": message["expiresIn"]})
            case "error":
                return self._answer_renewals({"error": message["code"], "message": message["message"]})
        return []

    def translation(self, key: str) -> Hashable:
        return self._envelope

    def translate(self, key: str, frames: bytes, epoch: str | None) -> Sequence[bytes]:
        place = json.dumps(epoch or "").encode()[1:-1]
        texts = []
        for event in cut_channel(frames, WHOLE_LOG):
            data = _enveloped(event) if self._envelope else event.data
            texts.append(b'42["%b",%b,"%b:%b"]' % (_renamed(event.name), data, event.id, place))
        return texts

    def translate_broadcasts(self, key: str, frames: bytes) -> Sequence[bytes]:
        # The last argument of an event is its position if it is a string. A broadcast has none.
        return [b'42["%b",%b,null]' % (_renamed(name), data) for name, data in cut_broadcasts(frames, WHOLE_LOG)]

    def stored(self, key: str | None, submission: Submission, outcome: Outcome) -> Sequence[Act]:
        number, self._acknowledgement = self._acknowledgement, None
        if isinstance(outcome, int):
            return [] if number is None else [_acknowledge(number, {"id": outcome})]
        return self._fail(number, "refused" if isinstance(outcome, Refused) else "unavailable", str(outcome))

    def ending(self, key: str | None, closing: CloseFrame, *, expired: bool) -> Sequence[Act]:
        close = Close(closing.code, closing.reason)
        if not self._connected:
            if self._token is None or (closing != UNAUTHORIZED and not expired):
                return [close]  # the client connects again
            return self._refuse("the token has expired" if expired else "the token is not accepted")
        if closing.code is not CloseCode.POLICY_VIOLATION:
            # Without a packet, since the client does not connect again after one. Its `auth` is asked for a new token.
            return [close]
        answers = self._answer_renewals({"error": "unauthorized", "message": "the new token is not accepted"})
        return [*answers, Say(MESSAGE + DISCONNECT), close]

    def _connect(self, auth: Mapping[str, Any]) -> Sequence[Act]:
        if self._token is not None:
            return [Mistake()]
        token = auth.get("token")
        self._token = token if isinstance(token, str) else self.opening.request.token
        if not self._token:
            return self._refuse("the token is missing; pass it in the option auth, as { token }")
        self._envelope = auth.get("envelope") is True
        pid, offset = auth.get("pid"), auth.get("offset")
        known = _parse(pid.rpartition(":")[0]) if isinstance(pid, str) else None
        if known is not None:
            self._pid = pid
        self._given = (_parse(offset) if isinstance(offset, str) else None) or known or Resume()
        return [Authenticate(self._token)]

    def _greeting(self, cursor: int, epoch: str | None) -> Say:
        """Return the answer to CONNECT. With its own `pid`, the client reports that it has recovered."""
        given, pid = self._given, self._pid
        if given.cursor not in (None, cursor) or given.epoch not in (None, epoch):
            pid = f"{_position(given.cursor or 0, given.epoch)}:{self.opening.identity}"  # a reset follows
        elif pid is None:
            pid = f"{_position(cursor, epoch)}:{self.opening.identity}"
        return Say(MESSAGE + CONNECT + _json({"sid": self.opening.identity, "pid": pid}))

    def _refuse(self, why: str) -> Sequence[Act]:
        """Refuse the token. The client does not try again by itself."""
        error = {"message": f"Unauthorized: {why}", "data": {"code": "unauthorized"}}
        return [Say(MESSAGE + CONNECT_ERROR + _json(error)), Close(*UNAUTHORIZED)]

    def _refuse_namespace(self, packet: Packet) -> Sequence[Act]:
        if packet.kind != CONNECT or len(packet.namespace) > LONGEST_NAMESPACE:
            return [Mistake()]
        error = {"message": _NAMESPACE_REFUSED, "data": {"code": "invalid-namespace"}}
        return [Say(f"{MESSAGE}{CONNECT_ERROR}{packet.namespace},{_json(error)}"), Mistake()]

    def _receive_attachment(self) -> Sequence[Act]:
        if not self._connected:
            return [Close(UNSUPPORTED_DATA, _PARSER_REFUSED)]
        if self._attachments == 0:
            return [Mistake()]
        self._attachments -= 1
        return []

    def _emit(self, number: int | None, name: str, *arguments: Any) -> Sequence[Act]:
        """Store a message: its data, and optionally its ref."""
        if name == f"{OWN}auth":
            return self._renew(number, arguments)
        if name == f"{OWN}broadcast":
            return self._broadcast(number, arguments)
        ref = arguments[1] if len(arguments) > 1 else None
        if name.startswith(OWN) or len(arguments) > 2 or not isinstance(ref, str | None):
            why = f'send an event with one value, and optionally a string as its ref; "{OWN}…" is reserved'
            return [*self._fail(number, "invalid-publish", why), Mistake()]
        self._published += 1
        fields = {
            "ref": f"socketio:{self.opening.identity}:{self._published}" if ref is None else ref,
            "event": name,
            "data": arguments[0] if arguments else {},
        }
        try:
            submission = Submission.parse(fields)
        except Invalid as error:
            return [*self._fail(number, "invalid-publish", str(error)), Mistake()]
        self._acknowledgement = number
        return [Publish(submission, LOG)]

    def _broadcast(self, number: int | None, arguments: Sequence[Any]) -> Sequence[Act]:
        """Send a broadcast: its name, and its data."""
        if len(arguments) not in (1, 2):
            return [*self._fail(number, "invalid-broadcast", f"{OWN}broadcast needs an event and its data"), Mistake()]
        self._acknowledgement = number
        return [Broadcast(arguments[0], arguments[1] if len(arguments) == 2 else {}, LOG)]

    def broadcasted(self, act: Broadcast, failure: str | None) -> Sequence[Act]:
        number, self._acknowledgement = self._acknowledgement, None
        if failure is not None:
            return self._fail(number, "broadcast-refused", failure)
        return [] if number is None else [_acknowledge(number, {})]

    def _renew(self, number: int | None, arguments: Sequence[Any]) -> Sequence[Act]:
        if len(arguments) != 1 or not isinstance(arguments[0], str) or len(self._renewals) >= MAX_RENEWALS:
            return [*self._fail(number, "invalid-message", f"{OWN}auth needs one argument: the token"), Mistake()]
        self._renewals.append(number)
        return [Renew(LOG, arguments[0])]

    def _answer_renewals(self, answer: Mapping[str, Any]) -> Sequence[Act]:
        """Answer all renewals: the last token counts."""
        renewals, self._renewals = self._renewals, []
        return [_acknowledge(number, answer) for number in renewals if number is not None]

    def _fail(self, number: int | None, code: str, message: str) -> Sequence[Act]:
        """Report an error in the acknowledgement, or as an event if the client waits for none."""
        error = {"error": code, "message": message}
        return [_event(f"{OWN}error", error) if number is None else _acknowledge(number, error)]


def _parse(position: str) -> Resume | None:
    """Return a position; None if it is none, such as one of another server."""
    found = _POSITION.fullmatch(position)
    return None if found is None else Resume(int(found[1]), found[2] or None)


def _position(cursor: int, epoch: str | None) -> str:
    return f"{cursor}:{epoch or ''}"


def _renamed(name: bytes) -> bytes:
    """Return the name under which a client accepts an event."""
    if name in _RESERVED or name.startswith(OWN.encode()):
        return RENAMED.encode() + name
    return name


def _enveloped(event: Event) -> bytes:
    return b'{"id":%b,"at":"%b","data":%b}' % (event.id, event.at, event.data)


def _event(name: str, *arguments: object) -> Say:
    return Say(MESSAGE + EVENT + _json([name, *arguments]))


def _acknowledge(number: int, answer: Mapping[str, Any]) -> Say:
    return Say(f"{MESSAGE}{ACK}{number}{_json([answer])}")


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
