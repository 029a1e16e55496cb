"""Events are cut out of frames exactly, whatever their names and data contain."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from userrealtime_core.protocols.cutting import (
    LONGEST_CHANNEL,
    WHOLE_LOG,
    Event,
    cut,
    cut_broadcasts,
    cut_channel,
    is_channel,
    name_in_log,
)
from userrealtime_core.wire.broadcast import Content
from userrealtime_core.wire.frames import encode_text
from userrealtime_relay.wire.frames import encode_events

AT = "2026-01-02 03:04:05.678901+00"

# Names and data that contain what separates the parts.
fragments = st.sampled_from(
    [
        '","at":"',
        '","data":',
        ',"event":"',
        '{"type":"event","id":',
        '"',
        "\\",
        '\\"',
        "#",
        "log",
        "é",
        "\U0001f600",
        "}",
    ]
)
# What `userrealtime.publish` accepts: no control characters, and no half of a surrogate pair.
texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=20)
names = st.lists(st.one_of(fragments, texts), min_size=1, max_size=6).map("".join).filter(bool)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), names),
    lambda inner: st.lists(inner) | st.dictionaries(names, inner),
)
events = st.tuples(st.just("e"), st.integers(1, 2**63 - 1), names, st.just(AT), values.map(json.dumps))


@given(st.lists(events, max_size=5))
def test_the_whole_log_is_cut_as_a_parser_reads_it(rows: list[tuple[str, int, str, str, str]]) -> None:
    found = list(cut_channel(b"".join(encode_events(rows)), WHOLE_LOG))
    assert len(found) == len(rows)
    for event, (_, number, name, _, data) in zip(found, rows, strict=True):
        assert int(event.id) == number
        assert json.loads(b'"%b"' % event.name) == name
        assert event.at == b"2026-01-02T03:04:05.678901Z"
        assert event.data == data.encode()
        whole = json.loads(event.text)
        assert (whole["id"], whole["event"], whole["data"]) == (number, name, json.loads(data))


@given(st.lists(events, max_size=5), names.filter(is_channel))
def test_a_channel_has_the_events_of_its_name(rows: list[tuple[str, int, str, str, str]], channel: str) -> None:
    addressed = [
        (epoch, number, f"{channel}#{name}" if place % 2 else name, at, data)
        for place, (epoch, number, name, at, data) in enumerate(rows)
    ]
    wanted = [
        (number, name.removeprefix(f"{channel}#"))
        for _, number, name, _, _ in addressed
        if channel != WHOLE_LOG and name.startswith(f"{channel}#") and name != f"{channel}#"
    ]
    if channel == WHOLE_LOG:
        wanted = [(number, name) for _, number, name, _, _ in addressed]
    found = list(cut_channel(b"".join(encode_events(addressed)), channel))
    assert [(int(event.id), json.loads(b'"%b"' % event.name)) for event in found] == wanted


@given(st.lists(st.tuples(names, values), max_size=5), st.one_of(st.just(WHOLE_LOG), names.filter(is_channel)))
def test_a_channel_has_the_broadcasts_of_its_name(sent: list[tuple[str, object]], channel: str) -> None:
    addressed = [(name_in_log(channel, name) if place % 2 else name, data) for place, (name, data) in enumerate(sent)]
    contents = [Content(json.dumps(name, ensure_ascii=False), json.dumps(data)) for name, data in addressed]
    frames = b"".join(encode_text(content.message) for content in contents)
    front = "" if channel == WHOLE_LOG else f"{channel}#"
    wanted = [
        {"type": "broadcast", "event": name.removeprefix(front), "data": data}
        for name, data in addressed
        if name.startswith(front) and name != front
    ]
    found = [json.loads(broadcast.text) for broadcast in cut_broadcasts(frames, channel)]
    assert found == wanted


@pytest.mark.parametrize(
    "text",
    [
        '{"event":"a","type":"broadcast","data":1}',
        '{"type": "broadcast", "event": "a", "data": 1}',
        '{"type":"broadcast","event":"","data":1}',
        '{"type":"broadcast","event":"a"}',
        "",
    ],
)
def test_a_broadcast_with_another_text_is_left_out(text: str) -> None:
    valid = '{"type":"broadcast","event":"a","data":[1]}'
    frames = b"".join(map(encode_text, (valid, text, valid)))
    assert [(each.name, each.data) for each in cut_broadcasts(frames, WHOLE_LOG)] == [(b"a", b"[1]")] * 2


def test_the_order_of_the_members_is_a_contract() -> None:
    [frame] = encode_events([("e", 42, "order.paid", AT, '{"total": 1}')])
    text = frame[2:]
    assert cut(text) == Event(b"42", b"order.paid", b"2026-01-02T03:04:05.678901Z", b'{"total": 1}', text)


def test_a_time_of_unusual_length_is_cut_too() -> None:
    [frame] = encode_events([("e", 1, "a", "12026-01-02 03:04:05+00", "1")])
    [event] = cut_channel(frame, WHOLE_LOG)
    assert (event.at, event.data) == (b"12026-01-02T03:04:05.000000Z", b"1")


def test_a_name_is_split_at_its_first_separator() -> None:
    rows = [("e", number, name, AT, "0") for number, name in enumerate(("a#b#c", "a#", "#a", "ab#c", "a"), start=1)]
    assert [event.name for event in cut_channel(b"".join(encode_events(rows)), "a")] == [b"b#c"]


@pytest.mark.parametrize("text", ['{"type":"ack","id":1,"event":"a","at":"b","data":1}', '{"type":"event"}', "", "x"])
def test_what_is_no_event_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="not"):
        list(cut_channel(encode_text(text), WHOLE_LOG))


def test_names_of_channels() -> None:
    assert all(map(is_channel, ("log", "App.Models.User.1", "é x", "x" * LONGEST_CHANNEL)))
    assert not any(map(is_channel, ("", "a#b", "a\nb", "\ud800", "x" * (LONGEST_CHANNEL + 1))))
