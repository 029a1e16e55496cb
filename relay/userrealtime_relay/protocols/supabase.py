"""Supabase Realtime: its WebSocket, and the endpoints for broadcasts over HTTP.

realtime-js uses the second one for `httpSend`, and the first one for `send` while its channel is not joined. As over
the WebSocket, a broadcast is stored as a message to the application where the clients of the user may not send any.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final

from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from userrealtime_core.protocols.cutting import is_channel, name_in_log
from userrealtime_core.protocols.supabase import NO_EVENT, PREFIX, Supabase
from userrealtime_core.wire.broadcast import Content, InvalidBroadcast, TooLarge
from userrealtime_core.wire.session import TOO_MANY_BROADCASTS
from userrealtime_relay.delivery.clients import Clients
from userrealtime_relay.transports.publish import TOO_MANY, Broadcasting, Publishing
from userrealtime_relay.transports.request import refuse

MESSAGES: Final = "/realtime/v1/api/broadcast"
MESSAGE: Final = f"{MESSAGES}/{{topic}}/events/{{event:path}}"
MAX_MESSAGES: Final = 100
"""Messages of one request."""

DIALECTS: Final = {"/realtime/v1/websocket": Supabase}


def routes(clients: Clients) -> list[Route]:
    """Return the routes of the endpoints."""
    sends = clients.broadcast_allowance is not None
    endpoint = _Post(SendingEndpoint(clients) if sends else StoringEndpoint(clients))
    return [Route(path, endpoint) for path in (*clients.config.paths(MESSAGES), *clients.config.paths(MESSAGE))]


class _Post:
    """Restricts an application to POST. A class, since Starlette treats functions differently."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["method"] != "POST":
            error = {"error": "only POST is answered here"}
            app = JSONResponse(error, HTTPStatus.METHOD_NOT_ALLOWED, headers={"Allow": "POST"})
        await app(scope, receive, send)


class SendingEndpoint(Broadcasting):
    """The ASGI application at both paths. All clients of the user receive the broadcasts, also the sender."""

    async def _process(self, scope: Scope, fields: Any) -> Response:
        try:
            messages = _messages(scope, fields)
            contents = [Content.parse(name_in_log(channel, event), data) for channel, event, data in messages]
        except InvalidBroadcast as error:
            self._count("invalid")
            return _refusal(error)
        allowance, now = self._clients.broadcast_allowance, asyncio.get_running_loop().time()
        # The first message was counted before the body was read. Either all are sent, or none.
        if allowance is None or not all(allowance.take(now) for _ in contents[1:]):
            self._count("limited")
            return refuse(HTTPStatus.TOO_MANY_REQUESTS, TOO_MANY_BROADCASTS, retry_s=1)
        for content in contents:
            self._clients.broadcast(content, None)
        return _accepted()


class StoringEndpoint(Publishing):
    """The ASGI application at both paths, where the clients of the user may not send broadcasts."""

    async def _process(self, scope: Scope, fields: Any) -> Response:
        try:
            messages = _messages(scope, fields)
        except InvalidBroadcast as error:
            return _refusal(error)
        if not all(self._allowance.take(asyncio.get_running_loop().time()) for _ in messages[1:]):
            self._clients.metrics.limited.labels("messages").inc()
            return refuse(HTTPStatus.TOO_MANY_REQUESTS, TOO_MANY, retry_s=1)
        ref = f"supabase:{secrets.token_hex(12)}"
        for number, (_, event, data) in enumerate(messages):
            response = await super()._process(scope, {"ref": f"{ref}:{number}", "event": event, "data": data})
            if response.status_code != HTTPStatus.OK:
                return response
        return _accepted()


def _messages(scope: Scope, fields: Any) -> Sequence[tuple[str, str, Any]]:
    """Return the messages of a request, each with a channel, a name and its data.

    Raises:
        InvalidBroadcast: there are none, or one is invalid.
    """
    parameters = scope["path_params"]
    if parameters:
        return [_message({**parameters, "payload": fields})]
    messages = fields.get("messages") if isinstance(fields, dict) else None
    if not isinstance(messages, list) or not 0 < len(messages) <= MAX_MESSAGES:
        raise InvalidBroadcast(f'send an object with a list of 1 to {MAX_MESSAGES} "messages"')
    return list(map(_message, messages))


def _message(message: Any) -> tuple[str, str, Any]:
    topic, event = (message.get("topic"), message.get("event")) if isinstance(message, dict) else (None, None)
    channel = topic.removeprefix(PREFIX) if isinstance(topic, str) else ""
    if not is_channel(channel):
        raise InvalidBroadcast("no channel can have this topic")
    if not isinstance(event, str) or not event:
        raise InvalidBroadcast(NO_EVENT)
    return channel, event, message.get("payload", {})


def _refusal(error: InvalidBroadcast) -> Response:
    too_large = isinstance(error, TooLarge)
    return refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE if too_large else HTTPStatus.BAD_REQUEST, str(error))


def _accepted() -> Response:
    return JSONResponse({}, HTTPStatus.ACCEPTED, headers={"Cache-Control": "no-store"})
