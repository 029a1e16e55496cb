"""The newest broadcasts, each as the bytes of its frame, in one bounded ring that every client reads from.

A client is a cursor here, as it is in the ring of events. A client that is too slow loses the oldest broadcasts: the
ring drops them, and nothing waits for it.
"""

from __future__ import annotations

import secrets
from collections import deque
from typing import Final, NamedTuple

from userrealtime_core.wire.frames import encode_text

MAX_FRAMES: Final = 1024
MAX_BYTES: Final = 512 << 10


class BroadcastBatch(NamedTuple):
    """What a client gets next: whole frames, joined. `number` of them; `lost` before them were dropped.

    There may be no frames although the cursor advances: the client has sent these broadcasts itself.
    """

    frames: bytes
    cursor: int
    number: int
    lost: int


class Broadcasts:
    """Holds at most `max_frames` broadcasts, and `max_bytes` of frames."""

    def __init__(self, *, max_frames: int = MAX_FRAMES, max_bytes: int = MAX_BYTES) -> None:
        self.head = 0
        """The number of the newest broadcast."""
        self._max_frames = max_frames
        self._max_bytes = max_bytes
        self._frames: deque[tuple[bytes, str | None]] = deque()  # each with its sender
        self._bytes = 0
        self._senders = 0
        self.name = secrets.token_hex(6)
        """The name of this ring: another pod may answer the next poll."""

    def new_sender(self) -> str:
        """Return a name for a client that may send broadcasts, different from all others."""
        self._senders += 1
        return f"{self.name}-{self._senders}"

    def add(self, text: str, sender: str | None = None) -> None:
        """Add a broadcast, given as the text that clients receive. The client `sender` does not receive it."""
        frame = encode_text(text)
        self._frames.append((frame, sender))
        self._bytes += len(frame)
        self.head += 1
        while len(self._frames) > self._max_frames or self._bytes > self._max_bytes:
            self._bytes -= len(self._frames.popleft()[0])

    def read(self, cursor: int, max_bytes: int, client: str | None = None) -> BroadcastBatch:
        """Return the broadcasts after `cursor`, as many as `max_bytes` hold, and at least one if there is any.

        Those that `client` has sent are skipped.
        """
        first = self.head + 1 - len(self._frames)
        begin = max(cursor + 1, first)
        frames: list[bytes] = []
        size = 0
        reached = begin - 1
        for number in range(begin, self.head + 1):
            frame, sender = self._frames[number - first]
            if sender is None or sender != client:
                size += len(frame)
                if frames and size > max_bytes:
                    break
                frames.append(frame)
            reached = number
        return BroadcastBatch(b"".join(frames), reached, len(frames), begin - cursor - 1)

    def mark(self, cursor: int) -> str:
        """Return a cursor as a text that a client sends with its next poll."""
        return f"{self.name}-{cursor}"

    def find(self, mark: str) -> int:
        """Return the cursor in such a text; the newest one if the text is not from this ring."""
        name, _, number = mark.partition("-")
        if name == self.name and number.isascii() and number.isdecimal() and len(number) < 16:
            return min(int(number), self.head)
        return self.head
