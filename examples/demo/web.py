"""Checks of every request: its origin, the size of its body, its rate, and the error responses."""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .view import Object

MOST_BODY_BYTES = 8192
BODY_TIMEOUT_S = 5


class SecurityHeaders:
    """Restricts the page to its own files and its own host, and forbids framing."""

    def __init__(self, app: ASGIApp, socket_origin: str) -> None:
        self._app = app
        policy = {
            "default-src": "'none'",
            "script-src": "'self'",
            "style-src": "'self'",
            "img-src": "'self'",
            "connect-src": f"'self' {socket_origin}",
            "base-uri": "'none'",
            "form-action": "'none'",
            "frame-ancestors": "'none'",
        }
        self._headers = {
            "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        await self._app(scope, receive, guarded if scope["type"] == "http" else send)


class SameOrigin:
    """Rejects requests that change state and do not come from the demo's page.

    Browsers send the origin with every POST. The cookie is SameSite, which does not exclude pages of the same host with
    other ports.
    """

    def __init__(self, app: ASGIApp, origin: str) -> None:
        self._app = app
        self._origin = origin

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        changes = scope["type"] == "http" and scope["method"] not in ("GET", "HEAD")
        if changes and Headers(scope=scope).get("origin") != self._origin:
            answer = _answer(HTTPStatus.FORBIDDEN, f"this request is accepted only from the page at {self._origin}")
            await answer(scope, receive, send)
        else:
            await self._app(scope, receive, send)


class Allowance:
    """A rate limit. The burst is the number of actions in one second."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._level = rate
        self._at = 0.0

    def take(self, now: float) -> bool:
        """Return whether another action is allowed at this time, in seconds."""
        self._level = min(self._rate, self._level + (now - self._at) * self._rate)
        self._at = now
        if self._level < 1:
            return False
        self._level -= 1
        return True


async def small_body(request: Request) -> Object:
    """Return the JSON object of the body, or an empty one without a body."""
    content = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                content += chunk
                if len(content) > MOST_BODY_BYTES:
                    raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {MOST_BODY_BYTES} bytes")
    except TimeoutError:
        raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, "the body took too long") from None
    try:
        found = json.loads(content or b"{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise HTTPException(HTTPStatus.BAD_REQUEST, "the body must be a JSON object")
    return found


async def refused(request: Request, error: Exception) -> Response:
    """Return the response to an invalid request."""
    assert isinstance(error, HTTPException)  # noqa: S101  (registered for it)
    return _answer(error.status_code, error.detail)


async def unavailable(request: Request, error: Exception) -> Response:
    """Return the response while the cluster or the database does not answer."""
    return _answer(HTTPStatus.SERVICE_UNAVAILABLE, str(error))


def _answer(status: int, text: str) -> Response:
    return JSONResponse({"error": text}, status_code=status)
