"""The body of a request, which is read only after its token was accepted."""

from __future__ import annotations

import asyncio
from http import HTTPStatus

from starlette.responses import Response
from starlette.types import Receive

from userrealtime_relay.delivery.clients import Clients

from .http import Connection
from .request import refuse


async def read_body(connection: Connection, receive: Receive, clients: Clients, limit: int) -> bytes | Response:
    """Return the body of a request, as far as it has arrived before a disconnect.

    Returns:
        the response to a body that is longer than `limit` bytes, or does not arrive within the authentication timeout.
    """
    connection.read_body()
    try:
        async with asyncio.timeout(clients.config.auth_timeout):
            body = await _body(receive, limit)
    except TimeoutError:
        clients.metrics.limited.labels("request_time").inc()
        return _final(refuse(HTTPStatus.REQUEST_TIMEOUT, "the body did not arrive in time"))
    if body is None:
        clients.metrics.limited.labels("message_bytes").inc()
        return _final(refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a message may have {limit} bytes"))
    return body


async def _body(receive: Receive, limit: int) -> bytes | None:
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
