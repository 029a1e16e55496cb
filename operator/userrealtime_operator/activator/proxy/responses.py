"""The responses of the activator itself: an HTTP status, or a close code once the connection is a WebSocket.

A browser gives a page the close code of a WebSocket, but not the HTTP status of a rejected handshake.
`Rejected` therefore has both.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from http import HTTPStatus
from typing import Final

from websockets.frames import Close, Frame, Opcode

from userrealtime_core.wire.connect_request import CloseCode

RETRY_AFTER_S: Final = (5, 15)
"""The bounds of `Retry-After`. The value is random, to spread the retries of clients over time."""

Headers = Sequence[tuple[str, str]]


class Rejected(Exception):
    """A connection that is not forwarded to a pod, with the response to it.

    Args:
        reason: the message for the client; empty for a response without a body.
        close_code: used in place of the status if the handshake of a WebSocket was accepted.
        outcome: the label of the metric.
        response: replaces the whole response.
        headers: replace the CORS headers that every response to this client has.
    """

    def __init__(
        self,
        status: HTTPStatus,
        reason: str,
        close_code: int = CloseCode.TRY_LATER,
        outcome: str = "rejected",
        headers: Headers | None = None,
        response: bytes = b"",
    ) -> None:
        super().__init__(reason)
        self.status = status
        self.close_code = close_code
        self.outcome = outcome
        self.headers = headers
        self.response = response


def unknown_host() -> Rejected:
    """Return the rejection of a request for an address that belongs to no user."""
    return Rejected(HTTPStatus.NOT_FOUND, "not found", outcome="unknown_host")


def unauthorized() -> Rejected:
    """Return the rejection of a missing or invalid token."""
    return Rejected(HTTPStatus.UNAUTHORIZED, "Unauthorized", CloseCode.POLICY_VIOLATION, "unauthorized")


def overloaded() -> Rejected:
    """Return the rejection of a valid token while a limit of connections is reached."""
    return Rejected(HTTPStatus.SERVICE_UNAVAILABLE, "Too many connections", outcome="overloaded")


def evicted() -> Rejected:
    """Return the rejection of the oldest unauthenticated connection when there are too many."""
    return Rejected(HTTPStatus.SERVICE_UNAVAILABLE, "Too many unauthenticated connections", outcome="evicted")


def unavailable(reason: str) -> Rejected:
    """Return the rejection of a request that may succeed when it is repeated later."""
    return Rejected(HTTPStatus.SERVICE_UNAVAILABLE, reason, outcome="unavailable")


def restarting() -> Rejected:
    """Return the rejection of a client that waits while the activator drains."""
    return Rejected(HTTPStatus.SERVICE_UNAVAILABLE, "Restarting", CloseCode.RESTARTING, "drained")


def http_response(rejected: Rejected, cors_headers: Headers) -> bytes:
    """Return the complete HTTP response of a rejection."""
    if rejected.response:
        return rejected.response
    body = json.dumps({"error": str(rejected)}).encode() if str(rejected) else b""
    status = rejected.status
    headers = [*(cors_headers if rejected.headers is None else rejected.headers)]
    if status is HTTPStatus.UNAUTHORIZED:
        headers.append(("WWW-Authenticate", "Bearer"))
    if status is HTTPStatus.SERVICE_UNAVAILABLE:
        headers.append(("Retry-After", str(random.randint(*RETRY_AFTER_S))))  # noqa: S311 (not a secret)
    return complete_response(status, "application/json", body, headers)


def complete_response(status: HTTPStatus, content_type: str, body: bytes, headers: Headers) -> bytes:
    """Return an HTTP response with a body, after which the connection is closed."""
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Content-Type: {content_type}",
        "Cache-Control: no-store",
        f"Content-Length: {len(body)}",
        "Connection: close",
        *(f"{name}: {value}" for name, value in headers),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def close_frame(rejected: Rejected) -> bytes:
    """Return the close frame of a rejection, as a server sends it."""
    return Frame(Opcode.CLOSE, Close(rejected.close_code, str(rejected)).serialize()).serialize(mask=False)
