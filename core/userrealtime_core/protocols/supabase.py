"""Supabase Realtime: the channels of realtime-js and other clients of that service. No I/O.

A token comes with each join and may be replaced in place. An event of the log is sent once to a channel: as a change of
Postgres if the channel has a binding for it, with the names that `userrealtime.capture` gives, and as a broadcast
otherwise. Such a broadcast has its position in `meta`; a broadcast outside the log has none. An application that passes
a position with its joins resumes there, and also gets `system` messages with the position after changes, which have no
place for one.

What a client broadcasts goes to the other clients of the user, where these may send broadcasts. Elsewhere it is a
message to the application.

Each message contains the ref of the join that it belongs to: the client drops the messages of an earlier join, so it
gets no event twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, ClassVar, Final, NamedTuple

from userrealtime_core.wire.connect_request import CloseCode, ConnectRequest, Resume
from userrealtime_core.wire.frames import payloads
from userrealtime_core.wire.names import is_name
from userrealtime_core.wire.session import CloseFrame
from userrealtime_core.wire.submission import Invalid, Refused, Submission

from .cutting import SEPARATOR, WHOLE_LOG, Event, cut, cut_broadcasts, cut_channel, front_of, is_channel, name_in_log
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
    Renew,
    Say,
)
from .phoenix import VERSIONS, BadMessage, Push, Serializer

PREFIX: Final = "realtime:"
"""How the topics of channels begin."""
HEARTBEATS: Final = "phoenix"
"""The topic of heartbeats."""
MAX_BINDINGS: Final = 64
"""Bindings of one channel."""
MAX_UNMARKED: Final = 16
"""Changes between two positions. A client gets them again if its connection breaks before the second position."""
KINDS: Final[Mapping[bytes, str]] = {b"insert": "INSERT", b"update": "UPDATE", b"delete": "DELETE"}
"""The types of changes, by the last part of the name that `userrealtime.capture` gives."""
LATEST_MS: Final = 100_000_000_000_000
"""A time in milliseconds since 1970 must be before this one."""

NO_TOKEN: Final = "Unauthorized: no access_token; pass accessToken, or call setAuth() before subscribe()"  # noqa: S105
NO_PRESENCE: Final = "presence is not served here; see userrealtime.online"
UNMATCHED: Final = "unmatched topic"
NOT_JSON: Final = "the payload of a broadcast must be JSON"
NO_EVENT: Final = "the event of a broadcast must be a string that is not empty"

OWN: Final = "userrealtime"
"""The extension of the `system` messages that Supabase does not have."""

_BOTH: Final = '{"new": '
_OLD: Final = ', "old": '
_SEPARATOR: Final = SEPARATOR.encode()
_decoder: Final = json.JSONDecoder()


class BadJoin(Exception):
    """A join that is refused. The text is for the developer of the application."""


class _Binding(NamedTuple):
    """What an application has passed to `on("postgres_changes")`."""

    kind: str
    """`*`, or one of `KINDS`."""
    schema: str
    table: bytes | None
    """The name as the content of a JSON string; None for all tables."""

    def fits(self, table: bytes, kind: str) -> bool:
        return self.kind in ("*", kind) and self.table in (None, table)


class _Answer(NamedTuple):
    """How a push is answered."""

    ref: str | None
    """The ref of the push."""
    awaited: bool = True
    """Whether the client waits for an answer. If not, it gets failures as `system` messages."""


@dataclass(slots=True)
class _Channel:
    """A channel that a client has joined, or wants to join."""

    name: str
    """Its name in the log."""
    join_ref: str | None
    ref: str | None
    """The ref of the join, which an answer repeats."""
    token: str
    resume: Resume | None
    """The position of the client; None if it passes none, and gets no positions."""
    since: float | None
    """Instead of a position, the time in seconds since 1970 of the first event."""
    given_bindings: Sequence[Mapping[str, Any]]
    """The bindings as the client has sent them."""
    bindings: tuple[_Binding, ...]
    acknowledges: bool
    echoes: bool
    presence: bool
    joined: bool = False
    """Whether the join has been answered."""
    replays_to: int | None = None
    """The number of the last event that is marked as replayed, while there are such events."""

    @property
    def positions(self) -> bool:
        return self.resume is not None


class Supabase(Dialect):
    """One connection."""

    name: ClassVar[str] = "supabase"

    def __init__(self, opening: Opening) -> None:
        super().__init__(opening)
        self._serializer = Serializer(opening.query.get("vsn", VERSIONS[0]))
        self._checked: dict[str, _Channel] = {}  # those whose token is being checked
        self._channels: dict[str, _Channel] = {}
        self._published = 0
        self._publishing = _Answer(None, awaited=False)  # to the message that is being stored

    @classmethod
    def refusal(cls, query: Mapping[str, str]) -> tuple[HTTPStatus, str] | None:
        if query.get("vsn", VERSIONS[0]) in VERSIONS:
            return None
        return HTTPStatus.BAD_REQUEST, f"vsn must be one of {', '.join(VERSIONS)}"

    def receive(self, message: str | bytes) -> Sequence[Act]:
        try:
            push = self._serializer.parse(message)
        except BadMessage:
            return [Mistake()]
        match push.event:
            case "heartbeat" if push.topic == HEARTBEATS:
                return [self._reply(push, "ok", {})]
            case "phx_join":
                return self._join(push)
            case "phx_leave":
                return self._leave(push)
        channel = self._channels.get(push.topic)
        if channel is None:
            return [self._reply(push, "error", {"reason": UNMATCHED})]
        if push.join_ref not in (None, channel.join_ref):
            return []  # of an earlier join; the client does not wait for the answer any more
        match push.event:
            case "access_token":
                token = push.payload.get("access_token")
                return [Renew(push.topic, token)] if isinstance(token, str) else []  # null: signed out
            case "broadcast":
                return self._broadcast(push, channel)
            case "presence":
                if push.payload.get("event") == "untrack":
                    return [self._reply(push, "ok", {})]
                return [self._reply(push, "error", {"reason": NO_PRESENCE})]
            case "publish":
                return self._publish(push, channel)
        return [self._reply(push, "error", {"reason": UNMATCHED}), Mistake()]

    def accepted(self, key: str | None, remaining_s: float, position: tuple[int, str | None] | None) -> Sequence[Act]:
        topic = str(key)
        self._channels[topic] = channel = self._checked.pop(topic)
        if channel.since is not None:
            channel.replays_to = 1 << 63 if position is None else position[0]
        return [Join(topic, channel.name, channel.token, channel.resume or Resume(), channel.since)]

    def told(self, key: str, message: Mapping[str, Any], cursor: int, epoch: str | None) -> Sequence[Act]:
        channel = self._channels.get(key)
        if channel is None:
            return []
        match message["type"]:
            case "connected":
                return self._connected(key, channel, message)
            case "reset":
                fields = {name: message[name] for name in ("reason", "cursor", "epoch", "earliest")}
                return [self._system(key, channel, "error", f"reset: {message['reason']}", OWN, **fields)]
            case "error":  # of a token that could not be checked
                return [self._system(key, channel, "error", message["message"])]
        return []

    def caught_up(self, key: str) -> Sequence[Act]:
        channel = self._channels.get(key)
        if channel is not None:
            channel.replays_to = None
        return []

    def translation(self, key: str) -> Hashable:
        channel = self._channels.get(key)
        if channel is None:
            return key, None
        settings = channel.positions, channel.replays_to, channel.bindings
        return key, self._serializer.version, channel.join_ref, settings

    def translate(self, key: str, frames: bytes, epoch: str | None) -> Sequence[bytes]:
        channel = self._channels.get(key)
        if channel is None:
            return []
        wrap = self._wrapper(key, channel, "broadcast")
        wrap_change = self._wrapper(key, channel, "postgres_changes")
        encoded_epoch = b"" if epoch is None else b',"epoch":%b' % json.dumps(epoch).encode()
        texts: list[bytes] = []
        unmarked = 0  # changes since the last position
        marked = b""  # the last event whose position is sent
        for event, named in _events(frames, channel):
            change = _change(event, channel.bindings)
            if change is not None:
                texts.append(wrap_change(change))
                unmarked += 1
                if channel.positions and unmarked >= MAX_UNMARKED:
                    texts.append(self._position(key, channel, int(event.id), epoch))
                    unmarked, marked = 0, event.id
            elif named:
                meta = b'"id":%b%b,"at":"%b"' % (event.id, encoded_epoch, event.at)
                if channel.replays_to is not None and int(event.id) <= channel.replays_to:
                    meta += b',"replayed":true'
                parts = event.name, event.data, meta
                texts.append(wrap(b'{"type":"broadcast","event":"%b","payload":%b,"meta":{%b}}' % parts))
                unmarked, marked = 0, event.id
        if channel.positions:
            *_, last = payloads(frames)
            number = cut(bytes(last)).id
            if number != marked:
                texts.append(self._position(key, channel, int(number), epoch))
        return texts

    def translate_broadcasts(self, key: str, frames: bytes) -> Sequence[bytes]:
        channel = self._channels.get(key)
        if channel is None:
            return []
        wrap = self._wrapper(key, channel, "broadcast")
        found = cut_broadcasts(frames, channel.name)
        return [wrap(b'{"type":"broadcast","event":"%b","payload":%b}' % parts) for parts in found]

    def broadcasted(self, act: Broadcast, failure: str | None) -> Sequence[Act]:
        channel = self._channels.get(act.key)
        return (
            [] if channel is None else self._answer(act.key, channel, _Answer(act.ref, channel.acknowledges), failure)
        )

    def stored(self, key: str | None, submission: Submission, outcome: Outcome) -> Sequence[Act]:
        topic = str(key)
        channel = self._channels.get(topic)
        if channel is None:
            return []
        if isinstance(outcome, int):
            return self._answer(topic, channel, self._publishing, id=outcome)
        code = "refused" if isinstance(outcome, Refused) else "unavailable"
        return self._answer(topic, channel, self._publishing, str(outcome), code=code)

    def ending(self, key: str | None, closing: CloseFrame, *, expired: bool) -> Sequence[Act]:
        if key is None:
            return [Close(closing.code, closing.reason)]  # the client connects again after any code
        reason = closing.reason
        acts: list[Act] = []
        if closing == TOO_MANY_CHANNELS:
            reason = _too_many_channels()
        elif expired or closing.code is CloseCode.POLICY_VIOLATION:
            reason = "Token has expired" if expired else "InvalidJWTToken: the access_token is not accepted"
            if not expired:
                acts = [Mistake()]
        channel = self._checked.pop(key, None) or self._channels.pop(key, None)
        if channel is None:
            return acts
        if not channel.joined:
            return [*self._answer(key, channel, _Answer(channel.ref), reason), *acts]
        # The client asks its application for a token when it connects. After `phx_error` it would join again with the
        # token that it has, until its next heartbeat.
        return [self._system(key, channel, "error", reason), *acts, Close(closing.code, closing.reason)]

    def _join(self, push: Push) -> Sequence[Act]:
        acts: list[Act] = []
        previous = self._channels.pop(push.topic, None)
        if previous is not None:
            closed = self._say(push.topic, "phx_close", {}, previous.join_ref, previous.join_ref)
            acts += [closed, Leave(push.topic)]
        try:
            if len(self._channels) >= MAX_CHANNELS:
                raise BadJoin(_too_many_channels())
            channel = _parse_join(push, self.opening)
        except BadJoin as error:
            # Not a mistake: the client joins again forever, and its other channels need the connection.
            return [*acts, self._reply(push, "error", {"reason": str(error)})]
        self._checked[push.topic] = channel
        return [*acts, Authenticate(channel.token, push.topic)]

    def _leave(self, push: Push) -> Sequence[Act]:
        channel = self._channels.get(push.topic)
        answer = self._reply(push, "ok", {})
        if channel is None or push.join_ref not in (None, channel.join_ref):
            return [answer]
        del self._channels[push.topic]
        return [answer, Leave(push.topic)]

    def _connected(self, key: str, channel: _Channel, message: Mapping[str, Any]) -> Sequence[Act]:
        channel.joined = True
        bindings = [{**given, "id": number} for number, given in enumerate(channel.given_bindings, start=1)]
        response = {"postgres_changes": bindings}
        answer = {"status": "ok", "response": response}
        acts: list[Act] = [self._say(key, "phx_reply", answer, channel.ref, channel.join_ref)]
        if channel.bindings:
            acts.append(self._system(key, channel, "ok", "Subscribed to PostgreSQL", "postgres_changes"))
        if channel.presence:
            acts.append(self._say(key, "presence_state", {}, None, channel.join_ref))
        given = channel.resume or Resume()
        cursor, epoch = message["cursor"], message["epoch"]
        if channel.since is None and given.cursor in (None, cursor) and given.epoch in (None, epoch):
            # Otherwise a reset may follow, and the new position must not arrive without it.
            acts.append(self._system(key, channel, "ok", "connected", OWN, cursor=cursor, epoch=epoch))
        return acts

    def _broadcast(self, push: Push, channel: _Channel) -> Sequence[Act]:
        """Send a broadcast, or store it where the clients of the user may not send any."""
        event, data = push.payload.get("event"), push.payload.get("payload", {})
        answer = _Answer(push.ref, channel.acknowledges)
        if isinstance(data, bytes):
            return self._answer(push.topic, channel, answer, NOT_JSON)
        if not isinstance(event, str) or not event:
            return self._answer(push.topic, channel, answer, NO_EVENT)
        if not self.opening.broadcasts:
            return self._submit(push, channel, answer, None)
        return [Broadcast(name_in_log(channel.name, event), data, push.topic, push.ref, channel.echoes)]

    def _publish(self, push: Push, channel: _Channel) -> Sequence[Act]:
        """Store a message for the application: `channel.send({type: "publish", event, payload, ref})`."""
        return self._submit(push, channel, _Answer(push.ref), push.payload.get("ref"))

    def _submit(self, push: Push, channel: _Channel, answer: _Answer, given: Any) -> Sequence[Act]:
        self._published += 1
        ref = f"supabase:{self.opening.identity}:{self._published}" if given is None else given
        fields = {"ref": ref, "event": push.payload.get("event"), "data": push.payload.get("payload", {})}
        try:
            submission = Submission.parse(fields)
        except Invalid as error:
            return [*self._answer(push.topic, channel, answer, str(error), code="invalid-publish"), Mistake()]
        self._publishing = answer
        return [Publish(submission, push.topic)]

    def _wrapper(self, topic: str, channel: _Channel, event: str) -> Callable[[bytes], bytes]:
        """Return a function that makes a message of a payload."""
        front, back = (part.encode() for part in self._serializer.around(topic, event, join_ref=channel.join_ref))
        return lambda payload: b"%b%b%b" % (front, payload, back)

    def _position(self, topic: str, channel: _Channel, cursor: int, epoch: str | None) -> bytes:
        return self._system(topic, channel, "ok", "position", OWN, cursor=cursor, epoch=epoch).text.encode()

    def _answer(
        self, topic: str, channel: _Channel, answer: _Answer, failure: str | None = None, **more: Any
    ) -> Sequence[Act]:
        """Answer a push: with success, or with the reason of the failure."""
        if not answer.awaited:
            return [] if failure is None else [self._system(topic, channel, "error", failure)]
        status, response = ("ok", more) if failure is None else ("error", {"reason": failure, **more})
        reply = {"status": status, "response": response}
        return [self._say(topic, "phx_reply", reply, answer.ref, channel.join_ref)]

    def _reply(self, push: Push, status: str, response: Mapping[str, Any]) -> Say:
        return self._say(push.topic, "phx_reply", {"status": status, "response": response}, push.ref, push.join_ref)

    def _system(
        self, topic: str, channel: _Channel, status: str, message: str, extension: str = "system", **more: Any
    ) -> Say:
        payload = {"extension": extension, "status": status, "message": message, "channel": channel.name, **more}
        return self._say(topic, "system", payload, None, channel.join_ref)

    def _say(self, topic: str, event: str, payload: Mapping[str, Any], ref: str | None, join_ref: str | None) -> Say:
        return Say(self._serializer.encode(topic, event, payload, ref=ref, join_ref=join_ref))


def _too_many_channels() -> str:
    return f"ChannelRateLimitReached: {MAX_CHANNELS} channels are the most"


def _parse_join(push: Push, opening: Opening) -> _Channel:
    """Return the channel of a join whose token is not checked yet.

    Raises:
        BadJoin: there is no token, no such channel, or the join needs something that is not served.
    """
    payload = push.payload
    name = push.topic.removeprefix(PREFIX)
    if not push.topic.startswith(PREFIX) or not is_channel(name):
        raise BadJoin("no channel can have this name")
    token = payload.get("access_token") or payload.get("user_token") or opening.request.token
    if not isinstance(token, str):
        raise BadJoin(NO_TOKEN)
    config = _object(payload, "config")
    broadcast, presence = _object(config, "broadcast"), _object(config, "presence")
    given = config.get("postgres_changes") or []
    if not isinstance(given, list) or len(given) > MAX_BINDINGS:
        raise BadJoin(f"postgres_changes is a list of at most {MAX_BINDINGS} bindings")
    resume = _parse_resume(payload)
    return _Channel(
        name=name,
        join_ref=push.join_ref or push.ref,
        ref=push.ref,
        token=token,
        resume=resume,
        since=_parse_since(_object(broadcast, "replay")) if resume is None or resume.cursor is None else None,
        given_bindings=given,
        bindings=tuple(map(_parse_binding, given)),
        acknowledges=broadcast.get("ack") is True,
        echoes=broadcast.get("self") is True,
        presence="presence" in config and presence.get("enabled") is not False,
    )


def _object(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a member that is an object or missing."""
    value = fields.get(name)
    if not isinstance(value, dict | None):
        raise BadJoin(f"{name} is an object")
    return value or {}


def _parse_resume(payload: Mapping[str, Any]) -> Resume | None:
    """Return the position in a join; the head if it is empty, None if there is none."""
    if "last_event_id" not in payload:
        return None
    number, epoch = payload["last_event_id"], payload.get("epoch")
    text = "" if number is None else str(number)
    resume = ConnectRequest.parse(query="", authorization=(), last_event_id=(text,)).resume
    if resume is None or not isinstance(epoch, str | None):
        raise BadJoin('Invalid last_event_id: pass the "id" and the "epoch" of the "meta" of a broadcast')
    return resume if resume.cursor is None else resume._replace(epoch=resume.epoch or epoch or None)


def _parse_since(replay: Mapping[str, Any]) -> float | None:
    """Return the time of a replay in seconds since 1970; None if there is no replay."""
    if not replay:
        return None
    since = replay.get("since")
    if not isinstance(since, int | float) or isinstance(since, bool) or not 0 <= since < LATEST_MS:
        raise BadJoin("UnableToReplayMessages: since is a time in milliseconds since 1970")
    return since / 1000


def _parse_binding(given: Any) -> _Binding:
    if not isinstance(given, dict):
        raise BadJoin("a binding of postgres_changes is an object")
    for name in ("filter", "select"):
        if given.get(name):
            raise BadJoin(
                f"RealtimeDisabledForConfiguration: {name} is not supported: "
                "the trigger that publishes a table selects the rows of a user, and their columns"
            )
    kind, schema, table = given.get("event"), given.get("schema") or "public", given.get("table")
    if kind not in ("*", *KINDS.values()):
        raise BadJoin("the event of a binding is one of *, INSERT, UPDATE and DELETE")
    if not is_name(schema) or not (table is None or is_name(table)):
        raise BadJoin("schema and table of a binding are names")
    content = None if table in (None, "*") else json.dumps(table, ensure_ascii=False)[1:-1].encode()
    return _Binding(kind, "public" if schema == "*" else schema, content)


def _events(frames: bytes, channel: _Channel) -> Iterator[tuple[Event, bool]]:
    """Yield the events in joined frames that the channel may get, and whether each one has a name in the channel.

    An event with such a name has it; the others, which may fit a binding, have their names in the log.
    """
    if channel.name == WHOLE_LOG or not channel.bindings:
        for event in cut_channel(frames, channel.name):
            yield event, True
        return
    front = front_of(channel.name)
    for text in payloads(frames):
        event = cut(bytes(text))
        if event.name.startswith(front) and len(event.name) > len(front):
            yield event._replace(name=event.name[len(front) :]), True
        else:
            yield event, False


def _change(event: Event, bindings: Sequence[_Binding]) -> bytes | None:
    """Return an event as a change of Postgres; None if no binding fits."""
    table, _, operation = event.name.rpartition(b".")
    kind = KINDS.get(operation)
    # An event with a separator is of another channel.
    if not bindings or kind is None or not table or _SEPARATOR in table or not event.data.startswith(b"{"):
        return None
    fitting = [number for number, binding in enumerate(bindings, start=1) if binding.fits(table, kind)]
    if not fitting:
        return None
    if kind == "INSERT":
        rows = b'"record":%b' % event.data
    elif kind == "DELETE":
        rows = b'"old_record":%b' % event.data
    else:
        rows = b'"record":%b,"old_record":%b' % (_new_and_old(event.data) or (event.data, b"{}"))
    return b'{"ids":%b,"data":{"schema":%b,"table":"%b","commit_timestamp":"%b","type":"%b","columns":[],%b,%b}}' % (
        json.dumps(fitting, separators=(",", ":")).encode(),
        json.dumps(bindings[fitting[0] - 1].schema).encode(),
        table,
        event.at,
        kind.encode(),
        rows,
        b'"errors":null',
    )


def _new_and_old(data: bytes) -> tuple[bytes, bytes] | None:
    """Return the two rows of an update that is published with `update=both`; None if it is another one."""
    text = data.decode()
    if not text.startswith(_BOTH + "{"):
        return None
    try:
        _, end = _decoder.raw_decode(text, len(_BOTH))
        if not text.startswith(_OLD + "{", end):
            return None
        begin = end + len(_OLD)
        _, last = _decoder.raw_decode(text, begin)
    except (ValueError, RecursionError):
        return None
    return (text[len(_BOTH) : end].encode(), text[begin:last].encode()) if text[last:] == "}" else None
