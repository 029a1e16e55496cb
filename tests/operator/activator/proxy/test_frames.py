"""The parser reports whether a stream is between two frames or within one, for any division of the bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Close, Frame, Opcode

from userrealtime_operator.activator.proxy.frames import FrameTracker

FRAMES = st.builds(
    lambda opcode, size, mask: Frame(opcode, b"x" * size).serialize(mask=mask),
    st.sampled_from([Opcode.TEXT, Opcode.BINARY, Opcode.CONT]),
    st.sampled_from([0, 1, 125, 126, 127, 300, 65_535, 65_536, 70_000]),
    st.booleans(),
)


@given(st.lists(FRAMES, max_size=5), st.lists(st.integers(min_value=1, max_value=70_010)))
def test_the_end_of_a_frame_is_known_however_the_bytes_come(frames: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(frames)
    ends = {0}
    for frame in frames:
        ends.add(max(ends) + len(frame))
    followed = FrameTracker()
    at = 0
    for cut in (*cuts, len(stream)):
        followed.feed(stream[at : at + cut])
        at = min(at + cut, len(stream))
        assert (followed.missing == 0) is (at in ends)
        assert not followed.closed


@pytest.mark.parametrize("size", [0, 5, 200, 70_000])
@pytest.mark.parametrize("given", [1, 2, 3, 5, 9])
def test_what_is_missing_never_reaches_into_the_next_frame(size: int, given: int) -> None:
    frame = Frame(Opcode.TEXT, b"x" * size).serialize(mask=False)
    stream = frame + b"\x81"
    followed = FrameTracker()
    followed.feed(stream[:given])
    at = given
    while 0 < at < len(frame):
        missing = followed.missing
        assert 0 < missing <= len(frame) - at
        followed.feed(stream[at : at + missing])
        at += missing
    assert at > len(frame) or followed.missing == 0


def test_a_close_is_noticed() -> None:
    followed = FrameTracker()
    followed.feed(Frame(Opcode.PING, b"?").serialize(mask=False))
    assert not followed.closed
    followed.feed(Frame(Opcode.CLOSE, Close(1000, "").serialize()).serialize(mask=False))
    assert followed.closed
