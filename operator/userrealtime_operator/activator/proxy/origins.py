"""What pages of other sites are told, as the relay tells them (CORS). Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from userrealtime_core.wire import cors

from .request import Request

Headers = Sequence[tuple[str, str]]
_SIMPLE: Final = ("accept", "accept-language", "content-language")
"""Headers that a page may always send."""


class Origins:
    """The origins that may connect, as in ALLOWED_ORIGINS; without any, nobody is told anything."""

    def __init__(self, allowed: tuple[str, ...]) -> None:
        self._allowed = allowed

    def admit(self, request: Request) -> bool:
        """Whether a WebSocket may be opened from where this one says it comes."""
        return all(cors.is_allowed(origin, self._allowed) for origin in request.values(b"origin"))

    def is_preflight(self, request: Request) -> bool:
        """Whether a browser asks what a page may send, before it sends it."""
        asks = request.method == b"OPTIONS" and request.values(b"access-control-request-method")
        return bool(self._allowed and asks and request.values(b"origin"))

    def preflight(self, request: Request) -> Headers | None:
        """The answer to a preflight, None if what it asks for may not be."""
        methods = request.values(b"access-control-request-method")
        headers = [name.strip().lower() for value in request.values(_REQUESTED) for name in value.split(",")]
        known = {*_SIMPLE, *(name.lower() for name in cors.REQUEST_HEADERS)}
        may = self.headers(request)
        if not may or not set(methods) <= set(cors.METHODS) or not set(filter(None, headers)) <= known:
            return None
        return [
            *may,
            ("Access-Control-Allow-Methods", ", ".join(cors.METHODS)),
            ("Access-Control-Allow-Headers", ", ".join(cors.REQUEST_HEADERS)),
            ("Access-Control-Max-Age", str(cors.PREFLIGHT_AGE)),
        ]

    def headers(self, request: Request) -> Headers:
        """What an answer says, so that the page can read it."""
        origins = request.values(b"origin")
        if not self._allowed or len(origins) != 1 or not cors.is_allowed(origins[0], self._allowed):
            return []
        exposed = ("Access-Control-Expose-Headers", ", ".join(cors.RESPONSE_HEADERS))
        if "*" in self._allowed:
            return [("Access-Control-Allow-Origin", "*"), exposed]
        return [("Access-Control-Allow-Origin", origins[0]), ("Vary", "Origin"), exposed]


_REQUESTED: Final = b"access-control-request-headers"
