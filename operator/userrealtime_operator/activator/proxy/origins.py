"""The CORS headers of responses, the same as the relay's. No I/O."""

from __future__ import annotations

from typing import Final

from userrealtime_core.wire import cors

from .request import Request
from .responses import Headers

_SIMPLE: Final = ("accept", "accept-language", "content-language")
"""Request headers that a page may always send."""


class Origins:
    """The origins that may connect (ALLOWED_ORIGINS). Without any, no response has CORS headers."""

    def __init__(self, allowed: tuple[str, ...]) -> None:
        self._allowed = allowed

    def allows(self, request: Request) -> bool:
        """Return whether a page of the request's origin may open a WebSocket."""
        return all(cors.is_allowed(origin, self._allowed) for origin in request.values(b"origin"))

    def is_preflight(self, request: Request) -> bool:
        """Return whether the request is a browser's preflight request."""
        requested = request.method == b"OPTIONS" and request.values(b"access-control-request-method")
        return bool(self._allowed and requested and request.values(b"origin"))

    def preflight_headers(self, request: Request) -> Headers | None:
        """Return the headers of the response to a preflight request, None if the page may not send its request."""
        methods = request.values(b"access-control-request-method")
        headers = [name.strip().lower() for value in request.values(_REQUESTED) for name in value.split(",")]
        known = {*_SIMPLE, *(name.lower() for name in cors.REQUEST_HEADERS)}
        allowed = self.response_headers(request)
        if not allowed or not set(methods) <= set(cors.METHODS) or not set(filter(None, headers)) <= known:
            return None
        return [
            *allowed,
            ("Access-Control-Allow-Methods", ", ".join(cors.METHODS)),
            ("Access-Control-Allow-Headers", ", ".join(cors.REQUEST_HEADERS)),
            ("Access-Control-Max-Age", str(cors.PREFLIGHT_AGE)),
        ]

    def response_headers(self, request: Request) -> Headers:
        """Return the headers with which a page of the request's origin can read the response."""
        origins = request.values(b"origin")
        if not self._allowed or len(origins) != 1 or not cors.is_allowed(origins[0], self._allowed):
            return []
        exposed = ("Access-Control-Expose-Headers", ", ".join(cors.RESPONSE_HEADERS))
        if "*" in self._allowed:
            return [("Access-Control-Allow-Origin", "*"), exposed]
        return [("Access-Control-Allow-Origin", origins[0]), ("Vary", "Origin"), exposed]


_REQUESTED: Final = b"access-control-request-headers"
