"""What every request passes: where it may come from, how much it may say, and how it is refused."""

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
    """Lets the page load what is its own, connect to its own host, and be framed by nobody."""

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
    """Refuses what changes anything and does not come from the demo's own page.

    Browsers name the origin in every POST. The cookie alone, though it is SameSite, would let in pages of the same host
    on other ports.
    """

    def __init__(self, app: ASGIApp, origin: str) -> None:
        self._app = app
        self._origin = origin

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        changes = scope["type"] == "http" and scope["method"] not in ("GET", "HEAD")
        if changes and Headers(scope=scope).get("origin") != self._origin:
            answer = _answer(HTTPStatus.FORBIDDEN, f"this is done from the page at {self._origin} alone")
            await answer(scope, receive, send)
        else:
            await self._app(scope, receive, send)


class Allowance:
    """So many a second, and as many at once."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._level = rate
        self._at = 0.0

    def take(self, now: float) -> bool:
        """Whether one more may be, at this time in seconds."""
        self._level = min(self._rate, self._level + (now - self._at) * self._rate)
        self._at = now
        if self._level < 1:
            return False
        self._level -= 1
        return True


async def small_body(request: Request) -> Object:
    """The JSON object that was sent; an empty one if nothing was."""
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
    """An answer to what was wrong about a request."""
    assert isinstance(error, HTTPException)  # noqa: S101  (registered for it)
    return _answer(error.status_code, error.detail)


async def unavailable(request: Request, error: Exception) -> Response:
    """An answer where the cluster or the database is in the way."""
    return _answer(HTTPStatus.SERVICE_UNAVAILABLE, str(error))


def _answer(status: int, text: str) -> Response:
    return JSONResponse({"error": text}, status_code=status)
