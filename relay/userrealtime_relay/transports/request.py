"""What the HTTP transports share: the connect request, and error responses in JSON."""

from __future__ import annotations

import random
import re
from http import HTTPStatus
from typing import Final, cast
from urllib.parse import parse_qsl

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from userrealtime_core.wire.connect_request import CloseCode, ConnectRequest
from userrealtime_core.wire.session import UNAUTHORIZED, CloseFrame
from userrealtime_relay.config import Config

from .http import Connection

RETRY_SOON: Final = (1.0, 3.0)
RETRY_LATER: Final = (10.0, 30.0)
"""The range of the delay, in seconds, before a client retries. It is random, to spread the clients."""


def connection_of(scope: Scope) -> Connection:
    """The connection that a request came on."""
    return cast(Connection, scope["state"]["connection"])


def connect_request_of(scope: Scope, config: Config, *, cursor: str = "") -> ConnectRequest:
    """Return the connect request of an HTTP request. A `cursor` takes precedence over the others."""
    headers = Headers(scope=scope)
    return ConnectRequest.parse(
        query=scope["query_string"].decode("latin-1"),
        authorization=headers.getlist("Authorization"),
        last_event_id=[cursor, *headers.getlist("Last-Event-ID")],
        query_token=config.allow_query_token,
    )


def parameters_of(scope: Scope) -> dict[str, str]:
    """Return the parameters in the URL of a request."""
    try:
        return dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True, max_num_fields=32))
    except ValueError:
        return {}  # the session rejects it for the same reason


def sender_of(parameters: dict[str, str]) -> str | None:
    """Return the name that a client has chosen for `POST /broadcast`; None if there is no valid one."""
    sender = parameters.get("sender", "")
    return sender if re.fullmatch(r"[A-Za-z0-9_-]{8,64}", sender) else None


def retry_after(closing: CloseFrame | None) -> float:
    """Return the seconds before the client should connect again."""
    return random.uniform(*(RETRY_LATER if closing is not None and closing.code is CloseCode.TRY_LATER else RETRY_SOON))  # noqa: S311 (no secret)


def refuse(status: HTTPStatus, error: str, *, retry_s: float | None = None) -> Response:
    """Return a response with the error, and with the delay before a retry."""
    headers = {"Cache-Control": "no-store"}
    if status is HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    if retry_s is not None:
        headers["Retry-After"] = str(max(1, round(retry_s)))
    return JSONResponse({"error": error}, status, headers=headers)


def refusal(closing: CloseFrame) -> Response:
    """Return the response for a close, if the request has not been answered."""
    if closing == UNAUTHORIZED or closing.code is CloseCode.TOKEN_EXPIRED:
        return refuse(HTTPStatus.UNAUTHORIZED, closing.reason)
    if closing.code is CloseCode.POLICY_VIOLATION:
        return refuse(HTTPStatus.BAD_REQUEST, closing.reason)
    return refuse(HTTPStatus.SERVICE_UNAVAILABLE, closing.reason, retry_s=retry_after(closing))
