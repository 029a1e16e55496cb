"""The messages of Phoenix channels, in both versions of their serializer."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from userrealtime_core.protocols.phoenix import (
    BROADCAST_PUSH,
    JSON,
    LONGEST_REF,
    LONGEST_TOPIC,
    RAW,
    VERSIONS,
    BadMessage,
    Push,
    Serializer,
)

OLD, NEW = map(Serializer, VERSIONS)

texts: Final = st.text(st.characters(codec="utf-8"), max_size=20)
refs: Final = st.none() | st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
values: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
)
objects: Final = st.dictionaries(texts, values, max_size=4)


def binary(
    join_ref: str | None,
    ref: str | None,
    topic: str,
    event: str,
    payload: bytes,
    metadata: str = "",
    encoding: int = JSON,
) -> bytes:
    """Return a broadcast as realtime-js encodes it."""
    parts = [part.encode() for part in (join_ref or "", ref or "", topic, event, metadata)]
    return bytes((BROADCAST_PUSH, *map(len, parts), encoding)) + b"".join(parts) + payload


@given(refs, refs, texts, texts, objects)
def test_a_message_is_read_as_it_was_written(
    join_ref: str | None, ref: str | None, topic: str, event: str, payload: dict[str, Any]
) -> None:
    push = Push(join_ref, ref, topic, event, payload)
    assert NEW.parse(json.dumps([join_ref, ref, topic, event, payload])) == push
    fields = {"topic": topic, "event": event, "payload": payload, "ref": ref, "join_ref": join_ref}
    assert OLD.parse(json.dumps(fields)) == push


@given(refs, refs, texts, texts, values, st.sampled_from(["", '{"persist":true}']))
def test_a_binary_broadcast_is_read_as_it_was_written(
    join_ref: str | None, ref: str | None, topic: str, event: str, payload: Any, metadata: str
) -> None:
    fields = {"type": "broadcast", "event": event, "payload": payload}
    message = binary(join_ref, ref, topic, event, json.dumps(payload).encode(), metadata)
    assert NEW.parse(message) == Push(join_ref, ref, topic, "broadcast", fields)


@given(st.binary(max_size=20))
def test_a_payload_that_is_not_json_stays_as_it_is(payload: bytes) -> None:
    push = NEW.parse(binary("1", "2", "realtime:log", "é", payload, encoding=RAW))
    assert push.payload == {"type": "broadcast", "event": "é", "payload": payload}


@given(refs, refs, texts, texts, objects)
def test_a_message_of_the_server_is_read_by_the_client(
    join_ref: str | None, ref: str | None, topic: str, event: str, payload: dict[str, Any]
) -> None:
    text = NEW.encode(topic, event, payload, ref=ref, join_ref=join_ref)
    assert json.loads(text) == [join_ref, ref, topic, event, payload]
    text = OLD.encode(topic, event, payload, ref=ref, join_ref=join_ref)
    fields = {"topic": topic, "event": event, "payload": payload, "ref": ref, "join_ref": join_ref}
    assert json.loads(text) == fields
    front, back = NEW.around(topic, event, join_ref=join_ref)
    assert json.loads(f'{front}{{"x":1}}{back}') == [join_ref, None, topic, event, {"x": 1}]


# Messages that are nearly valid, and arbitrary ones.
heads: Final = st.binary(max_size=40).map(lambda rest: bytes((BROADCAST_PUSH,)) + rest)
fields: Final = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("topic", "event", "payload", "ref", "join_ref", "other"), values)
)
messages: Final = st.one_of(
    st.text(), st.binary(), heads, st.lists(values, max_size=6).map(json.dumps), fields.map(json.dumps)
)


@given(messages)
def test_no_message_raises_another_error(message: str | bytes) -> None:
    for serializer in (OLD, NEW):
        try:
            push = serializer.parse(message)
        except BadMessage:
            continue
        assert isinstance(push.payload, dict)
        assert isinstance(push.topic, str)
        assert isinstance(push.event, str)
        for ref in (push.ref, push.join_ref):
            assert ref is None or isinstance(ref, str)


@pytest.mark.parametrize(
    "message",
    [
        "",
        "x",
        "{}",
        "[]",
        "[" * 100_000,
        "[1,2,3,4,5]",
        '[null,"1","realtime:log","heartbeat",null]',
        '[null,"1","realtime:log","heartbeat",{},{}]',
        '[null,"1","realtime:log","heartbeat"]',
        '[null,1,"realtime:log","heartbeat",{}]',
        f'[null,"{"1" * (LONGEST_REF + 1)}","realtime:log","heartbeat",{{}}]',
        f'[null,"1","{"t" * (LONGEST_TOPIC + 1)}","heartbeat",{{}}]',
        '{"topic":"realtime:log","event":"heartbeat","payload":{},"ref":"1"}',
        b"",
        b"\x03\x00\x00\x00\x00\x00",
        b"\x00" * 7,
        binary("1", "2", "t", "e", b"{}", encoding=2),
        binary("1", "2", "t", "e", b"{"),
        binary("1", "2", "t", "e", b""),
        binary("1", "2", "t", "e", b"\xff"),
        binary("1", "2", "t", "e", b"[" * 100_000),
        binary("1", "2", "t", "e", b"")[:-1],
        binary("1", "2", "t", "e", b"{}").replace(b"te{}", b"\xff\xff{}"),
    ],
)
def test_an_invalid_message_is_rejected(message: str | bytes) -> None:
    with pytest.raises(BadMessage):
        NEW.parse(message)


def test_the_first_version_has_no_binary_messages_and_no_lists() -> None:
    for message in (binary("1", "2", "t", "e", b"{}"), '[null,"1","t","e",{}]', '{"topic":"t","event":"e"}'):
        with pytest.raises(BadMessage):
            OLD.parse(message)
