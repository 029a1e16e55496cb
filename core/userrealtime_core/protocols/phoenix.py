"""The messages of Phoenix channels, in the versions 1.0.0 and 2.0.0 of their serializer. No I/O.

    1.0.0    {"topic": …, "event": …, "payload": {…}, "ref": …, "join_ref": …}
    2.0.0    [join_ref, ref, topic, event, payload]

In 2.0.0, a client of Supabase sends each broadcast in a binary message. The server's messages are texts in both.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

VERSIONS: Final = ("1.0.0", "2.0.0")
LONGEST_TOPIC: Final = 255
"""Characters of a topic. An answer repeats it."""
LONGEST_REF: Final = 64
"""Characters of a ref. A channel keeps that of its join."""

BROADCAST_PUSH: Final = 3
"""The first byte of a binary message with a broadcast."""
RAW: Final = 0
JSON: Final = 1
_HEAD: Final = struct.Struct("!7B")
"""The kind, the lengths of join_ref, ref, topic, event and metadata, and the encoding of the payload."""


class BadMessage(Exception):
    """A message of a client that cannot be parsed."""


class Push(NamedTuple):
    """A message of a client."""

    join_ref: str | None
    ref: str | None
    topic: str
    event: str
    payload: Mapping[str, Any]
    """Its members. A binary broadcast has the members `type`, `event` and `payload`, the last one in bytes if it is
    not JSON."""


class Serializer:
    """One version of the messages."""

    def __init__(self, version: str) -> None:
        self.version = version

    def parse(self, message: str | bytes) -> Push:
        """Read a message of a client.

        Raises:
            BadMessage: it is not a message of this version.
        """
        if isinstance(message, bytes):
            if self.version == VERSIONS[0]:
                raise BadMessage("a binary message needs version 2.0.0")
            return _parse_binary(message)
        try:
            fields = json.loads(message)
        except (ValueError, RecursionError):
            raise BadMessage("not JSON") from None
        if self.version == VERSIONS[0]:
            if not isinstance(fields, dict):
                raise BadMessage("not an object")
            return _push(*(fields.get(name) for name in ("join_ref", "ref", "topic", "event", "payload")))
        if not isinstance(fields, list) or len(fields) != len(Push._fields):
            raise BadMessage("not a list with five members")
        return _push(*fields)

    def around(self, topic: str, event: str, *, ref: str | None = None, join_ref: str | None = None) -> tuple[str, str]:
        """Return what a message of the server has before and after its payload, which is JSON."""
        if self.version == VERSIONS[0]:
            head = {"topic": topic, "event": event, "ref": ref, "join_ref": join_ref}
            return f'{_json(head)[:-1]},"payload":', "}"
        return f"{_json([join_ref, ref, topic, event])[:-1]},", "]"

    def encode(
        self,
        topic: str,
        event: str,
        payload: Mapping[str, Any],
        *,
        ref: str | None = None,
        join_ref: str | None = None,
    ) -> str:
        """Return a message of the server."""
        front, back = self.around(topic, event, ref=ref, join_ref=join_ref)
        return f"{front}{_json(payload)}{back}"


def _parse_binary(message: bytes) -> Push:
    """Read a broadcast of a client in version 2.0.0."""
    if len(message) < _HEAD.size or message[0] != BROADCAST_PUSH:
        raise BadMessage("not a broadcast")
    _, *lengths, encoding = _HEAD.unpack_from(message)
    parts, begin = [], _HEAD.size
    for length in lengths:
        parts.append(message[begin : begin + length])
        begin += length
    if len(message) < begin or encoding not in (RAW, JSON):
        raise BadMessage("a broadcast that is cut off, or in an unknown encoding")
    try:
        join_ref, ref, topic, event, _ = (part.decode() for part in parts)
        payload: Any = message[begin:]
        if encoding == JSON:
            payload = json.loads(payload.decode())
    except (ValueError, RecursionError):
        raise BadMessage("neither UTF-8 nor JSON") from None
    fields = {"type": "broadcast", "event": event, "payload": payload}
    return _push(join_ref or None, ref or None, topic, "broadcast", fields)


def _push(join_ref: Any, ref: Any, topic: Any, event: Any, payload: Any) -> Push:
    for value in (join_ref, ref):
        if value is not None and not (isinstance(value, str) and len(value) <= LONGEST_REF):
            raise BadMessage(f"a ref is a string of at most {LONGEST_REF} characters")
    if not isinstance(topic, str) or len(topic) > LONGEST_TOPIC:
        raise BadMessage(f"a topic is a string of at most {LONGEST_TOPIC} characters")
    if not isinstance(event, str) or not isinstance(payload, dict):
        raise BadMessage("an event is a string, and its payload an object")
    return Push(join_ref, ref, topic, event, payload)


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
