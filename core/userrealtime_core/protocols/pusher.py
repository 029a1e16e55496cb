"""Pusher, protocol 7: pusher-js, Laravel Echo and other clients of that protocol. No I/O.

A token comes with each subscription, in its `auth`: `<any key>:<token>`, with `;<position>` behind it if the
application resumes, and then `;envelope` if it wants the position of each event. Instead of a token, it may be the
signature that the server libraries of Pusher make, with a token key of the user as the secret.

Only the data of an event reaches the handlers of an application. So a client that resumes gets its position after a
few events in another one, `userrealtime:position`, and with `envelope` also in the data of each event. All `data` is
JSON in a JSON string, as Pusher sends it. Broadcasts have no position, and no envelope.

A client event is a broadcast under its whole name, where the clients of the user may send broadcasts. Elsewhere it is a
message to the application.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar, Final, NamedTuple

from userrealtime_core.wire.connect_request import CloseCode, ConnectRequest, Resume
from userrealtime_core.wire.frames import payloads
from userrealtime_core.wire.session import CloseFrame
from userrealtime_core.wire.submission import Invalid, Submission

from .cutting import WHOLE_LOG, Event, cut, cut_broadcasts, cut_channel, is_channel, name_in_log
from .dialect import (
    MAX_CHANNELS,
    TOO_MANY_CHANNELS,
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
    Say,
    Signature,
)

VERSIONS: Final = ("5", "6", "7")
ACTIVITY_TIMEOUT_S: Final = 30
"""Seconds without a message after which a client sends `pusher:ping`."""
PRIVATE: Final = "private-"
PRESENCE: Final = "presence-"
UNSUPPORTED: Final = (f"{PRIVATE}encrypted-", f"{PRIVATE}cache-", f"{PRESENCE}cache-", "cache-")
CLIENT_EVENT: Final = "client-"
LONGEST_DATA: Final = 4096
"""Characters of `channel_data` and `user_data`."""
MAX_UNMARKED: Final = 16
"""Events between two positions. A client gets them again if its connection breaks before the second position."""
ENVELOPE: Final = "envelope"
SIGN_IN: Final = "#sign-in"
"""The key of the credential of `pusher:signin`. No channel has this name."""

UNSUPPORTED_VERSION: Final = 4007
NOT_AUTHORIZED: Final = 4009
"""The client does not connect again."""
RECONNECT_LATER: Final = 4100
"""The client connects again after a second."""
RECONNECT: Final = 4200
"""The client connects again immediately, and its application authorizes it again."""
CLIENT_EVENT_REFUSED: Final = 4301

_CODES: Final[Mapping[CloseCode, int]] = {
    CloseCode.POLICY_VIOLATION: NOT_AUTHORIZED,
    CloseCode.RESTARTING: RECONNECT_LATER,
    CloseCode.TRY_LATER: RECONNECT_LATER,
    CloseCode.TOKEN_EXPIRED: RECONNECT,
    CloseCode.TOO_SLOW: RECONNECT_LATER,
}
_SIGNATURE: Final = re.compile(r"[0-9a-f]{64}")
_RESERVED: Final = (b"pusher:", b"pusher_internal:", b"userrealtime:")
"""How the names of the protocol's own events begin. A client must not take an event of the application for one."""


class BadSubscription(Exception):
    """A subscription that is refused. The text is for the developer of the application."""

    def __init__(self, why: str, kind: str, status: int) -> None:
        super().__init__(why)
        self.kind = kind
        self.status = status


class _Subscription(NamedTuple):
    """What a client has requested."""

    channel: str
    """The channel in the log; empty for `pusher:signin`."""
    credential: Credential
    resume: Resume | None
    """The position of the client; None if it does not resume, and gets no positions."""
    member: Mapping[str, Any] | None = None
    """The member of a presence channel, or the user of `pusher:signin`."""
    envelope: bool = False
    """Whether each event is sent as an object with its position, time and data."""

    @property
    def positions(self) -> bool:
        return self.resume is not None


class Pusher(Dialect):
    """One connection."""

    name: ClassVar[str] = "pusher"

    def __init__(self, opening: Opening) -> None:
        super().__init__(opening)
        half = len(opening.identity) // 2
        self._socket_id = f"{int(opening.identity[:half], 16)}.{int(opening.identity[half:], 16)}"
        self._checked: dict[str, _Subscription] = {}  # those whose credential is being checked
        self._subscriptions: dict[str, _Subscription] = {}
        self._waiting: dict[str, str] = {}  # the channels of public names, until there is a credential
        self._signed_in: _Subscription | None = None
        self._credential: Credential | None = None  # the last one that was accepted; a token rather than a signature
        self._published = 0

    def begin(self, unix_s: float) -> Sequence[Act]:
        if self.opening.query.get("protocol", VERSIONS[-1]) not in VERSIONS:
            return [Close(UNSUPPORTED_VERSION, f"Unsupported protocol version: use {VERSIONS[-1]}")]
        established = {"socket_id": self._socket_id, "activity_timeout": ACTIVITY_TIMEOUT_S}
        return [_say("pusher:connection_established", established)]

    def receive(self, message: str | bytes) -> Sequence[Act]:
        fields = _object(message)
        event, data = fields.get("event"), fields.get("data")
        if isinstance(event, str) and event.startswith(CLIENT_EVENT):
            return self._trigger(event, fields)
        match event:
            case "pusher:ping":
                return [_say("pusher:pong", {})]
            case "pusher:pong":
                return []
            case "pusher:subscribe":
                return self._subscribe(_object(data))
            case "pusher:unsubscribe":
                return self._unsubscribe(_object(data).get("channel"))
            case "pusher:signin":
                return self._sign_in(_object(data))
        return [_error(RECONNECT, "this message cannot be processed: send JSON with an event of protocol 7"), Mistake()]

    def accepted(self, key: str | None, remaining_s: float, position: tuple[int, str | None] | None) -> Sequence[Act]:
        subscription = self._checked.pop(str(key))
        if isinstance(subscription.credential, str) or not isinstance(self._credential, str):
            self._credential = subscription.credential
        acts: list[Act] = []
        if key == SIGN_IN:
            self._signed_in = subscription
            acts.append(_say("pusher:signin_success", {"user_data": _json(subscription.member)}))
        else:
            acts.append(self._join(str(key), subscription))
        waiting, self._waiting = self._waiting, {}
        for name, channel in waiting.items():
            acts += self._subscribe_public(name, channel)
        return acts

    def told(self, key: str, message: Mapping[str, Any], cursor: int, epoch: str | None) -> Sequence[Act]:
        subscription = self._subscriptions.get(key)
        if subscription is None or message["type"] not in ("connected", "reset"):
            return []
        cursor, epoch = message["cursor"], message["epoch"]
        positions = [_position(key, cursor, epoch)] if subscription.positions else []
        if message["type"] == "reset":
            return [_say("userrealtime:reset", message, key), *positions]
        given = subscription.resume or Resume()
        if given.cursor not in (None, cursor) or given.epoch not in (None, epoch):
            positions = []  # a reset follows, and the new position must not arrive without it
        data: Mapping[str, Any] = {name: message[name] for name in ("cursor", "epoch", "earliest")}
        if key.startswith(PRESENCE):
            data = {"presence": _presence(self.opening.user_id, subscription.member or {})}
        return [_say("pusher_internal:subscription_succeeded", data, key), *positions]

    def translation(self, key: str) -> Hashable:
        subscription = self._subscriptions.get(key)
        return key, subscription is not None and (subscription.positions, subscription.envelope)

    def translate(self, key: str, frames: bytes, epoch: str | None) -> Sequence[bytes]:
        subscription = self._subscriptions.get(key)
        if subscription is None:
            return []
        channel = json.dumps(key).encode()
        texts: list[bytes] = []
        unmarked = 0  # events since the last position
        for event in cut_channel(frames, subscription.channel):
            if event.name.startswith(_RESERVED):
                continue
            data = _enveloped(event, epoch) if subscription.envelope else event.data
            texts.append(b'{"event":"%b","channel":%b,"data":%b}' % (event.name, channel, _quoted(data)))
            unmarked += 1
            if subscription.positions and unmarked >= MAX_UNMARKED:
                texts.append(_position(key, int(event.id), epoch).text.encode())
                unmarked = 0
        if subscription.positions:
            *_, last = payloads(frames)
            texts.append(_position(key, int(cut(bytes(last)).id), epoch).text.encode())
        return texts

    def translate_broadcasts(self, key: str, frames: bytes) -> Sequence[bytes]:
        subscription = self._subscriptions.get(key)
        if subscription is None:
            return []
        channel = json.dumps(key).encode()
        sender = b',"user_id":%b' % json.dumps(self.opening.user_id).encode()
        texts = []
        for name, data in cut_broadcasts(frames, subscription.channel):
            if name.startswith(_RESERVED):
                continue
            # As Pusher names the member that has sent a client event.
            member = sender if key.startswith(PRESENCE) and name.startswith(CLIENT_EVENT.encode()) else b""
            texts.append(b'{"event":"%b","channel":%b,"data":%b%b}' % (name, channel, _quoted(data), member))
        return texts

    def broadcasted(self, act: Broadcast, failure: str | None) -> Sequence[Act]:
        return [] if failure is None else [_error(CLIENT_EVENT_REFUSED, failure, act.key)]

    def stored(self, key: str | None, submission: Submission, outcome: Outcome) -> Sequence[Act]:
        return [] if isinstance(outcome, int) else [_error(CLIENT_EVENT_REFUSED, str(outcome), key)]

    def ending(self, key: str | None, closing: CloseFrame, *, expired: bool) -> Sequence[Act]:
        if key is None:
            return [Close(_CODES[closing.code], closing.reason)]
        checked = self._checked.pop(key, None)
        self._subscriptions.pop(key, None)
        if closing == TOO_MANY_CHANNELS:
            return [_refusal(key, BadSubscription(f"{MAX_CHANNELS} channels are the most", "LimitReached", 400))]
        if closing.code is not CloseCode.POLICY_VIOLATION and not expired:
            return [Close(_CODES[closing.code], closing.reason)]
        if checked is None:
            # The client connects again and requests another token. Without one, its next subscription is refused.
            return [Close(RECONNECT, closing.reason)]
        why = "the token has expired" if expired else "the token or the signature is not accepted"
        return self._refuse(key, BadSubscription(why, "AuthError", 401))

    def _subscribe(self, data: Mapping[str, Any]) -> Sequence[Act]:
        name = data.get("channel")
        if not isinstance(name, str):
            return [_error(RECONNECT, "a subscription needs a channel"), Mistake()]
        try:
            if name not in self._subscriptions and len(self._subscriptions) + len(self._waiting) >= MAX_CHANNELS:
                raise BadSubscription(f"{MAX_CHANNELS} channels are the most", "LimitReached", 400)
            if name == f"#server-to-user-{self.opening.user_id}":
                if self._signed_in is None:
                    raise BadSubscription("call signin() first", "AuthError", 401)
                return [self._join(name, self._signed_in._replace(channel=WHOLE_LOG))]
            channel = channel_of(name)
            if not name.startswith((PRIVATE, PRESENCE)):
                return self._subscribe_public(name, channel)
            self._checked[name] = subscription = self._parse(name, channel, data)
        except BadSubscription as error:
            return self._refuse(name, error)
        return [Authenticate(subscription.credential, name)]

    def _unsubscribe(self, name: Any) -> Sequence[Act]:
        if not isinstance(name, str):
            return [_error(RECONNECT, "a channel is missing"), Mistake()]
        self._waiting.pop(name, None)
        return [] if self._subscriptions.pop(name, None) is None else [Leave(name)]

    def _sign_in(self, data: Mapping[str, Any]) -> Sequence[Act]:
        try:
            self._checked[SIGN_IN] = subscription = self._parse(":user:", "", data)
        except BadSubscription as error:
            return self._refuse(SIGN_IN, error)
        return [Authenticate(subscription.credential, SIGN_IN)]

    def _parse(self, name: str, channel: str, data: Mapping[str, Any]) -> _Subscription:
        """Return a subscription, or the user of `pusher:signin`, whose credential is not checked yet."""
        auth, signed_data, field = data.get("auth"), data.get("channel_data"), "user_id"
        if not channel:
            signed_data, field = data.get("user_data"), "id"
        if not isinstance(auth, str) or not isinstance(signed_data, str | None):
            raise BadSubscription("a token is missing", "AuthError", 401)
        if len(signed_data or "") > LONGEST_DATA:
            raise BadSubscription(f"the data of a user may have {LONGEST_DATA} characters", "InvalidData", 400)
        member = _object(signed_data)
        front, *options = auth.split(";")
        if not options and isinstance(member.get("last_event_id"), str):
            options = [member["last_event_id"]]
        resume = resume_of(options[0]) if options else None
        if options[1:] not in ([], [ENVELOPE]):
            raise BadSubscription(f'behind a position, only ";{ENVELOPE}" is accepted', "InvalidOption", 400)
        if str(member.setdefault(field, self.opening.user_id)) != self.opening.user_id:
            raise BadSubscription(f"the {field} belongs to another user", "AuthError", 403)
        token = front.rpartition(":")[2]
        if not token:
            raise BadSubscription("a token is missing", "AuthError", 401)
        credential: Credential = token
        if _SIGNATURE.fullmatch(token):
            parts = (self._socket_id, name) if signed_data is None else (self._socket_id, name, signed_data)
            credential = Signature(":".join(parts), token)
        member[field] = self.opening.user_id
        return _Subscription(channel, credential, resume, member, ENVELOPE in options[1:])

    def _subscribe_public(self, name: str, channel: str) -> Sequence[Act]:
        """Subscribe to a channel without a token: it waits for the first one of its connection.

        A signature is for one channel only, so it does not open others.
        """
        if self._credential is None:
            self._waiting[name] = channel
            return []
        if isinstance(self._credential, Signature):
            return self._refuse(name, BadSubscription("a public channel needs a token", "AuthError", 401))
        return [self._join(name, _Subscription(channel, self._credential, None))]

    def _join(self, name: str, subscription: _Subscription) -> Join:
        self._subscriptions[name] = subscription
        return Join(name, subscription.channel, subscription.credential, subscription.resume or Resume())

    def _refuse(self, key: str, error: BadSubscription) -> Sequence[Act]:
        if key == SIGN_IN:
            return [_error(NOT_AUTHORIZED, str(error)), Mistake()]
        return [_refusal(key, error), Mistake()]

    def _trigger(self, event: str, fields: Mapping[str, Any]) -> Sequence[Act]:
        """Send or store a client event. The client neither repeats it nor waits for an answer."""
        name = fields.get("channel")
        if not isinstance(name, str) or name not in self._subscriptions:
            return [_error(CLIENT_EVENT_REFUSED, "client events need a channel that is subscribed"), Mistake()]
        if self.opening.broadcasts:
            broadcast = name_in_log(self._subscriptions[name].channel, event)
            return [Broadcast(broadcast, fields.get("data", {}), name)]
        return self._publish(event[len(CLIENT_EVENT) :], name, fields)

    def _publish(self, event: str, name: str, fields: Mapping[str, Any]) -> Sequence[Act]:
        self._published += 1
        ref = f"pusher:{self._socket_id}:{self._published}"
        try:
            return [Publish(Submission.parse({"ref": ref, "event": event, "data": fields.get("data", {})}), name)]
        except Invalid as error:
            return [_error(CLIENT_EVENT_REFUSED, str(error), name), Mistake()]


def channel_of(name: str) -> str:
    """Return the channel in the log of a channel of Pusher.

    Raises:
        BadSubscription: there is none.
    """
    if name.startswith(UNSUPPORTED):
        raise BadSubscription("encrypted channels and cache channels do not exist here", "Unsupported", 400)
    channel = name.removeprefix(PRIVATE) if name.startswith(PRIVATE) else name.removeprefix(PRESENCE)
    if not is_channel(channel) or ":" in channel:  # which separates the parts of a signed text
        raise BadSubscription("no channel can have this name", "InvalidChannel", 400)
    return channel


def resume_of(position: str) -> Resume:
    """Return a position that a client has received in `userrealtime:position`; the head if it is empty.

    Raises:
        BadSubscription: it is invalid.
    """
    resume = ConnectRequest.parse(query="", authorization=(), last_event_id=(position,)).resume
    if resume is None:
        raise BadSubscription('a position is "<id>:<epoch>"', "InvalidPosition", 400)
    return resume


def _enveloped(event: Event, epoch: str | None) -> bytes:
    """Return the data of an event with its position, as it is passed to resume after this event."""
    number = event.id.decode()
    position = json.dumps(number if epoch is None else f"{number}:{epoch}").encode()
    return b'{"position":%b,"at":"%b","data":%b}' % (position, event.at, event.data)


def _quoted(text: bytes) -> bytes:
    """Return JSON as a JSON string."""
    return json.dumps(text.decode(), ensure_ascii=False).encode()


def _presence(user_id: str, member: Mapping[str, Any]) -> dict[str, Any]:
    """Return the members of a presence channel: the user."""
    return {"count": 1, "ids": [user_id], "hash": {user_id: member.get("user_info", {})}}


def _position(key: str, cursor: int, epoch: str | None) -> Say:
    return _say("userrealtime:position", {"id": cursor, "epoch": epoch}, key)


def _refusal(key: str, error: BadSubscription) -> Say:
    data = {"type": error.kind, "error": str(error), "status": error.status}
    return _say("pusher:subscription_error", data, key)


def _error(code: int, message: str, channel: str | None = None) -> Say:
    fields: dict[str, Any] = {"event": "pusher:error", "data": {"code": code, "message": message}}
    return Say(_json(fields if channel is None else {**fields, "channel": channel}))


def _say(event: str, data: Mapping[str, Any], channel: str | None = None) -> Say:
    fields = {"event": event, "data": _json(data)}
    return Say(_json(fields if channel is None else {**fields, "channel": channel}))


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _object(text: Any) -> dict[str, Any]:
    """Return a JSON object, which may be encoded as a string; an empty one if it is something else."""
    try:
        fields = json.loads(text) if isinstance(text, str) else text
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}
