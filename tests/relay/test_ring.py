from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from userrealtime_relay.delivery.ring import Batch, Ring


def at(second: int) -> str:
    """Return the timestamp of a number of seconds after 1970, in the format of the log."""
    return datetime.fromtimestamp(second, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def filled(count: int, *, head: int = 0, size: int = 1, max_events: int = 10, max_bytes: int = 1000) -> Ring:
    """A ring after `count` events; each frame is the last digit of its number, `size` times."""
    ring = Ring(head, max_events=max_events, max_bytes=max_bytes)
    for number in range(head + 1, head + 1 + count):
        ring.extend(number, [str(number % 10).encode() * size], [at(number)])
    return ring


def test_a_new_ring_is_empty_and_knows_where_it_is() -> None:
    ring = filled(0, head=7)
    assert (ring.head, ring.first, len(ring), ring.size) == (7, 8, 0, 0)
    assert ring.read(7, 100) == Batch(b"", 7)
    assert ring.read(6, 100) is None


def test_a_client_reads_what_comes_after_its_cursor() -> None:
    ring = filled(5)
    assert ring.read(0, 100) == Batch(b"12345", 5)
    assert ring.read(3, 100) == Batch(b"45", 5)
    assert ring.read(5, 100) == Batch(b"", 5)


def test_a_batch_holds_whole_frames_up_to_its_size() -> None:
    ring = filled(5, size=2)
    assert ring.read(0, 5) == Batch(b"1122", 2)
    assert ring.read(0, 4) == Batch(b"1122", 2)
    assert ring.read(2, 100) == Batch(b"334455", 5)


def test_a_frame_bigger_than_a_batch_is_a_batch() -> None:
    assert filled(2, size=9).read(0, 1) == Batch(b"1" * 9, 1)


def test_a_cursor_ahead_of_the_ring_has_nothing_to_read_yet() -> None:
    ring = filled(2)
    assert ring.read(3, 100) == Batch(b"", 3)
    ring.extend(3, [b"3"], [at(3)])
    ring.extend(4, [b"4"], [at(4)])
    assert ring.read(3, 100) == Batch(b"4", 4)


def test_the_oldest_go_when_there_are_too_many() -> None:
    ring = filled(25)
    assert (ring.first, ring.head, len(ring), ring.size) == (16, 25, 10, 10)
    assert ring.read(15, 100) == Batch(b"6789012345", 25)
    assert ring.read(14, 100) is None
    assert ring.time(16) == 16.0


def test_the_oldest_go_when_they_are_too_big() -> None:
    ring = filled(8, size=300)
    assert (ring.first, ring.head, ring.size) == (6, 8, 900)


def test_an_event_bigger_than_the_ring_is_kept_until_the_next() -> None:
    ring = filled(2)
    ring.extend(3, [b"x" * 5000], [at(3)])
    assert (ring.first, ring.head, ring.size) == (3, 3, 5000)
    assert ring.read(2, 10) == Batch(b"x" * 5000, 3)
    ring.extend(4, [b"4"], [at(4)])
    assert (ring.first, ring.head, ring.size) == (4, 4, 1)


@pytest.mark.parametrize("number", [0, 3, 5])
def test_only_the_next_event_is_taken(number: int) -> None:
    ring = filled(3)
    with pytest.raises(ValueError, match=f"event {number} cannot follow event 3"):
        ring.extend(number, [b""], [at(0)])
    assert ring.read(0, 100) == Batch(b"123", 3)


def test_skipping_empties_the_ring() -> None:
    ring = filled(5)
    ring.skip_to(20)
    assert (ring.first, ring.head, len(ring), ring.size) == (21, 20, 0, 0)
    assert not ring.holds_after(5)
    ring.extend(21, [b"1"], [at(21)])
    assert ring.read(20, 100) == Batch(b"1", 21)


def test_no_more_is_let_go_of_than_must_be() -> None:
    ring = filled(3, size=10, max_bytes=40)
    ring.extend(4, [b"4" * 10, b"5" * 10], [at(4), at(5)])
    assert (ring.first, ring.size) == (2, 40)


def test_those_at_one_place_share_one_batch() -> None:
    ring = filled(5)
    batch = ring.read(1, 3)
    assert ring.read(1, 3) is batch
    ring.extend(6, [b"6"], [at(6)])
    assert ring.read(1, 100) == Batch(b"23456", 6)
    ring.skip_to(8)
    assert ring.read(1, 100) is None


@given(
    head=st.integers(0, 50),
    sizes=st.lists(st.integers(1, 30), max_size=60),
    max_events=st.integers(1, 12),
    max_bytes=st.integers(1, 100),
    chunk=st.integers(1, 60),
    page=st.integers(1, 30),
)
def test_whoever_reads_gets_each_frame_once_in_order_or_is_told(
    head: int, sizes: list[int], max_events: int, max_bytes: int, chunk: int, page: int
) -> None:
    ring = Ring(head, max_events=max_events, max_bytes=max_bytes)
    log = {head + place: bytes([place % 256]) * size for place, size in enumerate(sizes, 1)}
    for first in range(head + 1, head + len(sizes) + 1, page):
        numbers = [number for number in range(first, first + page) if number in log]
        ring.extend(first, [log[number] for number in numbers], [at(number) for number in numbers])
        assert len(ring) <= max_events
        assert ring.size == sum(len(log[kept]) for kept in range(ring.first, ring.head + 1))
        assert ring.size <= max_bytes or len(ring) == 1
        assert [ring.time(kept) for kept in range(ring.first, ring.head + 1)] == [*range(ring.first, ring.head + 1)]
    for start in range(head, head + len(sizes) + 1):
        cursor, got = start, b""
        while (batch := ring.read(cursor, chunk)) is not None and batch.cursor != cursor:
            assert len(batch.frames) <= chunk or batch.cursor == cursor + 1
            got, cursor = got + batch.frames, batch.cursor
        assert (batch is None) == (start < ring.first - 1)
        if batch is not None:
            assert got == b"".join(log[number] for number in range(start + 1, ring.head + 1))
