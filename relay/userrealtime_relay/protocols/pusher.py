"""Pusher: its WebSocket, and the endpoints where its clients get the authorization of a channel or of the user.

A browser sends a token to such an endpoint only, in the header `Authorization`. The answer contains the same token, and
the client passes it to the WebSocket. So the endpoints have no state, and any pod of the user will do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qsl

from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from userrealtime_core.protocols.pusher import ENVELOPE, PRESENCE, BadSubscription, Pusher, channel_of, resume_of
from userrealtime_core.wire.connect_request import Resume
from userrealtime_core.wire.session import UNAUTHORIZED
from userrealtime_relay.delivery.clients import TOO_MANY_REASON, Clients
from userrealtime_relay.transports.body import read_client_body
from userrealtime_relay.transports.request import connect_request_of, connection_of, refusal, refuse, retry_after

CHANNELS: Final = "/pusher/auth"
USERS: Final = "/pusher/user-auth"
MAX_FORM_BYTES: Final = 8 << 10
MAX_FIELDS: Final = 32

DIALECTS: Final = {"/app/*": Pusher}


def routes(clients: Clients) -> list[Route]:
    """Return the routes of the endpoints."""
    endpoint = AuthorizationEndpoint(clients)
    return [Route(path, endpoint) for path in (*clients.config.paths(CHANNELS), *clients.config.paths(USERS))]


class AuthorizationEndpoint:
    """The ASGI application at both paths. A body is read only after the token was accepted."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._requests = 0  # that are authenticated and not answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._answer(scope, receive)
        await response(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive) -> Response:
        clients, connection = self._clients, connection_of(scope)
        if scope["method"] != "POST":
            error = {"error": "only POST is answered here"}
            return JSONResponse(error, HTTPStatus.METHOD_NOT_ALLOWED, headers={"Allow": "POST"})
        request = connect_request_of(scope, clients.config)._replace(resume=Resume())
        # A relay that is draining answers as well: a client may have its WebSocket to another one already, and does
        # not repeat the request.
        session = await clients.authenticate(request)
        if session.closing is not None or request.token is None:
            return refusal(session.closing or UNAUTHORIZED)
        if self._requests >= clients.config.max_connections:
            clients.metrics.limited.labels("connections").inc()
            return refuse(HTTPStatus.SERVICE_UNAVAILABLE, TOO_MANY_REASON, retry_s=retry_after(None))
        connection.authenticated()
        self._requests += 1
        try:
            body = await read_client_body(connection, receive, clients, MAX_FORM_BYTES)
        finally:
            self._requests -= 1
        if isinstance(body, Response):
            return body
        try:
            fields = dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS))
        except ValueError:
            return refuse(HTTPStatus.BAD_REQUEST, "send a form, as a client of Pusher does")
        try:
            answer = authorization(request.token, clients.config.user_id, fields, user=scope["path"].endswith(USERS))
        except BadSubscription as error:
            return refuse(HTTPStatus(error.status), str(error))
        return JSONResponse(answer, headers={"Cache-Control": "no-store"})


def authorization(token: str, user_id: str, fields: Mapping[str, str], *, user: bool) -> Mapping[str, str]:
    """Return the authorization of a channel, or of the user for `pusher:signin`.

    Args:
        token: a valid token.
        fields: the form of the request. `last_event_id` is the position of the client, and may be empty. With it,
            `envelope` requests the position of each event.

    Raises:
        BadSubscription: it cannot be given.
    """
    auth, position = f"urt:{token}", fields.get("last_event_id")
    if position is not None:
        resume_of(position)
        auth += f";{position}"
        if fields.get(ENVELOPE):
            auth += f";{ENVELOPE}"
    if user:
        return {"auth": auth, "user_data": json.dumps({"id": user_id})}
    name = fields.get("channel_name", "")
    channel_of(name)
    if not name.startswith(PRESENCE):
        return {"auth": auth}
    return {"auth": auth, "channel_data": json.dumps({"user_id": user_id, "user_info": {}})}
