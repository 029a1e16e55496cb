"""Texts as WebSocket frames of a server: unmasked, unfragmented, and without compression. No I/O."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import lru_cache

_TEXT_FINAL = 0x81  # RFC 6455, 5.2: FIN, opcode 1
_medium_head = struct.Struct("!BBH").pack
_long_head = struct.Struct("!BBQ").pack


@lru_cache(maxsize=2048)
def frame_head(size: int) -> bytes:
    """Return the head of a frame with so many bytes. The frames of one log have similar sizes."""
    if size < 126:
        return bytes((_TEXT_FINAL, size))
    if size < 1 << 16:
        return _medium_head(_TEXT_FINAL, 126, size)
    return _long_head(_TEXT_FINAL, 127, size)


def encode_text(text: str) -> bytes:
    """One unmasked, unfragmented text frame."""
    return encode_payload(text.encode())


def encode_payload(payload: bytes) -> bytes:
    """One such frame of a text that is encoded already."""
    return frame_head(len(payload)) + payload


def payloads(frames: bytes) -> Iterator[memoryview]:
    """Yield the texts of joined frames, which the other transports send."""
    view = memoryview(frames)
    start = 0
    while start < len(view):
        size = view[start + 1]
        start += 2
        if size == 126:
            size = int.from_bytes(view[start : start + 2])
            start += 2
        elif size == 127:
            size = int.from_bytes(view[start : start + 8])
            start += 8
        yield view[start : start + size]
        start += size
