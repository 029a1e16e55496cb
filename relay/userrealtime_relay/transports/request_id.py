"""The id of a request, in its log lines here and in the proxies before it.

A valid `X-Request-Id` of a proxy is used; otherwise an id is generated. The response contains it.
"""

from __future__ import annotations

import re
import secrets
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from userrealtime_core import audit, logging_setup
from userrealtime_core.wire.cors import REQUEST_ID

HEADER: Final = REQUEST_ID
# What is safe in a header and in any log: no more than a UUID, a trace id or a ULID needs.
_GOOD: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")

current: Final = logging_setup.request_id


def adopt(given: str | None) -> str:
    """Return the id of a request, and make it the `current` one. `given` is the header of the request."""
    request_id = given if given is not None and _GOOD.fullmatch(given) else secrets.token_hex(16)
    current.set(request_id)
    return request_id


class RequestIds:
    """ASGI middleware that gives every request an id."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        request_id = adopt(headers.get(HEADER))
        audit.set_client(scope.get("client"), headers.get("X-Forwarded-For"))

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id)
