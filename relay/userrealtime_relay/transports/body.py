"""The body of a request, which is read only after its token was accepted."""

from __future__ import annotations

import asyncio
from http import HTTPStatus

from starlette.responses import Response
from starlette.types import Receive

from userrealtime_relay.delivery.clients import Clients

from .http import Connection
from .request import refuse


async def read_body(connection: Connection, receive: Receive, *, limit: int, timeout_s: float) -> bytes | None:
    """Return the body of a request, as far as it has arrived before a disconnect; None if it has more bytes than this.

    Raises:
        TimeoutError: it did not arrive in time.
    """
    connection.read_body()
    body = b""
    more = True
    async with asyncio.timeout(timeout_s):
        while more:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > limit:
                return None
            more = message.get("more_body", False)
    return body


async def read_client_body(connection: Connection, receive: Receive, clients: Clients, limit: int) -> bytes | Response:
    """Return the body of a client's request.

    Returns:
        the response to a body that is longer than `limit` bytes, or does not arrive within the authentication timeout.
    """
    try:
        body = await read_body(connection, receive, limit=limit, timeout_s=clients.config.auth_timeout)
    except TimeoutError:
        clients.metrics.limited.labels("request_time").inc()
        return _final(refuse(HTTPStatus.REQUEST_TIMEOUT, "the body did not arrive in time"))
    if body is None:
        clients.metrics.limited.labels("message_bytes").inc()
        return _final(refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a message may have {limit} bytes"))
    return body


def _final(response: Response) -> Response:
    """Close the connection after this response: the end of the request is unknown."""
    response.headers["Connection"] = "close"
    return response
