"""An event as the bytes of its WebSocket frame.

Encoded once, whoever it goes to: the server's frames are unmasked and, without compression, the same for every
client. The event's data is spliced in as the text Postgres wrote; it is never parsed here.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from datetime import UTC, datetime

_TEXT_FINAL = 0x81  # RFC 6455, 5.2: FIN, opcode 1


def encode_event(number: int, event: str, at: datetime, data: str) -> bytes:
    """The frame of one event. `at` is aware, in any zone; `data` is JSON text."""
    time = at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return encode_text(
        f'{{"type":"event","id":{number},"event":{json.dumps(event, ensure_ascii=False)},"at":"{time}","data":{data}}}'
    )


def encode_text(text: str) -> bytes:
    """One unmasked, unfragmented text frame."""
    payload = text.encode()
    size = len(payload)
    if size < 126:
        return struct.pack("!BB", _TEXT_FINAL, size) + payload
    if size < 1 << 16:
        return struct.pack("!BBH", _TEXT_FINAL, 126, size) + payload
    return struct.pack("!BBQ", _TEXT_FINAL, 127, size) + payload


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
