"""The private port of every process: `/health`, `/ready` and `/metrics`. What it answers, without a server."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Final

HEALTH: Final = "/health"
READY: Final = "/ready"
METRICS: Final = "/metrics"
CONNECTIONS: Final = 64
"""The connections that may be open on the port; the oldest one is closed for another one."""
TIMEOUT_S: Final = 5.0
"""Seconds for a request to arrive."""


def health() -> tuple[HTTPStatus, bytes]:
    """Return the response to `/health`: the process runs."""
    return HTTPStatus.OK, _body(status="ok")


def ready(not_ready_reason: str | None) -> tuple[HTTPStatus, bytes]:
    """Return the response to `/ready`.

    Args:
        not_ready_reason: why the process should get no work; None if it may.
    """
    if not_ready_reason is None:
        return HTTPStatus.OK, _body(status="ready")
    return HTTPStatus.SERVICE_UNAVAILABLE, _body(status="not ready", reason=not_ready_reason)


def _body(**fields: str) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode()
