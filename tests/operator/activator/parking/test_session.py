"""The protocol with one parked WebSocket, without a socket or a clock."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from userrealtime_core.auth.errors import KeySetStale, Unauthorized
from userrealtime_core.wire.connect_request import ConnectRequest, Resume
from userrealtime_core.wire.frames import encode_text
from userrealtime_core.wire.position import LogState
from userrealtime_operator.activator.parking.session import MAX_MESSAGE_BYTES, PING, ParkedSession

STATE = LogState(7, 3, "e")
MISSING: set[str] = set()
"""The tokens whose keys must be fetched first."""


def verify(token: str) -> float:
    if token in MISSING:
        raise KeySetStale
    try:
        return float(token)
    except ValueError:
        raise Unauthorized("no number") from None


def session(token: str | None = "100") -> ParkedSession:  # noqa: S107
    return ParkedSession(
        ConnectRequest(token, Resume(7, "e")),
        STATE,
        user_id="alice",
        verify=verify,
        auth_timeout=10,
        now=0,
        messages_per_second=50,
    )


def frame(opcode: Opcode, data: bytes, *, fin: bool = True) -> bytes:
    return Frame(opcode, data, fin).serialize(mask=True)


def text(**fields: Any) -> bytes:
    return frame(Opcode.TEXT, json.dumps(fields).encode())


def sent(parked: ParkedSession) -> list[dict[str, Any]]:
    """Return the messages that the session sends now."""
    data = parked.take()
    found = []
    while data:
        assert data[0] == 0x81
        size, begin = (data[1], 2) if data[1] < 126 else (int.from_bytes(data[2:4]), 4)
        found.append(json.loads(data[begin : begin + size]))
        data = data[begin + size :]
    return found


def greeted() -> ParkedSession:
    parked = session()
    [connected] = sent(parked)
    assert connected == {"type": "connected", "userId": "alice", "cursor": 7, "epoch": "e", "earliest": 3}
    return parked


def test_a_token_in_the_first_message() -> None:
    parked = session(None)
    assert parked.take() == b""
    parked.receive(text(type="auth", token="60") + text(type="ping"), 0)
    assert [message["type"] for message in sent(parked)] == ["connected", "pong"]
    assert (parked.token, parked.deadline, parked.rest) == ("60", 60, b"")


def test_without_a_token_in_time_it_is_closed() -> None:
    parked = session(None)
    parked.tick(10)
    assert parked.closing == (1008, "Unauthorized")


def test_what_needs_no_pod_is_answered() -> None:
    parked = greeted()
    parked.receive(text(type="ping") + text(type="resume", lastEventId=7, epoch="e") + frame(Opcode.PONG, b""), 1)
    assert sent(parked) == [{"type": "pong"}]
    parked.receive(frame(Opcode.PING, b"hi"), 1)
    assert parked.take() == b"\x8a\x02hi"
    parked.receive(text(type="auth", token="50"), 1)
    assert sent(parked) == [{"type": "renewed", "expiresIn": 50}]
    assert (parked.token, parked.deadline, parked.needs_pod) == ("50", 51, False)


NEEDS_POD = {
    "publish": text(type="publish", ref="1", event="x"),
    "broadcast": text(type="broadcast", event="x"),
    "another position": text(type="resume", lastEventId=6, epoch="e"),
    "a position without an epoch": text(type="resume", lastEventId=7),
    "another epoch": text(type="resume", lastEventId=7, epoch="f"),
    "an unknown type": text(type="x"),
    "no JSON": frame(Opcode.TEXT, b"{"),
    "deep JSON": frame(Opcode.TEXT, b"[" * 10_000),
    "no object": frame(Opcode.TEXT, b"[]"),
    "no UTF-8": frame(Opcode.TEXT, b"\xff"),
    "binary": frame(Opcode.BINARY, b"{}"),
    "a fragment": frame(Opcode.TEXT, b"{}", fin=False),
    "a continuation": frame(Opcode.CONT, b"{}"),
    "too long": frame(Opcode.TEXT, b" " * (MAX_MESSAGE_BYTES + 1))[:10],
    "very long": b"\x81\xff" + (1 << 40).to_bytes(8),
    "unmasked": encode_text('{"type":"ping"}'),
    "reserved bits": b"\xc1\x80\x00\x00\x00\x00",
    "an unknown opcode": b"\x83\x80\x00\x00\x00\x00",
    "a long control frame": b"\x89\xfe\x00\x7e",
    "a fragmented control frame": b"\x09\x80\x00\x00\x00\x00",
}


@pytest.mark.parametrize("data", NEEDS_POD.values(), ids=NEEDS_POD)
def test_the_pod_receives_the_rest_unchanged(data: bytes) -> None:
    parked = greeted()
    later = text(type="ping")
    parked.receive(text(type="ping") + data + later, 1)
    assert parked.needs_pod
    assert sent(parked) == [{"type": "pong"}]
    assert parked.rest == data + later
    parked.receive(b"more", 2)
    assert parked.rest == data + later + b"more"


@given(st.lists(st.sampled_from([1, 2, 3, 5, 8, 1000]), min_size=1))
def test_bytes_may_come_in_any_pieces(sizes: list[int]) -> None:
    parked = greeted()
    data = text(type="ping", filler="x" * 300) + text(type="auth", token="9") + text(type="publish", ref="r", event="x")
    at = 0
    for size in [*sizes, len(data)]:
        parked.receive(data[at : at + size], 1)
        at += size
    assert [message["type"] for message in sent(parked)] == ["pong", "renewed"]
    assert parked.needs_pod
    assert parked.rest == text_of(parked.rest)


def text_of(data: bytes) -> bytes:
    """Return the bytes, which must be those of one `publish` message."""
    size = data[1] & 0x7F
    mask = data[2:6]
    payload = bytes(byte ^ mask[place % 4] for place, byte in enumerate(data[6 : 6 + size]))
    assert json.loads(payload) == {"type": "publish", "ref": "r", "event": "x"}
    return data[: 6 + size]


def test_the_token_expires() -> None:
    parked = greeted()
    parked.tick(99)
    assert parked.closing is None
    parked.tick(100)
    assert parked.closing == (4001, "Token expired")
    parked.receive(text(type="publish", ref="1", event="x"), 101)
    assert not parked.needs_pod


def test_an_invalid_token_closes_the_connection() -> None:
    parked = greeted()
    parked.receive(text(type="auth", token="x"), 1)
    assert parked.closing == (1008, "Unauthorized")
    assert parked.token == "100"


def test_a_token_may_wait_for_keys() -> None:
    parked = greeted()
    MISSING.add("70")
    parked.receive(text(type="auth", token="70") + text(type="ping"), 1)
    assert parked.renewing
    assert parked.take() == b""
    MISSING.clear()
    parked.renew(2)
    assert [message["type"] for message in sent(parked)] == ["renewed", "pong"]
    assert (parked.token, parked.renewing) == ("70", False)


def test_keys_that_are_unavailable_change_nothing() -> None:
    parked = greeted()
    MISSING.add("70")
    try:
        parked.receive(text(type="auth", token="70"), 1)
        parked.renew(2)
        [error] = sent(parked)
        assert (error["type"], error["code"]) == ("error", "unavailable")
        assert (parked.token, parked.closing) == ("100", None)
    finally:
        MISSING.clear()


def test_a_client_must_answer_pings() -> None:
    parked = greeted()
    parked.ping()
    assert parked.take() == PING
    parked.receive(frame(Opcode.PONG, b""), 1)
    parked.ping()
    assert parked.closing is None
    parked.ping()
    assert parked.closing == (1011, "No answer to a ping")


def test_a_client_that_closes() -> None:
    parked = greeted()
    parked.receive(frame(Opcode.CLOSE, b"\x03\xe8bye") + text(type="ping"), 1)
    assert parked.ended
    assert parked.take() == b"\x88\x05\x03\xe8bye"


def test_too_many_messages() -> None:
    parked = greeted()
    parked.receive(text(type="ping") * 60, 1)
    assert parked.closing == (1013, "Too many messages")
