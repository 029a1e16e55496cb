"""The private port: probes and metrics, one request for each connection.

Requests are parsed by websockets, which every relay has imported. An HTTP server would need memory in each relay, and
CPU when it starts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Final, cast

from websockets.datastructures import Headers
from websockets.exceptions import SecurityError
from websockets.http11 import Request, Response
from websockets.streams import StreamReader

from userrealtime_core import probes
from userrealtime_core.metrics import CONTENT_TYPE
from userrealtime_core.unauthenticated import Unauthenticated

from .listener import Listener

MAX_HEAD: Final = 16 << 10
"""Bytes of a request."""
JSON: Final = "application/json"

_Answer = tuple[HTTPStatus, str, bytes]
"""The status, the type of the content, and the content."""


async def listen(
    host: str, port: int, not_ready_reason: Callable[[], str | None], metrics: Callable[[], bytes]
) -> Listener:
    """Serve `/health`, `/ready` and `/metrics`.

    Args:
        not_ready_reason: returns why the process should get no work; None if it may.
        metrics: returns the text of the metrics.

    Raises:
        OSError: the port is in use.
    """

    def health() -> _Answer:
        status, body = probes.health()
        return status, JSON, body

    def ready() -> _Answer:
        status, body = probes.ready(not_ready_reason())
        return status, JSON, body

    def expose() -> _Answer:
        return HTTPStatus.OK, CONTENT_TYPE, metrics()

    answers = {probes.HEALTH: health, probes.READY: ready, probes.METRICS: expose}
    budget = Unauthenticated(probes.CONNECTIONS)
    connections: set[_Connection] = set()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(answers, budget, connections), host, port)
    return Listener(server, lambda: (each.transport for each in connections))


class _Connection(asyncio.Protocol):
    """A connection, which has a limited time for one request and its response."""

    transport: asyncio.Transport

    def __init__(
        self,
        answers: Mapping[str, Callable[[], _Answer]],
        budget: Unauthenticated,
        connections: set[_Connection],
    ) -> None:
        self._answers = answers
        self._budget = budget
        self._connections = connections
        self._reader = StreamReader()
        self._request = Request.parse(self._reader.read_line)
        self._received = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._connections.add(self)
        self._budget.enter(self, self.transport.abort)
        self._timer = asyncio.get_running_loop().call_later(probes.TIMEOUT_S, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        self._budget.leave(self)
        self._connections.discard(self)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._received += len(data)
        if self._received > MAX_HEAD:
            self._send(_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the request is too large"))
            return
        self._reader.feed_data(data)
        try:
            next(self._request)
        except StopIteration as end:
            self._send(self._answer(end.value))
        except (EOFError, ValueError, NotImplementedError, SecurityError):
            self._send(_error(HTTPStatus.BAD_REQUEST, "this is no request without a body"))

    def _answer(self, request: Request) -> _Answer:
        answer = self._answers.get(request.path.partition("?")[0])
        if answer is None:
            return _error(HTTPStatus.NOT_FOUND, "not found")
        if request.method != "GET":
            return _error(HTTPStatus.METHOD_NOT_ALLOWED, "only GET is answered here")
        return answer()

    def _send(self, answer: _Answer) -> None:
        status, content_type, body = answer
        headers = Headers([("Connection", "close"), ("Content-Length", str(len(body))), ("Content-Type", content_type)])
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            headers["Allow"] = "GET"
        self.transport.write(Response(status.value, status.phrase, headers, body).serialize())
        self.transport.close()


def _error(status: HTTPStatus, error: str) -> _Answer:
    return status, JSON, b'{"error":"%b"}' % error.encode()
