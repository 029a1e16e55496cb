"""Pusher: transcripts of the dialect, connections to a real relay, and the endpoints of the authorization."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlencode

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from testing.announcer import broadcasting
from testing.database import Database
from testing.relay.harness import KEY, PATIENCE_S, USER, client, config, receive, running, token
from testing.relay.http_client import request
from userrealtime_core.protocols.dialect import (
    EXPIRED,
    KEYS_UNAVAILABLE,
    MAX_CHANNELS,
    TOO_MANY_CHANNELS,
    Act,
    Authenticate,
    Broadcast,
    Close,
    Join,
    Leave,
    Mistake,
    Opening,
    Outcome,
    Publish,
    Say,
    Signature,
)
from userrealtime_core.protocols.pusher import LONGEST_DATA, MAX_UNMARKED, SIGN_IN, Pusher
from userrealtime_core.wire.connect_request import CloseCode, ConnectRequest, Resume
from userrealtime_core.wire.frames import encode_text
from userrealtime_core.wire.session import MAX_ERRORS, UNAUTHORIZED, CloseFrame
from userrealtime_core.wire.submission import Refused, Unavailable
from userrealtime_relay.protocols.pusher import MAX_FORM_BYTES
from userrealtime_relay.server import Relay
from userrealtime_relay.wire.frames import encode_events

# No program listens there.
NO_DATABASE: Final = "postgresql://nobody@127.0.0.1:1/none"
AT: Final = "2026-01-02 03:04:05.678901+00"
SOCKET_ID: Final = "1.2"
CONNECTED: Final = {"type": "connected", "userId": USER, "cursor": 7, "epoch": "e", "earliest": 1}
RESET: Final = {"type": "reset", "reason": "too-old", "cursor": 7, "epoch": "e", "earliest": 5}
MISTAKE: Final = {"event": "pusher:error", "code": 4200}


def pusher(*, broadcasts: bool = False, **query: str) -> Pusher:
    identity = f"{1:012x}{2:012x}"
    request = ConnectRequest(None, Resume())
    return Pusher(Opening("/app/urt", query, {}, (), request, False, identity, USER, broadcasts))


def said(acts: Any) -> list[dict[str, Any]]:
    """Return the messages among acts. Data that is a string is parsed, as clients do."""
    messages = [json.loads(act.text) for act in acts if isinstance(act, Say)]
    return [{**each, "data": _parsed(each["data"])} for each in messages]


def _parsed(data: Any) -> Any:
    return json.loads(data) if isinstance(data, str) else data


def send(dialect: Pusher, event: str, data: Any = None, **more: Any) -> list[Act]:
    return list(dialect.receive(json.dumps({"event": event, "data": data, **more})))


def subscribe(dialect: Pusher, channel: str, auth: str = "urt:t", **more: Any) -> list[Act]:
    """Subscribe with a credential that is accepted, and return the acts."""
    acts = send(dialect, "pusher:subscribe", {"channel": channel, "auth": auth, **more})
    if [type(act) for act in acts] != [Authenticate]:
        return acts
    return list(dialect.accepted(channel, 60, (7, "e")))


def refused(acts: Sequence[Act]) -> tuple[str, int]:
    """Return the type and the status of the error of a subscription, which counts as a mistake."""
    assert isinstance(acts[-1], Mistake)
    [message] = said(acts)
    assert message["event"] == "pusher:subscription_error"
    return message["data"]["type"], message["data"]["status"]


def translated(dialect: Pusher, key: str, *events: tuple[int, str, str]) -> list[dict[str, Any]]:
    frames = b"".join(encode_events([("e", number, name, AT, data) for number, name, data in events]))
    return [json.loads(text) for text in dialect.translate(key, frames, "e")]


def test_a_connection_with_a_private_channel() -> None:
    dialect = pusher(protocol="7")
    [established] = said(dialect.begin(0))
    assert established == {
        "event": "pusher:connection_established",
        "data": {"socket_id": SOCKET_ID, "activity_timeout": 30},
    }
    assert send(dialect, "pusher:subscribe", {"channel": "private-log", "auth": "urt:t"}) == [
        Authenticate("t", "private-log")
    ]
    assert list(dialect.accepted("private-log", 60, (7, "e"))) == [Join("private-log", "log", "t", Resume())]
    [succeeded] = said(dialect.told("private-log", CONNECTED, 7, "e"))
    assert succeeded == {
        "event": "pusher_internal:subscription_succeeded",
        "channel": "private-log",
        "data": {"cursor": 7, "epoch": "e", "earliest": 1},
    }
    assert translated(dialect, "private-log", (8, "a", '{"x": [1, "é"]}')) == [
        {"event": "a", "channel": "private-log", "data": '{"x": [1, "é"]}'}
    ]
    assert said(send(dialect, "pusher:ping", {})) == [{"event": "pusher:pong", "data": {}}]
    assert send(dialect, "pusher:pong", {}) == []
    assert send(dialect, "pusher:unsubscribe", {"channel": "private-log"}) == [Leave("private-log")]
    assert send(dialect, "pusher:unsubscribe", {"channel": "private-log"}) == []
    assert translated(dialect, "private-log", (9, "a", "1")) == []
    assert list(dialect.told("private-log", RESET, 7, "e")) == []


@pytest.mark.parametrize("value", ["0", "false", "null", '""', '"44"', "[]", "1.50", '"\\u0001\\"\\ud800"', '"é𝄞"'])
def test_data_of_each_type_is_json_in_a_string(value: str) -> None:
    dialect = pusher()
    subscribe(dialect, "private-log")
    [message] = translated(dialect, "private-log", (8, "a", value))
    assert message["data"] == value


def test_a_channel_gets_its_events_and_none_that_look_like_the_protocols_own() -> None:
    dialect = pusher()
    assert subscribe(dialect, "private-C") == [Join("private-C", "C", "t", Resume())]
    events = ((8, "C#a", "1"), (9, "D#a", "2"), (10, "C#pusher:error", "3"), (11, "C#userrealtime:reset", "4"))
    assert [message["event"] for message in translated(dialect, "private-C", *events)] == ["a"]
    subscribe(dialect, "private-log")
    names = ("pusher:ping", "pusher_internal:subscription_succeeded", "userrealtime:position", "pusher")
    others = [(number, name, "1") for number, name in enumerate(names)]
    assert [message["event"] for message in translated(dialect, "private-log", *others)] == ["pusher"]


@pytest.mark.parametrize(
    ("auth", "more", "resume"),
    [
        ("urt:t;42:5f0c", {}, Resume(42, "5f0c")),
        ("urt:t;42", {}, Resume(42)),
        ("urt:t;", {}, Resume()),
        ("t", {"channel_data": '{"last_event_id":"42:e"}'}, Resume(42, "e")),
        ("urt:t;", {"channel_data": '{"last_event_id":"42:e"}'}, Resume()),
    ],
)
def test_a_client_that_passes_a_position_resumes_and_gets_positions(
    auth: str, more: dict[str, str], resume: Resume
) -> None:
    dialect = pusher()
    key = "private-C"
    [join] = subscribe(dialect, key, auth, **more)
    assert isinstance(join, Join)
    assert (join.credential, join.resume) == ("t", resume)
    cursor, epoch = resume.cursor or 7, resume.epoch or "e"
    messages = said(dialect.told(key, {**CONNECTED, "cursor": cursor, "epoch": epoch}, cursor, epoch))
    assert [message["event"] for message in messages] == [
        "pusher_internal:subscription_succeeded",
        "userrealtime:position",
    ]
    assert messages[1]["data"] == {"id": cursor, "epoch": epoch}
    # The position moves by events of other channels as well.
    event, position = translated(dialect, key, (43, "C#a", "1"), (44, "D#a", "2"))
    assert event["event"] == "a"
    assert position == {"event": "userrealtime:position", "channel": key, "data": '{"id":44,"epoch":"e"}'}
    other = pusher()
    subscribe(other, key)
    assert dialect.translation(key) != other.translation(key)


def test_positions_come_within_a_large_batch() -> None:
    dialect = pusher()
    subscribe(dialect, "private-log", "urt:t;")
    count = 2 * MAX_UNMARKED + 1
    texts = translated(dialect, "private-log", *((number, "a", "1") for number in range(1, count + 1)))
    positions = [json.loads(text["data"])["id"] for text in texts if text["event"] == "userrealtime:position"]
    assert positions == [MAX_UNMARKED, 2 * MAX_UNMARKED, count]
    assert len(texts) == count + len(positions)


def test_with_an_envelope_each_event_has_its_position() -> None:
    dialect = pusher()
    key = "private-C"
    [join] = subscribe(dialect, key, "urt:t;42:e;envelope")
    assert isinstance(join, Join)
    assert join.resume == Resume(42, "e")
    event, position = translated(dialect, key, (43, "C#a", '"x"'), (44, "D#a", "2"))
    assert json.loads(event["data"]) == {"position": "43:e", "at": "2026-01-02T03:04:05.678901Z", "data": "x"}
    assert json.loads(position["data"]) == {"id": 44, "epoch": "e"}
    other = pusher()
    subscribe(other, key, "urt:t;42:e")
    assert dialect.translation(key) != other.translation(key)
    [text, _] = dialect.translate(key, b"".join(encode_events([(None, 43, "C#a", AT, "1")])), None)
    assert json.loads(json.loads(text)["data"])["position"] == "43"


def test_a_reset_comes_before_the_new_position() -> None:
    dialect = pusher()
    subscribe(dialect, "private-log", "urt:t;3:e")
    # The session connects at the head and reports the reset in its next message.
    [succeeded] = said(dialect.told("private-log", CONNECTED, 7, "e"))
    assert succeeded["event"] == "pusher_internal:subscription_succeeded"
    reset, position = said(dialect.told("private-log", RESET, 7, "e"))
    assert (reset["event"], reset["channel"], reset["data"]) == ("userrealtime:reset", "private-log", RESET)
    assert position["data"] == {"id": 7, "epoch": "e"}
    dialect = pusher()
    subscribe(dialect, "private-log", "urt:t;7:old")
    assert len(said(dialect.told("private-log", CONNECTED, 7, "e"))) == 1
    dialect = pusher()
    subscribe(dialect, "private-log")
    assert [each["event"] for each in said(dialect.told("private-log", RESET, 7, "e"))] == ["userrealtime:reset"]


@pytest.mark.parametrize("data", [None, '{"user_id":"alice","user_info":{"name":"Alice"}}'])
def test_a_presence_channel_has_one_member(data: str | None) -> None:
    dialect = pusher()
    more = {} if data is None else {"channel_data": data}
    assert subscribe(dialect, "presence-log", **more) == [Join("presence-log", "log", "t", Resume())]
    [message] = said(dialect.told("presence-log", CONNECTED, 7, "e"))
    info = {} if data is None else {"name": "Alice"}
    assert message["data"] == {"presence": {"count": 1, "ids": [USER], "hash": {USER: info}}}


@pytest.mark.parametrize(
    ("channel", "auth", "more", "reason"),
    [
        ("private-log", "", {}, ("AuthError", 401)),
        ("private-log", "urt:", {}, ("AuthError", 401)),
        ("private-log", 1, {}, ("AuthError", 401)),
        ("private-log", "urt:t", {"channel_data": 1}, ("AuthError", 401)),
        ("private-log", "urt:t", {"channel_data": "x" * (LONGEST_DATA + 1)}, ("InvalidData", 400)),
        ("private-log", "urt:t;x", {}, ("InvalidPosition", 400)),
        ("private-log", "urt:t;-1:e", {}, ("InvalidPosition", 400)),
        ("private-log", "urt:t;1:e;all", {}, ("InvalidOption", 400)),
        ("private-log", "urt:t;1:e;envelope;envelope", {}, ("InvalidOption", 400)),
        ("presence-log", "urt:t", {"channel_data": '{"user_id":"bob"}'}, ("AuthError", 403)),
        ("private-encrypted-x", "urt:t", {}, ("Unsupported", 400)),
        ("private-cache-x", "urt:t", {}, ("Unsupported", 400)),
        ("presence-cache-x", "urt:t", {}, ("Unsupported", 400)),
        ("cache-x", "urt:t", {}, ("Unsupported", 400)),
        ("private-", "urt:t", {}, ("InvalidChannel", 400)),
        ("private-a#b", "urt:t", {}, ("InvalidChannel", 400)),
        ("private-a:b", "urt:t", {}, ("InvalidChannel", 400)),
        ("private-" + "x" * 201, "urt:t", {}, ("InvalidChannel", 400)),
        ("private-\ud800", "urt:t", {}, ("InvalidChannel", 400)),
        ("#server-to-user-alice", "", {}, ("AuthError", 401)),
        ("#server-to-user-bob", "", {}, ("InvalidChannel", 400)),
    ],
)
def test_a_subscription_is_refused_before_a_token_is_checked(
    channel: str, auth: Any, more: dict[str, Any], reason: tuple[str, int]
) -> None:
    assert refused(subscribe(pusher(), channel, auth, **more)) == reason


def test_a_public_channel_waits_for_a_token() -> None:
    dialect = pusher()
    assert subscribe(dialect, "news", "") == []
    assert subscribe(dialect, "gone", "") == []
    assert send(dialect, "pusher:unsubscribe", {"channel": "gone"}) == []
    joins = [Join("private-log", "log", "t", Resume()), Join("news", "news", "t", Resume())]
    assert subscribe(dialect, "private-log") == joins
    subscribe(dialect, "private-C", "urt:newer")
    assert subscribe(dialect, "other", "") == [Join("other", "other", "newer", Resume())]


def test_a_signature_opens_one_channel() -> None:
    dialect = pusher()
    signature = "0123456789abcdef" * 4
    subscribe(dialect, "news", "")
    data = {"channel": "private-C", "auth": f"key:{signature};42:e"}
    signed = Signature("1.2:private-C", signature)
    assert send(dialect, "pusher:subscribe", data) == [Authenticate(signed, "private-C")]
    join, *others = dialect.accepted("private-C", 60, None)
    assert join == Join("private-C", "C", signed, Resume(42, "e"))
    assert refused(others) == ("AuthError", 401)
    assert refused(subscribe(dialect, "news", "")) == ("AuthError", 401)
    member = '{"user_id":"alice"}'
    [join] = subscribe(dialect, "presence-C", f"key:{signature}", channel_data=member)
    assert isinstance(join, Join)
    assert join.credential == Signature(f"1.2:presence-C:{member}", signature)
    subscribe(dialect, "private-log")
    assert subscribe(dialect, "news", "") == [Join("news", "news", "t", Resume())]


def test_after_signing_in_the_users_channel_is_the_whole_log() -> None:
    dialect = pusher()
    assert send(dialect, "pusher:signin", {"auth": "urt:t;42:e"}) == [Authenticate("t", SIGN_IN)]
    [success] = said(dialect.accepted(SIGN_IN, 60, (7, "e")))
    assert success["event"] == "pusher:signin_success"
    assert json.loads(success["data"]["user_data"]) == {"id": USER}
    channel = f"#server-to-user-{USER}"
    assert subscribe(dialect, channel, "") == [Join(channel, "log", "t", Resume(42, "e"))]
    [event, _] = translated(dialect, channel, (43, "C#a", "1"))
    assert (event["event"], event["channel"]) == ("C#a", channel)


def test_signing_in_with_a_signature() -> None:
    dialect = pusher()
    signature, user = "a" * 64, '{"id":"alice","name":"Alice"}'
    expected = Authenticate(Signature(f"1.2::user::{user}", signature), SIGN_IN)
    assert send(dialect, "pusher:signin", {"auth": f"key:{signature}", "user_data": user}) == [expected]
    [success] = said(dialect.accepted(SIGN_IN, 60, None))
    assert json.loads(success["data"]["user_data"]) == {"id": USER, "name": "Alice"}


@pytest.mark.parametrize("data", [{}, {"auth": "urt:t", "user_data": '{"id":"bob"}'}, None])
def test_signing_in_is_refused(data: Any) -> None:
    error, mistake = send(pusher(), "pusher:signin", data)
    assert said([error])[0]["data"]["code"] == 4009
    assert isinstance(mistake, Mistake)


def test_an_invalid_token_ends_a_subscription_and_not_the_connection() -> None:
    for expired in (False, True):
        dialect = pusher()
        assert send(dialect, "pusher:subscribe", {"channel": "private-log", "auth": "urt:t"})
        assert refused(list(dialect.ending("private-log", UNAUTHORIZED, expired=expired))) == ("AuthError", 401)
        assert send(dialect, "pusher:signin", {"auth": "urt:t"})
        error, mistake = dialect.ending(SIGN_IN, UNAUTHORIZED, expired=expired)
        assert said([error])[0]["data"]["code"] == 4009
        assert isinstance(mistake, Mistake)


def test_client_events_go_to_the_inbox() -> None:
    dialect = pusher()
    error, mistake = send(dialect, "client-note", {"x": 1}, channel="private-C")
    assert (said([error])[0]["data"]["code"], type(mistake)) == (4301, Mistake)
    subscribe(dialect, "private-C")
    for number in (1, 2):
        [publish] = send(dialect, "client-note", {"x": 1}, channel="private-C")
        assert isinstance(publish, Publish)
        assert publish.submission == (f"pusher:1.2:{number}", "note", '{"x":1}')
        assert list(dialect.stored("private-C", publish.submission, 3)) == []
    outcomes: tuple[Outcome, ...] = (Refused("no"), Unavailable("later"))
    for outcome in outcomes:
        assert isinstance(publish, Publish)
        [message] = said(dialect.stored("private-C", publish.submission, outcome))
        data = {"code": 4301, "message": str(outcome)}
        assert message == {"event": "pusher:error", "channel": "private-C", "data": data}
    for event, channel in (("client-", "private-C"), ("client-" + "x" * 300, "private-C"), ("client-x", ["C"])):
        error, mistake = send(dialect, event, {}, channel=channel)
        assert (said([error])[0]["data"]["code"], type(mistake)) == (4301, Mistake)


def test_client_events_are_broadcasts_where_clients_may_send_some() -> None:
    dialect = pusher(broadcasts=True)
    error, mistake = send(dialect, "client-note", {"x": 1}, channel="private-C")
    assert (said([error])[0]["data"]["code"], type(mistake)) == (4301, Mistake)
    subscribe(dialect, "private-C")
    subscribe(dialect, "presence-log")
    sent = send(dialect, "client-note", {"x": 1}, channel="private-C")
    assert sent == [Broadcast("C#client-note", {"x": 1}, "private-C")]
    assert send(dialect, "client-note", None, channel="presence-log") == [
        Broadcast("client-note", None, "presence-log")
    ]
    [message] = said(dialect.broadcasted(Broadcast("C#client-note", {}, "private-C"), "too many"))
    assert message == {
        "event": "pusher:error",
        "channel": "private-C",
        "data": {"code": 4301, "message": "too many"},
    }


def test_broadcasts_have_neither_an_envelope_nor_a_position() -> None:
    dialect = pusher()
    subscribe(dialect, "private-C")
    subscribe(dialect, "private-log", "urt:t;3:e;envelope")
    subscribe(dialect, "presence-C")
    names = ("C#client-note", "typing", "C#progress", "C#pusher:error", "userrealtime:reset")
    frames = b"".join(
        encode_text(f'{{"type":"broadcast","event":"{name}","data":{{"n":{place}}}}}')
        for place, name in enumerate(names)
    )

    def found(key: str) -> list[dict[str, Any]]:
        return [json.loads(text) for text in dialect.translate_broadcasts(key, frames)]

    note = {"event": "client-note", "channel": "private-C", "data": '{"n":0}'}
    progress = {"event": "progress", "channel": "private-C", "data": '{"n":2}'}
    assert found("private-C") == [note, progress]
    # In a presence channel, a client event has its sender.
    assert found("presence-C") == [
        {**note, "channel": "presence-C", "user_id": USER},
        {**progress, "channel": "presence-C"},
    ]
    assert [(each["event"], each["data"]) for each in found("private-log")] == [
        ("C#client-note", '{"n":0}'),
        ("typing", '{"n":1}'),
        ("C#progress", '{"n":2}'),
        ("C#pusher:error", '{"n":3}'),
    ]
    assert found("private-other") == []


@pytest.mark.parametrize(
    "message",
    [
        b"{}",
        "x",
        "[]",
        "{}",
        "[" * 100_000,
        '{"event":"pusher:fly"}',
        '{"event":["pusher:ping"]}',
        '{"event":"pusher:subscribe"}',
        '{"event":"pusher:subscribe","data":[]}',
        '{"event":"pusher:subscribe","data":{"channel":1}}',
        '{"event":"pusher:unsubscribe","data":{"channel":1}}',
    ],
)
def test_invalid_messages_are_counted_and_answered(message: str | bytes) -> None:
    error, mistake = pusher().receive(message)
    assert said([error])[0]["data"]["code"] == 4200
    assert isinstance(mistake, Mistake)


NAMES: Final = ("channel", "auth", "channel_data", "user_data")
TEXTS: Final = st.one_of(
    st.sampled_from(
        ("private-log", "presence-C", "news", f"#server-to-user-{USER}", "urt:t", "urt:t;1:e", "t;;envelope")
    ),
    st.text(),
)
JSON: Final = st.recursive(st.none() | st.booleans() | st.integers() | TEXTS, lambda inner: st.lists(inner, max_size=2))
EVENTS: Final = st.one_of(
    st.sampled_from(("pusher:subscribe", "pusher:unsubscribe", "pusher:signin", "pusher:ping", "client-note")), JSON
)


@given(st.lists(st.tuples(EVENTS, st.dictionaries(st.sampled_from(NAMES), JSON) | JSON, JSON), max_size=30))
def test_no_message_raises_an_error_and_the_state_is_limited(messages: list[tuple[Any, Any, Any]]) -> None:
    dialect = pusher()
    joined = set()
    for event, data, channel in messages:
        acts = list(dialect.receive(json.dumps({"event": event, "data": data, "channel": channel})))
        for act in acts:
            if isinstance(act, Authenticate):
                acts += dialect.accepted(act.key, 60, (7, "e"))
            elif isinstance(act, Say):
                act.text.encode()
            elif isinstance(act, Join):
                joined.add(act.key)
                assert said(dialect.told(act.key, CONNECTED, 7, "e"))
            elif isinstance(act, Leave):
                joined.remove(act.key)
        assert len(joined) <= MAX_CHANNELS


def test_the_version_of_the_protocol() -> None:
    [close] = pusher(protocol="4").begin(0)
    assert isinstance(close, Close)
    assert close.code == 4007
    assert said(pusher().begin(0))
    for version in ("5", "7"):
        assert said(pusher(protocol=version).begin(0))


def test_the_number_of_channels_is_limited_before_a_token_is_checked() -> None:
    dialect = pusher()
    for number in range(MAX_CHANNELS // 2):
        subscribe(dialect, f"waits{number}", "")
    for _ in range(2):  # a repeated subscription replaces the first one
        subscribe(dialect, "private-0")
    for number in range(MAX_CHANNELS // 2 - 1):
        subscribe(dialect, f"private-{number + 1}")
    assert refused(subscribe(dialect, "private-more")) == ("LimitReached", 400)
    assert refused(subscribe(dialect, "more", "")) == ("LimitReached", 400)
    [error] = said(dialect.ending("private-0", TOO_MANY_CHANNELS, expired=False))
    assert error["data"]["type"] == "LimitReached"
    assert subscribe(dialect, "private-more")


@pytest.mark.parametrize(
    ("code", "translation"),
    [
        (CloseCode.POLICY_VIOLATION, 4009),
        (CloseCode.RESTARTING, 4100),
        (CloseCode.TRY_LATER, 4100),
        (CloseCode.TOO_SLOW, 4100),
        (CloseCode.TOKEN_EXPIRED, 4200),
    ],
)
def test_how_a_connection_ends(code: CloseCode, translation: int) -> None:
    assert list(pusher().ending(None, CloseFrame(code, "x"), expired=False)) == [Close(translation, "x")]


def test_each_close_code_has_a_translation() -> None:
    for code in CloseCode:
        assert pusher().ending(None, CloseFrame(code, "x"), expired=False)


def test_a_channel_that_ends_ends_its_connection() -> None:
    dialect = pusher()
    subscribe(dialect, "private-log")
    assert list(dialect.ending("private-log", EXPIRED, expired=True)) == [Close(4200, "Token expired")]
    # A token that expires between two checks: the client asks its application for another one.
    subscribe(dialect, "private-log")
    assert list(dialect.ending("private-log", UNAUTHORIZED, expired=False)) == [Close(4200, "Unauthorized")]
    reason = KEYS_UNAVAILABLE.reason
    assert list(dialect.ending("private-log", KEYS_UNAVAILABLE, expired=False)) == [Close(4100, reason)]


async def message_of(connection: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(PATIENCE_S):
        message = json.loads(await connection.recv())
    return {**message, "data": _parsed(message["data"])}


async def messages_until_close(connection: ClientConnection) -> tuple[list[dict[str, Any]], int]:
    """Return the messages until the connection is closed, and the close code."""
    messages = []
    with contextlib.suppress(ConnectionClosed):
        while True:
            messages.append(await message_of(connection))
    return messages, connection.close_code or 0


async def tell(connection: ClientConnection, event: str, data: Any, **more: Any) -> None:
    with contextlib.suppress(ConnectionClosed):
        await connection.send(json.dumps({"event": event, "data": data, **more}))


async def join(connection: ClientConnection, channel: str = "private-log", auth: str = "") -> dict[str, Any]:
    """Subscribe to a channel, and return the answer."""
    await tell(connection, "pusher:subscribe", {"channel": channel, "auth": auth or f"urt:{token()}"})
    return await message_of(connection)


def pusher_client(relay: Relay, path: str = "/app/urt") -> Any:
    """Connect as a client of Pusher does: without a token."""
    return client(relay, None, path=path, protocol="7")


async def socket_id(connection: ClientConnection) -> str:
    """Return the id of a connection, from its first message."""
    established = await message_of(connection)
    assert established["event"] == "pusher:connection_established"
    identity: str = established["data"]["socket_id"]
    return identity


def signature(content: str, key: str = KEY) -> str:
    """Return what the server libraries of Pusher write into `auth`."""
    return f"urt:{hmac.new(key.encode(), content.encode(), hashlib.sha256).hexdigest()}"


async def authorize(relay: Relay, path: str = "/pusher/auth", bearer: str | None = "", **fields: str) -> Any:
    """Request an authorization as pusher-js does."""
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    return await request(relay, path, bearer, method="POST", body=urlencode(fields).encode(), headers=headers)


async def test_events_of_a_real_relay_and_an_exact_resume(migrated: Database, connection: asyncpg.Connection) -> None:
    await connection.execute("insert into userrealtime.log (user_id) values ($1)", USER)
    async with running(migrated.url, PROTOCOLS="pusher", BASE_PATH="/a") as relay:
        async with pusher_client(relay, "/a/app/urt") as alice:
            await socket_id(alice)
            answer = await authorize(relay, "/a/pusher/auth", channel_name="private-log", last_event_id="")
            succeeded = await join(alice, auth=answer.json["auth"])
            assert succeeded["event"] == "pusher_internal:subscription_succeeded"
            assert succeeded["data"]["cursor"] == 0
            first = await message_of(alice)
            await connection.execute("select userrealtime.publish($1, 'a', '\"44\"')", USER)
            event, position = await message_of(alice), await message_of(alice)
            assert (event["event"], event["data"]) == ("a", "44")
            assert position["data"] == {**first["data"], "id": 1}
            await tell(alice, "client-note", {"x": 1}, channel="private-log")
            await tell(alice, "pusher:ping", {})
            assert (await message_of(alice))["event"] == "pusher:pong"
        [row] = await connection.fetch("select ref, event, data from userrealtime.inbox")
        assert (row["event"], json.loads(row["data"])) == ("note", {"x": 1})
        assert row["ref"].startswith("pusher:")
        await connection.execute(
            "select userrealtime.publish($1, 'b', '2'), userrealtime.publish($1, 'C#c', '3')", USER
        )
        place = f"{position['data']['id']}:{position['data']['epoch']}"
        async with pusher_client(relay) as alice:
            await socket_id(alice)
            assert (await join(alice, auth=f"urt:{token()};{place}"))["data"]["cursor"] == 1
            seen = [await message_of(alice) for _ in range(4)]
            assert [each["event"] for each in seen] == ["userrealtime:position", "b", "C#c", "userrealtime:position"]
        async with pusher_client(relay) as alice:
            await socket_id(alice)
            assert (await join(alice, auth=f"urt:{token()};1:other"))["event"].endswith("succeeded")
            reset, after = await message_of(alice), await message_of(alice)
            assert (reset["event"], reset["data"]["reason"]) == ("userrealtime:reset", "epoch")
            assert after["data"]["id"] == 3


async def test_a_connection_without_a_token_gets_no_events() -> None:
    # There is no database: a connection without a valid token causes no query.
    async with Relay(config(NO_DATABASE, PROTOCOLS="pusher", AUTH_TIMEOUT="1")) as relay:
        async with pusher_client(relay) as alice:
            await socket_id(alice)
            await tell(alice, "pusher:subscribe", {"channel": "news", "auth": ""})
            for bad in ("nonsense", token(sub="bob"), token(key="other" * 10), token(life_s=-60)):
                error = await join(alice, auth=f"urt:{bad}")
                assert error["event"] == "pusher:subscription_error"
                assert (error["channel"], error["data"]["status"]) == ("private-log", 401)
            await tell(alice, "client-note", {}, channel="private-log")
            assert (await message_of(alice))["data"]["code"] == 4301
            assert await messages_until_close(alice) == ([], 4009)
        async with pusher_client(relay) as alice:
            await socket_id(alice)
            for _ in range(MAX_ERRORS):
                await tell(alice, "pusher:subscribe", {"channel": "private-log", "auth": "urt:x"})
            messages, code = await messages_until_close(alice)
            assert (len(messages), code) == (MAX_ERRORS, 4009)


async def test_broadcasts_in_both_directions(migrated: Database, connection: asyncpg.Connection) -> None:
    await connection.execute("insert into userrealtime.log (user_id) values ($1)", USER)
    variables = {"PROTOCOLS": "pusher", "MAX_BROADCASTS_PER_SECOND": "5"}
    async with (
        broadcasting(migrated.url),
        running(migrated.url, None, **variables) as relay,
        pusher_client(relay) as alice,
        pusher_client(relay) as other,
        client(relay) as native,
    ):
        assert (await receive(native))["type"] == "connected"
        for each in (alice, other):
            await socket_id(each)
            for channel in ("private-C", "private-log"):
                assert (await join(each, channel))["event"] == "pusher_internal:subscription_succeeded"
        await tell(alice, "client-note", {"x": 1}, channel="private-C")
        assert await receive(native) == {"type": "broadcast", "event": "C#client-note", "data": {"x": 1}}
        found = [await message_of(other), await message_of(other)]
        assert {each["channel"]: (each["event"], each["data"]) for each in found} == {
            "private-C": ("client-note", {"x": 1}),
            "private-log": ("C#client-note", {"x": 1}),
        }
        await native.send('{"type":"broadcast","event":"C#client-note","data":2}')
        found = [await message_of(alice), await message_of(alice)]
        assert {each["channel"]: each["data"] for each in found} == {"private-C": 2, "private-log": 2}
        for _ in range(20):
            await tell(alice, "client-note", {}, channel="private-C")
        error = await message_of(alice)
        assert (error["event"], error["data"]["code"]) == ("pusher:error", 4301)
        # One of the database arrives as an event.
        async with asyncio.timeout(PATIENCE_S):
            while True:
                await connection.execute("select userrealtime.broadcast($1, 'C#progress', '7')", USER)
                message = await message_of(other)
                if message["event"] == "progress":
                    break
        assert message == {"event": "progress", "channel": "private-C", "data": 7}
        assert await connection.fetchval("select count(*) from userrealtime.inbox") == 0


async def test_a_signature_is_bound_to_its_connection_channel_and_key(
    migrated: Database, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await connection.execute("insert into userrealtime.log (user_id) values ($1)", USER)
    async with running(migrated.url, PROTOCOLS="pusher") as relay:
        async with pusher_client(relay) as bob:
            other = await socket_id(bob)
        async with pusher_client(relay) as alice:
            own = await socket_id(alice)
            assert other != own
            for bad in (
                signature(f"{other}:private-C"),
                signature(f"{own}:private-D"),
                signature(f"{own}:private-C", "other" * 10),
                signature(f"{own}:private-C").upper(),
                signature(f"{own}:private-C")[:-1],
            ):
                assert (await join(alice, "private-C", bad))["data"]["status"] == 401
            assert (await join(alice, "private-C", signature(f"{own}:private-C")))["event"].endswith("succeeded")
            await connection.execute("select userrealtime.publish($1, 'C#a', '1')", USER)
            assert (await message_of(alice))["event"] == "a"
            user = json.dumps({"id": USER})
            await tell(alice, "pusher:signin", {"auth": signature(f"{own}::user::{user}"), "user_data": user})
            assert (await message_of(alice))["event"] == "pusher:signin_success"
        monkeypatch.setattr("userrealtime_relay.protocols.socket.SIGNATURE_LIFETIME_S", 1)
        async with pusher_client(relay) as alice:
            own = await socket_id(alice)
            await join(alice, "private-C", signature(f"{own}:private-C"))
            assert await messages_until_close(alice) == ([], 4200)


async def test_without_users_keys_no_signature_is_accepted() -> None:
    settings = {"JWKS_URL": "http://127.0.0.1:1/keys", "TOKEN_AUDIENCE": "urt", "ALLOW_USER_KEYS": "false"}
    async with Relay(config(NO_DATABASE, PROTOCOLS="pusher", **settings)) as relay, pusher_client(relay) as alice:
        own = await socket_id(alice)
        assert (await join(alice, "private-C", signature(f"{own}:private-C")))["data"]["status"] == 401


async def test_a_connection_has_limits(migrated: Database, connection: asyncpg.Connection) -> None:
    await connection.execute("insert into userrealtime.log (user_id) values ($1)", USER)
    async with running(migrated.url, PROTOCOLS="pusher", MAX_CONNECTIONS="1") as relay, pusher_client(relay) as alice:
        await socket_id(alice)
        answers = [await join(alice, f"private-c{number}") for number in range(MAX_CHANNELS + 1)]
        assert [each["event"].endswith("succeeded") for each in answers] == [True] * MAX_CHANNELS + [False]
        assert answers[-1]["data"]["type"] == "LimitReached"
        async with pusher_client(relay) as second:
            await socket_id(second)
            await tell(second, "pusher:subscribe", {"channel": "private-log", "auth": f"urt:{token()}"})
            assert await messages_until_close(second) == ([], 4100)
        for _ in range(MAX_ERRORS):
            await tell(alice, "pusher:fly", {})
        messages, code = await messages_until_close(alice)
        assert {message["event"] for message in messages} == {"pusher:error"}
        assert code == 4009
    async with (
        running(migrated.url, PROTOCOLS="pusher", MAX_MESSAGES_PER_SECOND="2") as relay,
        pusher_client(relay) as alice,
    ):
        for _ in range(50):
            await tell(alice, "pusher:ping", {})
        assert (await messages_until_close(alice))[1] == 4100


async def test_a_token_that_expires_and_a_drain(migrated: Database, connection: asyncpg.Connection) -> None:
    await connection.execute("insert into userrealtime.log (user_id) values ($1)", USER)
    async with running(migrated.url, PROTOCOLS="pusher", TOKEN_LEEWAY="0") as relay:
        async with pusher_client(relay) as alice:
            await socket_id(alice)
            await join(alice, auth=f"urt:{token(life_s=2)}")
            assert await messages_until_close(alice) == ([], 4200)
        async with pusher_client(relay) as alice:
            await socket_id(alice)
            await join(alice)
            draining = asyncio.create_task(relay.drain())
            assert await messages_until_close(alice) == ([], 4100)
            await draining
            # A client that is connected to another pod is authorized all the same.
            assert (await authorize(relay, channel_name="private-log")).status == HTTPStatus.OK


async def test_the_endpoints_of_the_authorization() -> None:
    # There is no database: an authorization causes no query.
    async with Relay(config(NO_DATABASE, PROTOCOLS="pusher")) as relay:
        bearer = token()
        answer = await authorize(relay, bearer=bearer, channel_name="private-log", socket_id="1.2")
        assert (answer.status, answer.json) == (HTTPStatus.OK, {"auth": f"urt:{bearer}"})
        assert answer.headers["cache-control"] == "no-store"
        answer = await authorize(relay, bearer=bearer, channel_name="private-C", last_event_id="42:e")
        assert answer.json == {"auth": f"urt:{bearer};42:e"}
        answer = await authorize(relay, bearer=bearer, channel_name="private-C", last_event_id="", envelope="1")
        assert answer.json == {"auth": f"urt:{bearer};;envelope"}
        answer = await authorize(relay, bearer=bearer, channel_name="presence-log", last_event_id="")
        assert answer.json["auth"] == f"urt:{bearer};"
        assert json.loads(answer.json["channel_data"]) == {"user_id": USER, "user_info": {}}
        answer = await authorize(relay, "/pusher/user-auth", bearer, socket_id="1.2")
        assert answer.json["auth"] == f"urt:{bearer}"
        assert json.loads(answer.json["user_data"]) == {"id": USER}
        for fields in (
            {},
            {"channel_name": "private-a#b"},
            {"channel_name": "private-encrypted-x"},
            {"channel_name": "private-log", "last_event_id": "x"},
            {str(number): "" for number in range(40)},
        ):
            assert (await authorize(relay, **fields)).status == HTTPStatus.BAD_REQUEST
        answer = await request(relay, "/pusher/auth", method="POST", body=b"\xff")
        assert answer.status == HTTPStatus.BAD_REQUEST
        assert (await request(relay, "/pusher/auth")).status == HTTPStatus.METHOD_NOT_ALLOWED
        too_long = await authorize(relay, channel_name="x" * MAX_FORM_BYTES)
        assert too_long.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE


async def test_pages_of_other_origins_get_an_authorization() -> None:
    origin = "https://app.example.com"
    async with Relay(config(NO_DATABASE, PROTOCOLS="pusher", ALLOWED_ORIGINS=origin)) as relay:
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        preflight = await request(relay, "/pusher/auth", None, method="OPTIONS", headers={"Origin": origin, **asked})
        assert preflight.status == HTTPStatus.OK
        assert preflight.headers["access-control-allow-origin"] == origin
        headers = {"Origin": origin, "Content-Type": "application/x-www-form-urlencoded"}
        answer = await request(relay, "/pusher/auth", method="POST", body=b"channel_name=private-log", headers=headers)
        assert answer.status == HTTPStatus.OK
        assert answer.headers["access-control-allow-origin"] == origin


@pytest.mark.parametrize("path", ["/pusher/auth", "/pusher/user-auth"])
async def test_an_authorization_needs_a_token(path: str) -> None:
    async with Relay(config(NO_DATABASE, PROTOCOLS="pusher")) as relay:
        for bearer in (None, "nonsense", token(sub="bob"), token(life_s=-60)):
            answer = await authorize(relay, path, bearer, channel_name="private-log")
            assert answer.status == HTTPStatus.UNAUTHORIZED
            assert "error" in answer.json
