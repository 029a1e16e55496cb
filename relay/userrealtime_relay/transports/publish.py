"""`POST /publish`, for clients without a WebSocket: the same JSON object and the same reply."""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from typing import Final

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from userrealtime_relay.delivery.clients import RESTARTING_REASON, TOO_MANY_REASON, Clients
from userrealtime_relay.wire.rate_limit import TokenBucket
from userrealtime_relay.wire.submission import Full, Invalid, Refused, Submission, Unavailable

from .request import connect_request_of, connection_of, refusal, refuse, retry_after

TOO_MANY: Final = "too many messages: wait a second, then repeat it with the same ref"


class Publishing:
    """The ASGI application at `/publish`. A body is read only after the token was accepted."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        # Shared by all requests: a client may use a new connection for each one.
        self._allowance = TokenBucket(clients.config.max_messages_per_second, asyncio.get_running_loop().time())
        self._requests = 0  # that are authenticated and not answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._answer(scope, receive)
        await response(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive) -> Response:
        clients, connection = self._clients, connection_of(scope)
        session = await clients.authenticate(connect_request_of(scope, clients.config))
        if session.closing is not None:
            return refusal(session.closing)
        if clients.draining:
            return refuse(HTTPStatus.SERVICE_UNAVAILABLE, RESTARTING_REASON, retry_s=retry_after(None))
        if not self._allowance.take(asyncio.get_running_loop().time()):
            clients.metrics.limited.labels("messages").inc()
            return refuse(HTTPStatus.TOO_MANY_REQUESTS, TOO_MANY, retry_s=1)
        if self._requests >= clients.config.max_connections:
            clients.metrics.limited.labels("connections").inc()
            return refuse(HTTPStatus.SERVICE_UNAVAILABLE, TOO_MANY_REASON, retry_s=retry_after(None))
        connection.authenticated()
        self._requests += 1
        try:
            connection.read_body()
            return await self._store(receive)
        finally:
            self._requests -= 1

    async def _store(self, receive: Receive) -> Response:
        clients = self._clients
        try:
            async with asyncio.timeout(clients.config.auth_timeout):
                body = await _body(receive, clients.config.max_message_bytes)
        except TimeoutError:
            clients.metrics.limited.labels("request_time").inc()
            return _final(refuse(HTTPStatus.REQUEST_TIMEOUT, "the body did not arrive in time"))
        if body is None:
            clients.metrics.limited.labels("message_bytes").inc()
            error = f"a message may have {clients.config.max_message_bytes} bytes"
            return _final(refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, error))
        try:
            submission = Submission.parse(json.loads(body))
        except (ValueError, RecursionError):
            return refuse(HTTPStatus.BAD_REQUEST, "send a JSON object")
        except Invalid as error:
            return refuse(HTTPStatus.BAD_REQUEST, str(error))
        try:
            number = await clients.submit(submission)
        except Refused as error:
            return refuse(HTTPStatus.BAD_REQUEST, str(error))
        except Full as error:
            return refuse(HTTPStatus.TOO_MANY_REQUESTS, str(error), retry_s=retry_after(None))
        except Unavailable as error:
            return refuse(HTTPStatus.SERVICE_UNAVAILABLE, str(error), retry_s=retry_after(None))
        return JSONResponse({"type": "ack", "ref": submission.ref, "id": number}, headers={"Cache-Control": "no-store"})


async def _body(receive: Receive, limit: int) -> bytes | None:
    """Return the body of a request, as far as it has arrived before a disconnect; None if it is over the limit."""
    body = b""
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > limit:
            return None
        more = message.get("more_body", False)
    return body


def _final(response: Response) -> Response:
    """Close the connection after this response: the end of the request is unknown."""
    response.headers["Connection"] = "close"
    return response
