"""An event as the bytes of its WebSocket frame.

Each event is encoded once: the frames of a server are unmasked and, without compression, the same for every client.
The event's data is inserted as the text that Postgres wrote; it is never parsed here.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

_TEXT_FINAL = 0x81  # RFC 6455, 5.2: FIN, opcode 1
_medium_head = struct.Struct("!BBH").pack
_long_head = struct.Struct("!BBQ").pack
_TIME_LENGTH = len("2026-01-02 03:04:05.678901+00")


@lru_cache(maxsize=256)
def _quoted(event: str) -> str:
    """Return the name of an event as JSON. An application has few names."""
    return json.dumps(event, ensure_ascii=False)


@lru_cache(maxsize=2048)
def _head(size: int) -> bytes:
    """Return the head of a frame with so many bytes. The frames of one log have similar sizes."""
    if size < 126:
        return bytes((_TEXT_FINAL, size))
    if size < 1 << 16:
        return _medium_head(_TEXT_FINAL, 126, size)
    return _long_head(_TEXT_FINAL, 127, size)


def encode_events(rows: Iterable[Any]) -> list[bytes]:
    """The frames of events, all in one pass: a call for each would be half of what they cost.

    Args:
        rows: of `epoch, id, event, at, data`, as `userrealtime.events` gives them: `at` is in UTC, as Postgres writes
            times, and `data` JSON text.
    """
    texts = [
        f'{{"type":"event","id":{number},"event":{_quoted(event)}'
        f',"at":"{f"{at[:10]}T{at[11:26]}Z" if len(at) == _TIME_LENGTH else rfc3339(at)}","data":{data}}}'.encode()
        for _, number, event, at, data in rows
    ]
    return [_head(len(text)) + text for text in texts]


def encode_text(text: str) -> bytes:
    """One unmasked, unfragmented text frame."""
    return encode_payload(text.encode())


def encode_payload(payload: bytes) -> bytes:
    """One such frame of a text that is encoded already."""
    return _head(len(payload)) + payload


def rfc3339(text: str) -> str:
    """A time in UTC as Postgres writes it, which leaves out zeros at the end."""
    date, _, time = text.removesuffix("+00").partition(" ")
    whole, _, fraction = time.partition(".")
    return f"{date}T{whole}.{fraction:0<6}Z"


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
