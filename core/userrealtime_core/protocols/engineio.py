"""The requests of Engine.IO, protocol 4, which relays and activators serve. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from .socketio import VERSION

EARLY_BYTES: Final = 16 << 10
"""Bytes of a body of a session that has not authenticated. They contain the token."""
CONTENT_TYPE: Final = "text/plain; charset=UTF-8"

UNKNOWN_TRANSPORT: Final = 0
UNKNOWN_SESSION: Final = 1
BAD_METHOD: Final = 2
BAD_REQUEST: Final = 3
FORBIDDEN: Final = 4
UNSUPPORTED_VERSION: Final = 5

UNKNOWN_SESSION_TEXT: Final = "Session ID unknown: the pod has ended it, or another pod has it"
ADOPTION_S: Final = 40
"""Seconds after the beginning of a session at an activator in which a relay takes it over: a wake may take 30."""
_SKEW_S: Final = 10
"""The difference of two clocks that is allowed for."""
_SID: Final = re.compile(r"([0-9a-f]{24})\.([0-9a-f]{1,12})")


def request_error(method: str, query: Mapping[str, str], *, has_body: bool) -> tuple[int, str] | None:
    """Return why a request of long polling is rejected, as a code and a text; None if it is not."""
    if query.get("EIO") != VERSION:
        return UNSUPPORTED_VERSION, "Unsupported protocol version: use a client of Socket.IO 3 or 4 (EIO=4)"
    if query.get("transport") == "websocket":
        return BAD_REQUEST, "this is a WebSocket: connect with a WebSocket client"
    if query.get("transport") != "polling":
        return UNKNOWN_TRANSPORT, "Transport unknown: there are polling and websocket"
    if "j" in query:
        return BAD_REQUEST, "JSONP is not supported"
    if method not in ("GET", "POST") or (method == "POST" and "sid" not in query):
        return BAD_METHOD, "Bad handshake method: a session begins with GET, and only GET and POST follow"
    if method == "GET" and has_body:
        return BAD_REQUEST, "a GET request has no body here"
    return None


def new_sid(identity: str, unix_s: float) -> str:
    """Return the id of a session that begins at an activator. Neither activators nor relays keep a state for it."""
    return f"{identity}.{int(unix_s):x}"


def identity_in(sid: str, unix_s: float) -> str | None:
    """Return the identity in the id of a session that has begun at an activator a moment ago; None for other ids."""
    found = _SID.fullmatch(sid)
    if found is None or not -_SKEW_S <= unix_s - int(found[2], 16) <= ADOPTION_S:
        return None
    return found[1]
