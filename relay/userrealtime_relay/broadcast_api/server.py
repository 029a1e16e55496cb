"""The process of the broadcast API: `POST /broadcast`, the loop that writes, and the port for probes and metrics."""

from __future__ import annotations

import asyncio
import json
import logging
from http import HTTPStatus
from typing import Any, Final, Self

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from userrealtime_core import audit
from userrealtime_core.unauthenticated import Unauthenticated
from userrealtime_core.wire.broadcast import MOST_CONTENT_BYTES, Content, InvalidBroadcast, TooLarge
from userrealtime_core.wire.names import LONGEST_NAME, is_name
from userrealtime_relay.process import probes
from userrealtime_relay.process.stopping import Stopping
from userrealtime_relay.transports.body import read_body
from userrealtime_relay.transports.http import HttpServer
from userrealtime_relay.transports.request import connection_of, refuse

from .config import Config
from .metrics import Metrics
from .queue import BroadcastWriter, PendingBroadcast

MAX_BODY_BYTES: Final = 8192
"""The longest body: the largest broadcast, the id of the user, and the names of the members."""
MAX_UNAUTHENTICATED: Final = 1000
REQUEST_TIMEOUT_S: Final = 10.0
"""Seconds for the head of a request, and then for its body."""
TOO_LARGE: Final = (
    f"event and data may have {MOST_CONTENT_BYTES} bytes of JSON, and the body {MAX_BODY_BYTES}: publish it, or "
    "broadcast a reference and let the receiver fetch the content"
)

_logger = logging.getLogger(__name__)


class BroadcastApi:
    """The parts of the process. A context manager: it runs inside the block.

    Raises:
        OSError: on entering, if a port is in use.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self.metrics = Metrics()
        self.writer = BroadcastWriter(config.database_url, self.metrics)
        self.metrics.ready.set_function(lambda: self.not_ready_reason is None)

    @property
    def not_ready_reason(self) -> str | None:
        """The reason why no broadcasts are accepted; None if they are."""
        return None if self.writer.connected else "not connected to Postgres"

    @property
    def port(self) -> int:
        return self._public.port

    @property
    def health_port(self) -> int:
        return self._private.port

    async def __aenter__(self) -> Self:
        config = self._config
        http = HttpServer(
            Router([Route("/broadcast", _Endpoint(config, self.writer, self.metrics))], default=_not_found),
            unauthenticated=Unauthenticated(MAX_UNAUTHENTICATED),
            request_timeout=REQUEST_TIMEOUT_S,
        )
        self._private = await probes.listen(
            config.host, config.health_port, lambda: self.not_ready_reason, self.metrics.expose
        )
        try:
            self._public = await http.listen(config.host, config.port)
        except BaseException:
            self._private.close()
            raise
        self.working = asyncio.create_task(self.writer.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._public.close()
        self._private.close()
        self.working.cancel()
        await asyncio.wait([self.working])


class _Endpoint:
    """The ASGI application at `/broadcast`. A class, since Starlette treats functions differently."""

    def __init__(self, config: Config, writer: BroadcastWriter, metrics: Metrics) -> None:
        self._tokens = config.tokens
        self._writer = writer
        self._metrics = metrics
        self._rejected = audit.RejectedTokens()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        audit.set_client(scope.get("client"), request.headers.get("X-Forwarded-For"))
        outcome, response = await self._answer(request, receive)
        self._metrics.requests.labels(outcome).inc()
        await response(scope, receive, send)

    async def _answer(self, request: Request, receive: Receive) -> tuple[str, Response]:
        """Return the outcome and the response. The cheap checks come first, and those of the body last."""
        if request.method != "POST":
            error = {"error": "only POST is answered here"}
            return "invalid", JSONResponse(error, HTTPStatus.METHOD_NOT_ALLOWED, headers={"Allow": "POST"})
        if not self._tokens.accept(_authorization(request.headers)):
            if request.headers.get("Authorization"):
                self._rejected.record("not a token of the broadcast API", {})
            return "unauthorized", refuse(
                HTTPStatus.UNAUTHORIZED, "send the token of the broadcast API: Authorization: Bearer TOKEN"
            )
        if (unable := self._unable()) is not None:
            return unable
        length = request.headers.get("Content-Length", "")
        if length.isascii() and length.isdecimal() and (len(length) > 9 or int(length) > MAX_BODY_BYTES):
            return _too_large(TOO_LARGE)
        connection = connection_of(request.scope)
        connection.authenticated()
        try:
            body = await read_body(connection, receive, limit=MAX_BODY_BYTES, timeout_s=REQUEST_TIMEOUT_S)
        except TimeoutError:
            response = refuse(HTTPStatus.REQUEST_TIMEOUT, "the body did not arrive in time")
            response.headers["Connection"] = "close"
            return "slow", response
        if body is None:
            return _too_large(TOO_LARGE)
        try:
            broadcast = _parse(body)
        except TooLarge as error:
            return _too_large(str(error))
        except InvalidBroadcast as error:
            return "invalid", refuse(HTTPStatus.BAD_REQUEST, str(error))
        if (unable := self._unable()) is not None:  # it may have changed while the body arrived
            return unable
        self._writer.add(broadcast)
        return "accepted", JSONResponse({}, HTTPStatus.ACCEPTED, headers={"Cache-Control": "no-store"})

    def _unable(self) -> tuple[str, Response] | None:
        """Return the outcome and the response if no broadcast is accepted at the moment."""
        if not self._writer.connected:
            return "unavailable", refuse(
                HTTPStatus.SERVICE_UNAVAILABLE, "not connected to Postgres: the broadcast is dropped", retry_s=1
            )
        if self._writer.is_full:
            return "full", refuse(
                HTTPStatus.TOO_MANY_REQUESTS, "too many broadcasts wait: this one is dropped", retry_s=1
            )
        return None


def _too_large(error: str) -> tuple[str, Response]:
    response = refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, error)
    response.headers["Connection"] = "close"  # the rest of the body is not read
    return "too_large", response


def _authorization(headers: Headers) -> str:
    given = headers.getlist("Authorization")
    return given[0] if len(given) == 1 else ""


def _parse(body: bytes) -> PendingBroadcast:
    """Read the body of a request.

    Raises:
        InvalidBroadcast: it is invalid.
    """
    try:
        fields: Any = json.loads(body)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise InvalidBroadcast('send a JSON object: {"userId": "…", "event": "…", "data": …}')
    user_id, data = fields.get("userId"), fields.get("data", {})
    event: Any = fields.get("event")
    if not is_name(user_id):
        raise InvalidBroadcast(
            f'"userId" must be a string of 1 to {LONGEST_NAME} characters, without control characters'
        )
    content = Content.parse(event, data)
    # As the type jsonb writes it, with spaces: the database has the same limit.
    size = len(content.event.encode()) + len(json.dumps(data, ensure_ascii=False).encode())
    if size > MOST_CONTENT_BYTES:
        raise TooLarge(TOO_LARGE)
    return PendingBroadcast(user_id, event, content.data)


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    await JSONResponse({"error": "not found"}, HTTPStatus.NOT_FOUND)(scope, receive, send)


async def serve(config: Config) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        OSError: a port is in use.
    """
    stopping = Stopping()
    async with BroadcastApi(config) as api:
        _logger.info("listening", extra={"fields": {"port": api.port, "health_port": api.health_port}})
        await stopping.wait(api.working)
        await api.writer.drain()
    _logger.info("stopped")
