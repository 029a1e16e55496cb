"""The audit log: one line for each event that matters for security, among the other lines of the process.

    {"time": "...", "level": "info", "message": "a token was rejected", "audit": true, "event": "token-rejected", ...}

`"audit": true` marks the lines, and the names of events and fields are stable: docs/audit.md has their list. The level
of the process does not affect them. No line contains a token, a key or a password.

Everybody can cause rejected tokens, so `RejectedTokens` limits their lines, and counts those that it leaves out.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, Final

LOGGER: Final = "userrealtime_audit"
LINES: Final = 20
INTERVAL_S: Final = 10.0
"""How many lines about rejected tokens a process writes in each interval."""
MAX_TEXT: Final = 256
"""Characters of a text that a client has chosen."""

_logger = logging.getLogger(LOGGER)
_client: ContextVar[Mapping[str, str]] = ContextVar("client", default={})  # noqa: B039 (never changed)


def record(event: str, message: str, **fields: object) -> None:
    """Write a line. Empty fields are left out."""
    given = {name: value for name, value in fields.items() if value not in (None, "", (), [])}
    _logger.info(message, extra={"fields": {"audit": True, "event": event, **given}})


def set_client(peer: object, forwarded_for: str | None = None) -> None:
    """Set the client of the current task, and of the tasks that it creates.

    Args:
        peer: the address of the other end of the connection, as a socket returns it.
        forwarded_for: the header `X-Forwarded-For`. It is only as reliable as the proxies before this process.
    """
    address = str(peer[0]) if isinstance(peer, tuple | list) and peer else ""
    _client.set({"client": address, "forwarded_for": (forwarded_for or "")[:MAX_TEXT]})


class RejectedTokens:
    """Writes the lines about rejected tokens: at most `LINES` in `INTERVAL_S` seconds.

    The number of further ones is written at the end of the interval.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._interval_end = 0.0
        self._written = 0
        self._suppressed = 0

    def record(self, reason: str, claims: Mapping[str, Any], **fields: object) -> None:
        """Write or count the rejection of a token.

        Args:
            claims: what the token claims to be, which may be forged: its subject and its key id.
        """
        now = self._clock()
        if now >= self._interval_end:
            self.flush()
            self._interval_end, self._written = now + INTERVAL_S, 0
        if self._written < LINES:
            self._written += 1
            texts = {name: value[:MAX_TEXT] for name, value in claims.items() if isinstance(value, str)}
            record("token-rejected", "a token was rejected", **{**fields, "reason": reason, **texts, **_client.get()})
            return
        self._suppressed += 1
        if self._suppressed == 1:
            # Otherwise the number would stay unknown until the next rejection.
            asyncio.get_running_loop().call_later(self._interval_end - now, self.flush)

    def flush(self) -> None:
        """Write the number of rejections without a line, if there are any."""
        if self._suppressed:
            count, self._suppressed = self._suppressed, 0
            record("token-rejections-suppressed", "further tokens were rejected", count=count, seconds=INTERVAL_S)
