"""An event as the bytes of its WebSocket frame.

Encoded once, whoever it goes to: the server's frames are unmasked and, without compression, the same for every
client. The event's data is spliced in as the text Postgres wrote; it is never parsed here.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from functools import lru_cache

_TEXT_FINAL = 0x81  # RFC 6455, 5.2: FIN, opcode 1
_SHORT_HEADS = tuple(bytes((_TEXT_FINAL, size)) for size in range(126))
_medium_head = struct.Struct("!BBH").pack
_long_head = struct.Struct("!BBQ").pack


@lru_cache(maxsize=256)
def _quoted(event: str) -> str:
    """The kind of an event as JSON; an application has few of them."""
    return json.dumps(event, ensure_ascii=False)


def encode_event(number: int, event: str, at: str, data: str) -> bytes:
    """The frame of one event. `at` is RFC 3339; `data` is JSON text."""
    return encode_text(f'{{"type":"event","id":{number},"event":{_quoted(event)},"at":"{at}","data":{data}}}')


def encode_text(text: str) -> bytes:
    """One unmasked, unfragmented text frame."""
    payload = text.encode()
    size = len(payload)
    if size < 126:
        return _SHORT_HEADS[size] + payload
    if size < 1 << 16:
        return _medium_head(_TEXT_FINAL, 126, size) + payload
    return _long_head(_TEXT_FINAL, 127, size) + payload


def payloads(frames: bytes) -> Iterator[memoryview]:
    """The texts of frames that were made here, joined: what other transports send of them."""
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
