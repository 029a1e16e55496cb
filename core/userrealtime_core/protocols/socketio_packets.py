"""The packets of Engine.IO, protocol 4, and of Socket.IO, protocol 5, which are inside of its messages. No I/O."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

OPEN: Final = "0"
CLOSE: Final = "1"
PING: Final = "2"
PONG: Final = "3"
MESSAGE: Final = "4"
UPGRADE: Final = "5"
NOOP: Final = "6"
PROBE: Final = "2probe"
PROBED: Final = "3probe"
SEPARATOR: Final = b"\x1e"
"""Between the packets in the body of a request or a response. JSON contains no control characters."""
MAX_PACKETS: Final = 1024
"""Packets in the body of a request."""

PING_TIMEOUT_S: Final = 20
"""Seconds after the ping interval without a ping in which a client closes the connection."""

CONNECT: Final = "0"
DISCONNECT: Final = "1"
EVENT: Final = "2"
ACK: Final = "3"
CONNECT_ERROR: Final = "4"
BINARY: Final = ("5", "6")
"""An event and an acknowledgement with attachments, which follow in binary messages."""

# <type>[<attachments>-][/namespace,][<number of the acknowledgement>][JSON]
_PACKET: Final = re.compile(r"4(?:([0-4])|([56])([0-9]{1,4})-)(?:(/[^,]*)(?:,|$))?([0-9]*)(.*)", re.DOTALL)
_LONGEST_NUMBER: Final = 15
"""Digits: what a number of JavaScript can hold."""


def split(body: bytes) -> list[str | bytes]:
    """Return the packets in the body of a request; a binary one as its bytes.

    Raises:
        ValueError: it is no list of packets.
    """
    parts = body.split(SEPARATOR, MAX_PACKETS)
    if len(parts) > MAX_PACKETS or not all(parts):
        raise ValueError("too many packets, or an empty one")
    return [base64.b64decode(part[1:], validate=True) if part.startswith(b"b") else part.decode() for part in parts]


def open_packet(sid: str, upgrades: Sequence[str], ping_interval_s: float, max_payload: int) -> str:
    """Return the first packet of a session.

    Args:
        upgrades: the transports to which the client may change.
        max_payload: bytes of a body.
    """
    fields = {
        "sid": sid,
        "upgrades": upgrades,
        "pingInterval": int(ping_interval_s * 1000),
        "pingTimeout": PING_TIMEOUT_S * 1000,
        "maxPayload": max_payload,
    }
    return OPEN + json.dumps(fields, separators=(",", ":"))


class Packet(NamedTuple):
    """A packet of Socket.IO."""

    kind: str
    attachments: int
    namespace: str
    number: int | None
    """The number of the acknowledgement that it requests, or is."""
    data: Any
    """None if there is none."""

    @classmethod
    def parse(cls, message: str) -> Packet:
        """Return the packet in a message of Engine.IO.

        Raises:
            ValueError: it is none.
        """
        found = _PACKET.fullmatch(message)
        if found is None or len(found[5]) > _LONGEST_NUMBER:
            raise ValueError("not a packet of Socket.IO")
        plain, binary, attachments, namespace, number, text = found.groups()
        try:
            data = json.loads(text) if text else None
        except RecursionError:
            raise ValueError("nested too deeply") from None
        kind = plain or binary
        if not _fits(kind, data):
            raise ValueError("the data of another type of packet")
        return cls(kind, int(attachments or 0), namespace or "/", int(number) if number else None, data)


def _fits(kind: str, data: Any) -> bool:
    """Whether a packet of this kind can have such data."""
    if kind == CONNECT:
        return data is None or isinstance(data, dict)
    if kind == DISCONNECT:
        return data is None
    if kind == CONNECT_ERROR:
        return isinstance(data, str | dict)
    if kind in (EVENT, BINARY[0]):
        return isinstance(data, list) and bool(data) and isinstance(data[0], str)
    return isinstance(data, list)
