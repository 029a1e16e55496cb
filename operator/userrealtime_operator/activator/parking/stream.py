"""The response to a parked stream of Server-Sent Events, and to a parked poll, in the formats of the relay. No I/O.

The body of a stream is chunked, as that of the relay: the chunks of a pod can follow those of the activator.
"""

from __future__ import annotations

import json
import random
from http import HTTPStatus
from typing import Final

from userrealtime_core.wire.connect_request import CloseCode
from userrealtime_core.wire.position import LogState
from userrealtime_operator.activator.proxy.responses import Headers, complete_response

RETRY_SOON: Final = (1.0, 3.0)
RETRY_LATER: Final = (10.0, 30.0)
"""The range of the delay, in seconds, before a client connects again."""
LAST_CHUNK: Final = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """Return a chunk of a body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


KEEP_ALIVE: Final = chunk(b":\n\n")


def begin_stream(greeting: str, position: LogState, cors_headers: Headers) -> bytes:
    """Return the head of a stream and its first message, which has the position as its id."""
    lines = [
        "HTTP/1.1 200 OK",
        "Content-Type: text/event-stream",
        "Cache-Control: no-store, no-transform",
        "X-Accel-Buffering: no",
        "Transfer-Encoding: chunked",
        "Connection: close",
        *(f"{name}: {value}" for name, value in cors_headers),
    ]
    epoch = position.epoch or ""
    identity = f"{position.head}:{epoch}" if epoch.isascii() and epoch.isprintable() and epoch else f"{position.head}"
    body = f"{_retry(RETRY_SOON)}id: {identity}\ndata: {greeting}\n\n"
    return "\r\n".join([*lines, "", ""]).encode() + chunk(body.encode())


def end_stream(code: int, reason: str) -> bytes:
    """Return the last message of a stream and its end."""
    retry = _retry(RETRY_LATER) if code == CloseCode.TRY_LATER else ""
    message = json.dumps({"type": "close", "code": int(code), "reason": reason})
    return chunk(f"{retry}data: {message}\n\n".encode()) + LAST_CHUNK


def empty_poll(position: LogState, broadcasts: str | None, cors_headers: Headers) -> bytes:
    """Return the response to a poll without events.

    Args:
        broadcasts: the mark of the client, which stays the same; None if it receives no broadcasts.
    """
    fields: dict[str, object] = {"events": []}
    if broadcasts is not None:
        fields["broadcasts"] = []
    fields |= {"cursor": position.head, "epoch": position.epoch}
    if broadcasts is not None:
        fields["broadcastCursor"] = broadcasts
    body = json.dumps(fields, separators=(",", ":")).encode()
    return complete_response(HTTPStatus.OK, "application/json", body, cors_headers)


def _retry(bounds: tuple[float, float]) -> str:
    return f"retry: {round(random.uniform(*bounds) * 1000)}\n\n"  # noqa: S311 (no secret)
