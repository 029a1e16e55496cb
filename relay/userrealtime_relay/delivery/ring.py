"""The newest events of the log, each as the bytes of its frame, in one bounded ring that every client reads from.

Numbers have no gaps, so an event's slot is its number modulo the size of the ring, and a client is nothing but the
number it has got to: its *cursor*. There is no queue per client. A client whose cursor is older than the ring has
fallen out, and reads the log instead until it is back.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from datetime import datetime
from itertools import accumulate
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Batch(NamedTuple):
    """What a client gets next: whole frames, joined; `cursor` is the number of the last."""

    frames: bytes
    cursor: int


class Ring:
    """Holds at most `max_events` events and `max_bytes` of frames, but always the newest event, however big.

    Nothing here takes a step for each event: pages come and batches go as slices.
    """

    def __init__(self, head: int, *, max_events: int, max_bytes: int) -> None:
        self.head = head
        """The number of the newest event; the ring may have let go of it, or never have had it."""
        self.first = head + 1
        """The oldest number held; `head + 1` when nothing is."""
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._frames: list[bytes] = [b""] * max_events
        self._times = [""] * max_events
        self._ends = [0] * max_events  # bytes of all frames up to this one, since the ring began
        self._begin = 0  # the same up to the one before `first`
        self._end = 0
        self._shared: tuple[int, int, Batch] | None = None  # the last result: most clients have the same cursor

    def __len__(self) -> int:
        return self.head + 1 - self.first

    @property
    def size(self) -> int:
        """Bytes of the frames held."""
        return self._end - self._begin

    def extend(self, number: int, frames: Sequence[bytes], times: Sequence[str]) -> None:
        """Append the next events, of which the first one is `number`. `times` are their times (ISO 8601).

        Raises:
            ValueError: `number` is not the one after `head`.
        """
        if number != self.head + 1:
            raise ValueError(f"event {number} cannot follow event {self.head}")
        if len(frames) > self._max_events:
            self.skip_to(self.head + len(frames) - self._max_events)
            number, frames, times = self.head + 1, frames[-self._max_events :], times[-self._max_events :]
        self._shared = None
        self._drop_before(max(self.first, number + len(frames) - self._max_events))
        ends = list(accumulate(map(len, frames), initial=self._end))
        self._put(self._frames, number, frames)
        self._put(self._times, number, times)
        self._put(self._ends, number, ends[1:])
        self._end = ends[-1]
        self.head += len(frames)
        # The first to keep is the one after the first whose going is enough.
        excess = self._end - self._max_bytes
        if excess > self._begin:
            self._drop_before(min(self.head, bisect_left(range(self.head), excess, self.first, key=self._end_of) + 1))

    def skip_to(self, head: int) -> None:
        """Continue after `head`. The log no longer has the events up to it."""
        self._shared = None
        self._drop_before(self.head + 1)
        self.head = head
        self.first = head + 1

    def holds_after(self, cursor: int) -> bool:
        """Whether all that comes after `cursor` is here."""
        return cursor >= self.first - 1

    def read(self, cursor: int, max_bytes: int) -> Batch | None:
        """The events after `cursor`: as many as `max_bytes` hold, and at least one if there is any.

        None if the client has fallen out of the ring. Nothing new is a batch that ends where it began. A cursor
        ahead of the ring is one the ring has yet to reach.
        """
        if not self.holds_after(cursor):
            return None
        if cursor >= self.head:
            return Batch(b"", cursor)
        if self._shared is None or self._shared[:2] != (cursor, max_bytes):
            self._shared = cursor, max_bytes, self._join(cursor, max_bytes)
        return self._shared[2]

    def time(self, number: int) -> float:
        """When the event `number`, which must be in the ring, happened, in seconds since 1970."""
        return datetime.fromisoformat(self._times[number % self._max_events]).timestamp()

    def _join(self, cursor: int, max_bytes: int) -> Batch:
        begin = self._begin if cursor < self.first else self._end_of(cursor)
        last = self.head
        if self._end - begin > max_bytes:
            first = cursor + 1
            last = max(first, bisect_right(range(last), begin + max_bytes, first, key=self._end_of) - 1)
        slot = (cursor + 1) % self._max_events
        frames = self._frames[slot : slot + last - cursor]
        frames += self._frames[: last - cursor - len(frames)]
        return Batch(frames[0] if len(frames) == 1 else b"".join(frames), last)

    def _end_of(self, number: int) -> int:
        return self._ends[number % self._max_events]

    def _put(self, slots: list[T], number: int, values: Sequence[T]) -> None:
        slot = number % self._max_events
        before_wrap = values[: self._max_events - slot]
        slots[slot : slot + len(before_wrap)] = before_wrap
        slots[: len(values) - len(before_wrap)] = values[len(before_wrap) :]

    def _drop_before(self, first: int) -> None:
        if first > self.first:
            self._begin = self._end_of(first - 1)
            self._put(self._frames, self.first, [b""] * (first - self.first))
            self.first = first
