"""The newest events of the log, each as the bytes of its frame, in one bounded ring that every client reads from.

Numbers have no gaps, so an event's slot is its number modulo the size of the ring, and a client is nothing but the
number it has got to: its *cursor*. There is no queue per client. A client whose cursor is older than the ring has
fallen out, and reads the log instead until it is back.
"""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple


class Batch(NamedTuple):
    """What a client gets next: whole frames, joined; `cursor` is the number of the last."""

    frames: bytes
    cursor: int


class Ring:
    """Holds at most `max_events` events and `max_bytes` of frames, but always the newest event, however big."""

    def __init__(self, head: int, *, max_events: int, max_bytes: int) -> None:
        self.head = head
        """The number of the newest event; the ring may have let go of it, or never have had it."""
        self.first = head + 1
        """The oldest number held; `head + 1` when nothing is."""
        self.bytes = 0
        self._max_bytes = max_bytes
        self._frames: list[bytes] = [b""] * max_events
        self._times = [""] * max_events

    def __len__(self) -> int:
        return self.head + 1 - self.first

    def append(self, number: int, frame: bytes, at: str) -> None:
        """Take the next event. `at` is when it happened (RFC 3339).

        Raises:
            ValueError: `number` is not the one after `head`.
        """
        if number != self.head + 1:
            raise ValueError(f"event {number} cannot follow event {self.head}")
        if len(self) == len(self._frames):
            self._drop_first()
        slot = number % len(self._frames)
        self._frames[slot] = frame
        self._times[slot] = at
        self.head = number
        self.bytes += len(frame)
        while self.bytes > self._max_bytes and self.first < self.head:
            self._drop_first()

    def skip_to(self, head: int) -> None:
        """Go on after `head`, without the events up to it: the log has let go of them."""
        while self.first <= self.head:
            self._drop_first()
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
        frames: list[bytes] = []
        size = 0
        while cursor < self.head:
            frame = self._frames[(cursor + 1) % len(self._frames)]
            size += len(frame)
            if frames and size > max_bytes:
                break
            frames.append(frame)
            cursor += 1
        return Batch(frames[0] if len(frames) == 1 else b"".join(frames), cursor)

    def time(self, number: int) -> float:
        """When the event `number`, which must be in the ring, happened, in seconds since 1970."""
        return datetime.fromisoformat(self._times[number % len(self._times)]).timestamp()

    def _drop_first(self) -> None:
        slot = self.first % len(self._frames)
        self.bytes -= len(self._frames[slot])
        self._frames[slot] = b""
        self.first += 1
