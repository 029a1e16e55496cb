"""`POST /publish` and `POST /broadcast`, for clients without a WebSocket: the same JSON objects."""

from __future__ import annotations

import asyncio
import json
import math
from abc import ABC, abstractmethod
from http import HTTPStatus
from typing import Any, Final

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from userrealtime_core.wire.broadcast import Content, InvalidBroadcast, TooLarge
from userrealtime_core.wire.rate_limit import TokenBucket
from userrealtime_core.wire.session import BROADCASTS_DISABLED, TOO_MANY_BROADCASTS
from userrealtime_core.wire.submission import Full, Invalid, Refused, Submission, Unavailable
from userrealtime_relay.delivery.clients import RESTARTING_REASON, TOO_MANY_REASON, Clients

from .body import read_client_body
from .http import Connection
from .request import connect_request_of, connection_of, parameters_of, refusal, refuse, retry_after, sender_of

TOO_MANY: Final = "too many messages: wait a second, then repeat it with the same ref"


class _Endpoint(ABC):
    """An ASGI application that receives one message. A body is read only after the token was accepted."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
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
        rejected = self._reject()
        if rejected is not None:
            return rejected
        if self._requests >= clients.config.max_connections:
            clients.metrics.limited.labels("connections").inc()
            return refuse(HTTPStatus.SERVICE_UNAVAILABLE, TOO_MANY_REASON, retry_s=retry_after(None))
        connection.authenticated()
        self._requests += 1
        try:
            return await self._read(scope, connection, receive)
        finally:
            self._requests -= 1

    async def _read(self, scope: Scope, connection: Connection, receive: Receive) -> Response:
        clients = self._clients
        body = await read_client_body(connection, receive, clients, clients.config.max_message_bytes)
        if isinstance(body, Response):
            return body
        try:
            fields = json.loads(body)
        except (ValueError, RecursionError):
            return refuse(HTTPStatus.BAD_REQUEST, "send a JSON object")
        return await self._process(scope, fields)

    @abstractmethod
    def _reject(self) -> Response | None:
        """Return the response to a request whose body is not read, None if it is."""

    @abstractmethod
    async def _process(self, scope: Scope, fields: Any) -> Response:
        """Process the message, a JSON value, and return the response."""


class Publishing(_Endpoint):
    """The ASGI application at `/publish`."""

    def __init__(self, clients: Clients) -> None:
        super().__init__(clients)
        # Shared by all requests: a client may use a new connection for each one.
        self._allowance = TokenBucket(clients.config.max_messages_per_second, -math.inf)

    def _reject(self) -> Response | None:
        if self._allowance.take(asyncio.get_running_loop().time()):
            return None
        self._clients.metrics.limited.labels("messages").inc()
        return refuse(HTTPStatus.TOO_MANY_REQUESTS, TOO_MANY, retry_s=1)

    async def _process(self, scope: Scope, fields: Any) -> Response:
        try:
            submission = Submission.parse(fields)
            number = await self._clients.submit(submission)
        except (Invalid, Refused) as error:
            return refuse(HTTPStatus.BAD_REQUEST, str(error))
        except Full as error:
            return refuse(HTTPStatus.TOO_MANY_REQUESTS, str(error), retry_s=retry_after(None))
        except Unavailable as error:
            return refuse(HTTPStatus.SERVICE_UNAVAILABLE, str(error), retry_s=retry_after(None))
        return JSONResponse({"type": "ack", "ref": submission.ref, "id": number}, headers={"Cache-Control": "no-store"})


class Broadcasting(_Endpoint):
    """The ASGI application at `/broadcast`. Its limit is that of the broadcasts over WebSockets."""

    def _reject(self) -> Response | None:
        allowance = self._clients.broadcast_allowance
        if allowance is None:
            self._count("disabled")
            return refuse(HTTPStatus.FORBIDDEN, BROADCASTS_DISABLED)
        if not allowance.take(asyncio.get_running_loop().time()):
            self._count("limited")
            return refuse(HTTPStatus.TOO_MANY_REQUESTS, TOO_MANY_BROADCASTS, retry_s=1)
        return None

    async def _process(self, scope: Scope, fields: Any) -> Response:
        if not isinstance(fields, dict):
            self._count("invalid")
            return refuse(HTTPStatus.BAD_REQUEST, "send a JSON object")
        try:
            content = Content.parse(fields.get("event"), fields.get("data", {}))
        except InvalidBroadcast as error:
            self._count("invalid")
            too_large = isinstance(error, TooLarge)
            return refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE if too_large else HTTPStatus.BAD_REQUEST, str(error))
        self._clients.broadcast(content, sender_of(parameters_of(scope)))
        return JSONResponse({}, HTTPStatus.ACCEPTED, headers={"Cache-Control": "no-store"})

    def _count(self, outcome: str) -> None:
        self._clients.metrics.client_broadcasts.labels(outcome).inc()
