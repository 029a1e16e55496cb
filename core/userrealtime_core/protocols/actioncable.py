"""Action Cable: the client of Rails, and AnyCable's client with its extended protocol. No I/O.

The message of a subscription is the object of the relay's own protocol, so an application finds the id, the name and
the time of an event, and the name of a broadcast, where it would find them there. In the extended protocol the client
keeps the position itself: per stream once it has an event, and before that in its session id, which is therefore a
position.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar, Final

from userrealtime_core.wire.connect_request import CloseCode, Resume
from userrealtime_core.wire.session import CloseFrame
from userrealtime_core.wire.submission import Invalid, Refused, Submission

from .cutting import WHOLE_LOG, cut_broadcasts, cut_channel, is_channel, name_in_log
from .dialect import (
    MAX_CHANNELS,
    TOO_MANY_CHANNELS,
    Act,
    Authenticate,
    Broadcast,
    Close,
    Dialect,
    Join,
    Leave,
    Mistake,
    Opening,
    Outcome,
    Publish,
    Say,
)

PLAIN: Final = "actioncable-v1-json"
EXTENDED: Final = "actioncable-v1-ext-json"
RAILS: Final = "actioncable-unsupported"
"""A subprotocol that only the client of Rails offers."""
TOKEN_SUBPROTOCOL: Final = "anycable-token."  # noqa: S105 (a prefix)
BEAT_S: Final = 3
"""The client of Rails reconnects after 6 s without a message."""
LONGEST_IDENTIFIER: Final = 1024
"""Characters of the identifier of a subscription, which each of its messages repeats."""

WHISPER: Final = "whisper"
"""The name of what AnyCable's client sends to the other clients."""

LATEST_S: Final = 100_000_000_000
"""A time in the client's history, in seconds since 1970, must be before this one."""


class ActionCable(Dialect):
    """One connection of a client of Rails or AnyCable."""

    name = "actioncable"
    beat_s: ClassVar[float | None] = BEAT_S

    def __init__(self, opening: Opening) -> None:
        super().__init__(opening)
        self._extended = self.subprotocol(opening.offered) == EXTENDED
        self._rails = RAILS in opening.offered
        self._token = _token(opening) or ""
        self._welcomed = False
        self._subscriptions: dict[str, str] = {}  # the channel of each identifier
        self._with_history: set[str] = set()  # identifiers whose client waits for `confirm_history`
        self._session_position = _session_position(opening.query.get("sid", ""))
        self._published = 0

    @classmethod
    def subprotocol(cls, offered: Sequence[str]) -> str | None:
        return next((name for name in offered if name in (PLAIN, EXTENDED)), None)

    def begin(self, unix_s: float) -> Sequence[Act]:
        if not self._token:
            return self._disconnect("unauthorized", CloseCode.POLICY_VIOLATION, reconnect=False)
        if self.opening.request.resume is None:
            return self._disconnect("invalid_request", CloseCode.POLICY_VIOLATION, reconnect=False)
        return [Authenticate(self._token)]

    def beat(self, unix_s: float) -> Sequence[Act]:
        return [_say(type="ping", message=int(unix_s))]

    def accepted(self, key: str | None, remaining_s: float, position: tuple[int, str | None] | None) -> Sequence[Act]:
        self._welcomed = True
        if not self._extended:
            return [_say(type="welcome")]
        given = self._session_position
        if given is None or (position is not None and position[1] not in (None, given.epoch)):
            # A position that the client already has stays: the events after it may not have reached the client.
            given = None if position is None or position[1] is None else Resume(*position)
        front = "" if given is None else f"{given.cursor}:{given.epoch}"
        return [_say(type="welcome", sid=f"{front}:{self.opening.identity}")]

    def receive(self, message: str | bytes) -> Sequence[Act]:
        fields = _object(message)
        command, identifier = fields.get("command"), fields.get("identifier")
        if command == "pong":
            return []
        if not isinstance(identifier, str) or len(identifier) > LONGEST_IDENTIFIER:
            return [Mistake()]
        if command == "subscribe":
            return self._subscribe(identifier, fields.get("history"))
        if command == "unsubscribe":
            self._with_history.discard(identifier)
            return [Leave(identifier)] if self._subscriptions.pop(identifier, None) is not None else []
        if command in ("join", "leave"):  # presence; there is no answer that refuses it
            return []
        if identifier not in self._subscriptions:
            return [Mistake()]
        if command == "message":
            return self._publish(identifier, fields.get("data"))
        if command == "whisper":
            return self._whisper(identifier, fields.get("data"))
        if command == "history":
            return [_say(type="reject_history", identifier=identifier)]
        if command == "presence":
            return [_say(type="presence", identifier=identifier, message={"type": "error"})]
        return [Mistake()]

    def told(self, key: str, message: Mapping[str, Any], cursor: int, epoch: str | None) -> Sequence[Act]:
        kind = message["type"]
        if kind == "connected":
            # An application that sends a position in the URL needs one to begin with.
            wanted = not self._extended and "last_event_id" in self.opening.query
            return [_say(identifier=key, message=dict(message))] if wanted else []
        acts: list[Act] = []
        if kind == "reset" and key in self._with_history:
            self._with_history.discard(key)
            acts.append(_say(type="reject_history", identifier=key))
        place = {}
        if self._extended and kind == "reset":
            place = {"stream_id": self._subscriptions.get(key), "epoch": epoch, "offset": cursor}
        return [*acts, _say(identifier=key, message=dict(message), **place)]

    def caught_up(self, key: str) -> Sequence[Act]:
        if key not in self._with_history:
            return []
        self._with_history.discard(key)
        return [_say(type="confirm_history", identifier=key)]

    def translation(self, key: str) -> Hashable:
        return key, self._extended

    def translate(self, key: str, frames: bytes, epoch: str | None) -> Sequence[bytes]:
        channel = self._subscriptions.get(key)
        if channel is None:
            return []
        front = b'{"identifier":%b,"message":' % json.dumps(key).encode()
        place = b"}"
        if self._extended and epoch is not None:
            place = b',"stream_id":%b,"epoch":%b,"offset":' % (json.dumps(channel).encode(), json.dumps(epoch).encode())
        texts = []
        for event in cut_channel(frames, channel):
            text = event.text
            if channel != WHOLE_LOG:
                parts = (event.id, event.name, event.at, event.data)
                text = b'{"type":"event","id":%b,"event":"%b","at":"%b","data":%b}' % parts
            texts.append(b"".join((front, text, place, event.id, b"}") if len(place) > 1 else (front, text, place)))
        return texts

    def translate_broadcasts(self, key: str, frames: bytes) -> Sequence[bytes]:
        channel = self._subscriptions.get(key)
        if channel is None:
            return []
        front = b'{"identifier":%b,"message":' % json.dumps(key).encode()
        return [b"%b%b}" % (front, broadcast.text) for broadcast in cut_broadcasts(frames, channel)]

    def stored(self, key: str | None, submission: Submission, outcome: Outcome) -> Sequence[Act]:
        if key not in self._subscriptions or submission.ref.startswith(self._own_refs):
            return []
        if isinstance(outcome, int):
            return [_say(identifier=key, message={"type": "ack", "ref": submission.ref, "id": outcome})]
        code = "refused" if isinstance(outcome, Refused) else "unavailable"
        return [_error(str(key), code, str(outcome), submission.ref)]

    def ending(self, key: str | None, closing: CloseFrame, *, expired: bool) -> Sequence[Act]:
        if closing == TOO_MANY_CHANNELS and key is not None:
            self._subscriptions.pop(key, None)
            return [_say(type="reject_subscription", identifier=key)]
        if expired and (self._welcomed or not self._rails):
            # The client of Rails asks the application for a URL when it reconnects. AnyCable's asks for a token when
            # it must not reconnect.
            return self._disconnect("token_expired", CloseCode.POLICY_VIOLATION, reconnect=self._rails)
        if closing.code is CloseCode.POLICY_VIOLATION or expired:
            unauthorized = expired or not self._welcomed or closing.reason == "Unauthorized"
            reason = "unauthorized" if unauthorized else "invalid_request"
            return self._disconnect(reason, CloseCode.POLICY_VIOLATION, reconnect=False)
        if closing.code is CloseCode.RESTARTING and self._rails:
            return self._disconnect("server_restart", closing.code, reconnect=True)
        # A message would make AnyCable's client forget its session id. Both clients reconnect after any code.
        return [Close(closing.code, closing.reason)]

    def _disconnect(self, reason: str, code: CloseCode, *, reconnect: bool) -> list[Act]:
        return [_say(type="disconnect", reason=reason, reconnect=reconnect), Close(code, reason)]

    def _subscribe(self, identifier: str, history: Any) -> Sequence[Act]:
        confirm = _say(type="confirm_subscription", identifier=identifier)
        if identifier in self._subscriptions:
            return [confirm]  # the client of Rails repeats the command until it is confirmed
        channel = _channel(identifier)
        if channel is None or len(self._subscriptions) >= MAX_CHANNELS:
            return [_say(type="reject_subscription", identifier=identifier), Mistake()]
        self._subscriptions[identifier] = channel
        resume, since = self._position(channel, history)
        if self._extended and isinstance(history, dict) and (resume.cursor is not None or since is not None):
            self._with_history.add(identifier)
        # Confirmed before the position is known: AnyCable's client closes a channel for good if the connection breaks
        # in between.
        return [confirm, Join(identifier, channel, self._token, resume, since)]

    def _position(self, channel: str, history: Any) -> tuple[Resume, float | None]:
        """Return where a subscription begins: after an event, or since a time."""
        if not self._extended:
            return self.opening.request.resume or Resume(), None
        fields = history if isinstance(history, dict) else {}
        streams = fields.get("streams")
        place = streams.get(channel) if isinstance(streams, dict) else None
        if isinstance(place, dict) and _is_number(place.get("offset")) and isinstance(place.get("epoch"), str):
            return Resume(place["offset"], place["epoch"]), None
        if self._session_position is not None:
            return self._session_position, None
        since = fields.get("since")
        if isinstance(since, int | float) and not isinstance(since, bool) and 0 <= since < LATEST_S:
            return Resume(), float(since)
        return Resume(), None

    def _publish(self, identifier: str, data: Any) -> Sequence[Act]:
        """Store what a channel performs: the action is the event, and the rest of the object its data."""
        try:
            content = json.loads(data) if isinstance(data, str) else None
        except (ValueError, RecursionError):
            return [Mistake()]
        if not isinstance(content, dict):
            return [Mistake()]
        action, ref = content.pop("action", "message"), content.pop("ref", None)
        return self._submit(identifier, action, content, ref if isinstance(ref, str) else None)

    def _whisper(self, identifier: str, data: Any) -> Sequence[Act]:
        """Send data to the other clients of the user, or store it where they may not send any to one another."""
        if not self.opening.broadcasts:
            return self._submit(identifier, WHISPER, data, None)
        return [Broadcast(name_in_log(self._subscriptions[identifier], WHISPER), data, identifier)]

    @property
    def _own_refs(self) -> str:
        """The begin of the refs of messages without one."""
        return f"cable:{self.opening.identity}:"

    def _submit(self, identifier: str, event: Any, data: Any, ref: str | None) -> Sequence[Act]:
        self._published += 1
        given = f"{self._own_refs}{self._published}" if ref is None else ref
        try:
            return [Publish(Submission.parse({"ref": given, "event": event, "data": data}), identifier)]
        except Invalid as error:
            answer = [] if ref is None else [_error(identifier, "invalid-publish", str(error), ref)]
            return [*answer, Mistake()]


def _say(**fields: object) -> Say:
    return Say(json.dumps(fields, separators=(",", ":")))


def _error(identifier: str, code: str, message: str, ref: str) -> Say:
    return _say(identifier=identifier, message={"type": "error", "code": code, "message": message, "ref": ref})


def _object(message: str | bytes) -> dict[str, Any]:
    """Return a JSON object; an empty one if the message is something else."""
    try:
        fields = json.loads(message) if isinstance(message, str) else None
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _token(opening: Opening) -> str | None:
    """Return the token of a handshake, wherever one of the clients puts it."""
    if opening.request.token is not None:
        return opening.request.token
    for name in opening.offered:
        if name.startswith(TOKEN_SUBPROTOCOL):
            return name[len(TOKEN_SUBPROTOCOL) :]
    return opening.headers.get("x-jid") or (opening.query.get("jid") if opening.query_token else None)


def _channel(identifier: str) -> str | None:
    """Return the channel of a subscription, None if there is none with this name."""
    fields = _object(identifier)
    name = fields.get("channel")
    if name == "$pubsub":
        name = fields.get("stream_name")
    elif name == "Log":
        name = WHOLE_LOG
    return name if isinstance(name, str) and is_channel(name) and not name.startswith("$") else None


def _session_position(sid: str) -> Resume | None:
    """Return the position in a session id, `<cursor>:<epoch>:<random>`."""
    cursor, _, rest = sid.partition(":")
    epoch, separator, _ = rest.rpartition(":")
    if cursor.isascii() and cursor.isdigit() and len(cursor) <= 19 and separator and epoch:
        return Resume(int(cursor), epoch)
    return None


def _is_number(value: Any) -> bool:
    return type(value) is int and value >= 0
