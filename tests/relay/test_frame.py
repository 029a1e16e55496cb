from __future__ import annotations

import json

import pytest
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

from userrealtime_core.wire.frames import encode_text, payloads
from userrealtime_relay.wire.frames import encode_events


def decode(data: bytes) -> str:
    """Return what a client reads, decoded by an independent implementation."""
    reader = StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    parser = Frame.parse(reader.read_exact, mask=False)
    try:
        next(parser)
    except StopIteration as parsed:
        frame: Frame = parsed.value
    assert frame.opcode is Opcode.TEXT
    assert frame.fin
    next(reader.at_eof(), None)
    assert len(reader.buffer) == 0
    return bytes(frame.data).decode()


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 200_000])
def test_a_frame_of_any_size_is_read_back(size: int) -> None:
    assert decode(encode_text("x" * size)) == "x" * size


def test_sizes_are_of_bytes_not_of_characters() -> None:
    assert decode(encode_text("é" * 100)) == "é" * 100


def test_an_event_is_spliced_from_the_text_of_its_data() -> None:
    [frame] = encode_events([("epoch", 42, "order.paid", "2026-01-02 03:04:05.000678+00", '{"total":  1e400}')])
    assert decode(frame) == (
        '{"type":"event","id":42,"event":"order.paid","at":"2026-01-02T03:04:05.000678Z","data":{"total":  1e400}}'
    )


def test_a_name_may_be_anything() -> None:
    name = 'a "quoted" \\ näme 🎉'
    [frame] = encode_events([("epoch", 1, name, "2026-01-02 03:04:05.000678+00", "[]")])
    assert json.loads(decode(frame))["event"] == name


def test_many_events_keep_their_order() -> None:
    rows = [("epoch", number, "x", "2026-01-02 03:04:05.5+00", f'"{"é" * number}"') for number in range(1, 200)]
    told = [json.loads(decode(frame)) for frame in encode_events(rows)]
    assert [(event["id"], event["data"]) for event in told] == [(n, "é" * n) for n in range(1, 200)]
    assert {event["at"] for event in told} == {"2026-01-02T03:04:05.500000Z"}


def test_the_texts_of_joined_frames() -> None:
    texts = ["", "x", "y" * 125, "é" * 63, "z" * 65_535, "u" * 65_536]
    joined = b"".join(encode_text(text) for text in texts)
    assert [bytes(payload).decode() for payload in payloads(joined)] == texts
    assert list(payloads(b"")) == []
