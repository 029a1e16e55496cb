"""Tokens that a library would not sign: any header, and any text as claims."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import Any, Final

from testing.relay.harness import KEY, USER

GOOD: Final[dict[str, Any]] = {"sub": USER, "exp": int(time.time()) + 86000}
"""The claims of a valid token."""


def part(content: bytes) -> bytes:
    """Return a part of a token: base64url without padding."""
    return base64.urlsafe_b64encode(content).rstrip(b"=")


def signed(header: dict[str, Any], claims: dict[str, Any] | bytes, key: str = KEY) -> str:
    """Return a token with any header, signed with SHA-256."""
    content = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    head = part(json.dumps(header).encode()) + b"." + part(content)
    return (head + b"." + part(hmac.digest(key.encode(), head, hashlib.sha256))).decode()
