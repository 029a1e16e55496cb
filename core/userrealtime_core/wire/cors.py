"""What pages of other sites may send and read (CORS)."""

from __future__ import annotations

import re
from typing import Final

METHODS: Final = ("GET", "HEAD", "POST")
REQUEST_ID: Final = "X-Request-Id"
REQUEST_HEADERS: Final = (
    "Authorization",
    "Cache-Control",
    "Content-Type",
    "If-None-Match",
    "Last-Event-ID",
    REQUEST_ID,
    "apikey",  # of Supabase
)
_STREAM_HEADERS: Final = ("ETag", "Stream-Cursor", "Stream-Next-Offset", "Stream-Up-To-Date")  # of Durable Streams
RESPONSE_HEADERS: Final = ("Retry-After", REQUEST_ID, *_STREAM_HEADERS)
PREFLIGHT_AGE: Final = 600
"""Seconds that a browser may remember what it may send."""
ORIGIN: Final = (
    r"\*|null|file://"
    r"|[a-z][a-z0-9+.-]*://[a-z0-9._~%:\[\]-]+"
    # Extensions of Safari have upper-case names.
    r"|[a-z][a-z0-9.]*-[a-z0-9.-]*://[A-Za-z0-9._~%-]+"
)
"""A regular expression of what ALLOWED_ORIGINS may contain; the chart's values.schema.json has the same."""


def validate_origin(origin: str) -> str | None:
    """Return the problem of an entry of ALLOWED_ORIGINS; None if it is valid."""
    if re.fullmatch(ORIGIN, origin):
        return None
    if "*" in origin:
        return f"{origin!r} has a wildcard: list each origin, or allow all of them by *"
    return (
        f"{origin!r} is not an origin as browsers send it, like https://app.example.com or capacitor://localhost "
        "(lower case, no path), nor null, nor *"
    )


def is_allowed(origin: str, allowed: tuple[str, ...]) -> bool:
    """Whether a page of this origin may connect. `allowed` as in ALLOWED_ORIGINS."""
    return not allowed or origin in allowed or "*" in allowed
