"""Tracks the boundaries of WebSocket frames (RFC 6455, section 5) in a stream of bytes. No I/O.

The proxy forwards bytes unchanged. To insert a close frame, it has to know where a frame ends.
"""

from __future__ import annotations

from typing import Final

_CLOSE: Final = 8
_LENGTHS: Final = {126: 2, 127: 8}
"""The size of the extended payload length, by the 7-bit length that indicates it."""


class FrameTracker:
    """Tracks the frames of one direction."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._left = 0
        self.closed = False
        """Whether a close frame was forwarded. No frame may follow it."""

    @property
    def missing(self) -> int:
        """The least number of bytes that complete the current frame; 0 between two frames."""
        if self._left or not self._head:
            return self._left
        return self._head_size() - len(self._head)

    def feed(self, data: bytes) -> None:
        """Record that these bytes were forwarded."""
        at = 0
        while at < len(data):
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
                at += step
                continue
            step = self._head_size() - len(self._head)
            self._head += data[at : at + step]
            at += step
            size = self._head_size()
            if len(self._head) == size:
                self._left = self._payload_size()
                self.closed = self.closed or self._head[0] & 0x0F == _CLOSE
                self._head.clear()

    def _head_size(self) -> int:
        if len(self._head) < 2:
            return 2
        mask = 4 if self._head[1] & 0x80 else 0
        return 2 + _LENGTHS.get(self._head[1] & 0x7F, 0) + mask

    def _payload_size(self) -> int:
        short = self._head[1] & 0x7F
        return int.from_bytes(self._head[2 : 2 + _LENGTHS[short]], "big") if short in _LENGTHS else short
