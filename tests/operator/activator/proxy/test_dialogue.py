"""What the activator says in other systems' protocols, and what it leaves out of the pod's messages. Without I/O."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from websockets.frames import Close as CloseData
from websockets.frames import Frame, Opcode

from userrealtime_core.protocols.dialect import Authenticate, Close, Opening
from userrealtime_core.relay_settings import PROTOCOLS
from userrealtime_core.wire.connect_request import ConnectRequest, Resume
from userrealtime_core.wire.frames import encode_text, payloads
from userrealtime_core.wire.session import MAX_ERRORS, UNAUTHORIZED
from userrealtime_operator.activator.proxy.dialogue import LONGEST_GREETING, Dialogue, Preamble, dialect_of
from userrealtime_operator.activator.proxy.responses import Rejected, evicted, restarting, unauthorized

PING = '{"event": "pusher:ping", "data": {}}'


def opening(query: dict[str, str] | None = None, offered: Sequence[str] = (), token: str | None = None) -> Opening:
    return Opening(
        path="/",
        query=query or {},
        headers={},
        offered=offered,
        request=ConnectRequest(token, Resume()),
        query_token=False,
        identity="0" * 24,
        user_id="alice",
    )


def begun(protocol: str = "pusher", given: Opening | None = None, greeting: str = "") -> Dialogue:
    dialogue = Dialogue(given or opening(), dialect_of(protocol), greeting)
    dialogue.begin(0)
    return dialogue


def texts(dialogue: Dialogue) -> list[Any]:
    return [json.loads(bytes(text)) for text in payloads(dialogue.take())]


def subscribe(token: str, channel: str = "private-log") -> str:
    return json.dumps({"event": "pusher:subscribe", "data": {"channel": channel, "auth": f"urt:{token}"}})


def ended(frames: bytes) -> tuple[list[Any], tuple[int, str]]:
    """Return the texts in the last frames of a connection, and its close."""
    for start in range(len(frames)):
        if frames[start] == 0x88 and start + 2 + frames[start + 1] == len(frames):
            close = CloseData.parse(frames[start + 2 :])
            return [json.loads(bytes(text)) for text in payloads(frames[:start])], (int(close.code), close.reason)
    raise AssertionError("no close frame")


def test_the_dialects_of_all_protocols_with_websockets() -> None:
    names = [name for name in PROTOCOLS if name != "durable-streams"]
    assert [dialect_of(name).name for name in names] == names


def test_a_credential_ends_the_dialogue() -> None:
    dialogue = begun()
    [established] = texts(dialogue)
    assert established["event"] == "pusher:connection_established"
    dialogue.receive(PING)
    assert [text["event"] for text in texts(dialogue)] == ["pusher:pong"]
    assert dialogue.question is None
    dialogue.receive(subscribe("abc"))
    assert dialogue.question == Authenticate("abc", "private-log")
    assert dialogue.take() == b""


def test_a_client_whose_credential_is_not_accepted_may_send_another_one() -> None:
    dialogue = begun()
    dialogue.receive(subscribe("wrong"))
    dialogue.take()
    dialogue.reject(UNAUTHORIZED)
    assert dialogue.question is None
    assert [text["event"] for text in texts(dialogue)] == ["pusher:subscription_error"]
    dialogue.receive(subscribe("abc"))
    assert dialogue.question == Authenticate("abc", "private-log")


def test_a_credential_of_the_handshake_that_is_not_accepted_ends_the_connection() -> None:
    dialogue = begun("actioncable", opening(token="expired"))
    assert dialogue.question == Authenticate("expired")
    dialogue.reject(UNAUTHORIZED, expired=True)
    assert dialogue.closing == Close(1008, "token_expired")
    said, close = ended(dialogue.end(unauthorized()))
    assert [(text["type"], text["reason"]) for text in said] == [("disconnect", "token_expired")]
    assert close == (1008, "token_expired")


def test_so_many_mistakes_end_the_connection() -> None:
    dialogue = begun()
    for _ in range(MAX_ERRORS):
        assert dialogue.closing is None
        dialogue.receive("nonsense")
    assert dialogue.closing == Close(4009, "Too many errors")


@pytest.mark.parametrize(
    ("protocol", "rejected", "close"),
    [
        ("pusher", unauthorized(), (4009, "Unauthorized")),
        ("pusher", restarting(), (4100, "Restarting")),
        ("pusher", evicted(), (4100, "Too many unauthenticated connections")),
        ("supabase", restarting(), (1012, "Restarting")),
        ("socketio", unauthorized(), (1008, "Unauthorized")),
    ],
)
def test_the_codes_of_the_end_are_those_of_the_protocol(
    protocol: str, rejected: Rejected, close: tuple[int, str]
) -> None:
    dialogue = begun(protocol)
    dialogue.take()
    assert ended(dialogue.end(rejected)) == ([], close)


def test_heartbeats() -> None:
    dialogue = begun("actioncable", opening(token="abc"))
    assert dialogue.beat_s == 3
    assert [json.loads(bytes(text)) for text in payloads(dialogue.beat(17.5))] == [{"type": "ping", "message": 17}]
    assert begun().beat_s is None


def test_what_was_said_is_left_out() -> None:
    dialogue = begun()
    dialogue.receive(PING)
    said = dialogue.take()
    events = encode_text('{"event":"order.paid"}') + encode_text('{"event":"pusher:pong","data":"{}"}')
    ping = Frame(Opcode.PING, b"1").serialize(mask=False)
    sent = said + ping + events
    for size in (1, 3, 50, len(sent)):
        preamble = dialogue.preamble()
        pieces = [preamble.feed(sent[start : start + size]) for start in range(0, len(sent), size)]
        assert b"".join(pieces) == ping + events


def test_a_first_message_is_left_out_whatever_it_is() -> None:
    dialogue = begun("socketio", greeting='0{"sid":"a"}')
    preamble = dialogue.preamble()
    assert preamble.feed(encode_text('0{"sid":"b"}') + encode_text("40")) == encode_text("40")
    long = encode_text("0" * LONGEST_GREETING)
    assert dialogue.preamble().feed(long) == long


def test_another_message_than_the_expected_one_is_forwarded_with_all_that_follow() -> None:
    said = [b"one", b"two"]
    for other in ("tw", "TWO", "three", "x" * 200, "y" * 70_000):
        preamble = Preamble(said, greeted=False)
        assert preamble.feed(encode_text("one")) == b""
        frames = encode_text(other)
        assert preamble.feed(frames[:1]) + preamble.feed(frames[1:]) == frames
        assert preamble.feed(encode_text("two")) == encode_text("two")


def test_the_end_of_a_pod_is_forwarded() -> None:
    close = Frame(Opcode.CLOSE, CloseData(1012, "Restarting").serialize()).serialize(mask=False)
    assert Preamble([b"one"], greeted=True).feed(close) == close
    assert Preamble([], greeted=False).feed(close) == close
