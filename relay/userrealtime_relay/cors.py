"""What pages of other sites may send and read (CORS), wherever a user's requests are answered."""

from __future__ import annotations

from typing import Final

METHODS: Final = ("GET", "POST")
REQUEST_ID: Final = "X-Request-Id"
REQUEST_HEADERS: Final = ("Authorization", "Cache-Control", "Content-Type", "Last-Event-ID", REQUEST_ID)
RESPONSE_HEADERS: Final = ("Retry-After", REQUEST_ID)
PREFLIGHT_AGE: Final = 600
"""Seconds that a browser may remember what it may send."""


def is_allowed(origin: str, allowed: tuple[str, ...]) -> bool:
    """Whether a page of this origin may connect. `allowed` as in ALLOWED_ORIGINS."""
    return not allowed or origin in allowed or "*" in allowed
