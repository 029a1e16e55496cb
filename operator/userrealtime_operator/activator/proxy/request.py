"""One HTTP request, read and written anew. No I/O.

A proxy in front may keep a connection open and send the requests of several users over it, and two readers may
disagree where one request ends. So h11 reads a connection's first request strictly, and the pod gets that one alone,
written anew from its parts, with its length said in one way. Nothing that comes after it is looked at.

The head and the body are read in two steps: the body is parsed only for a client whose token was accepted, and in a
limited number of pieces, since h11 needs about 33 µs for each chunk, be it a single byte.
"""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, Final

import h11

from userrealtime_core.wire.connect_request import ConnectRequest

MAX_HEAD_BYTES: Final = 16 << 10
MAX_BODY_BYTES: Final = 1 << 20
"""The largest message that a resource can allow."""
MAX_BODY_PIECES: Final = 2048
"""Pieces in which a body may arrive: 512 bytes each, on average, of the longest body."""
TRANSPORTS: Final = {"/ws": b"GET", "/sse": b"GET", "/poll": b"GET", "/publish": b"POST"}
# RFC 9110, 7.6.1, and the fields that frame a body: these are between two ends of one connection.
_OF_CONNECTION: Final = frozenset(
    b"connection keep-alive proxy-connection te trailer transfer-encoding upgrade content-length expect".split()
)


class BadRequest(Exception):
    """A request that is not passed on, with the status to answer."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


class Request:
    """A request, first without its body.

    Raises:
        BadRequest: its target is no path.
    """

    def __init__(self, head: h11.Request) -> None:
        target = head.target.decode("latin-1")
        if not target.startswith("/"):
            raise BadRequest(HTTPStatus.BAD_REQUEST, "the request's target must be a path")
        self.path, _, self.query = target.partition("?")
        self.body = b""
        """What is passed on; set once it was read."""
        self._head = head

    @property
    def has_body(self) -> bool:
        """Whether a body follows the head."""
        lengths = self.values(b"content-length")
        return bool(self.values(b"transfer-encoding") or any(length.strip("0") for length in lengths))

    @property
    def method(self) -> bytes:
        method: bytes = self._head.method
        return method

    @property
    def is_repeatable(self) -> bool:
        """Whether it may be sent again when nobody has answered it."""
        return self.method == b"GET"

    @property
    def host(self) -> str:
        return next(iter(self.values(b"host")), "")

    @property
    def is_websocket(self) -> bool:
        """Whether it asks to become a WebSocket."""
        wanted = [token.strip().lower() for value in self.values(b"connection") for token in value.split(",")]
        upgrades = [value.strip().lower() for value in self.values(b"upgrade")]
        return self._head.method == b"GET" and "upgrade" in wanted and upgrades == ["websocket"] and not self.has_body

    def values(self, name: bytes) -> list[str]:
        """All values of a header, which is named in lower case."""
        return [value.decode("latin-1") for key, value in self._head.headers if key == name]

    def refusal(self, base_path: str) -> tuple[HTTPStatus, str] | None:
        """What the relay would answer without a look at the token, if so: there, nothing wakes it."""
        method = TRANSPORTS.get(self.path.removeprefix(base_path)) or TRANSPORTS.get(self.path)
        if method is None:
            return HTTPStatus.NOT_FOUND, "not found"
        if method != self._head.method:
            return HTTPStatus.METHOD_NOT_ALLOWED, f"only {method.decode()} is answered here"
        if method == b"GET" and self.has_body:
            return HTTPStatus.BAD_REQUEST, "a GET request has no body here"
        return None

    def opening(self, *, query_token: bool) -> ConnectRequest:
        """What it says of its client, read as the relay reads it."""
        subprotocols = [part.strip() for value in self.values(b"sec-websocket-protocol") for part in value.split(",")]
        return ConnectRequest.parse(
            query=self.query,
            authorization=self.values(b"authorization"),
            last_event_id=self.values(b"last-event-id"),
            subprotocols=subprotocols if self.is_websocket else (),
            query_token=query_token,
        )

    def written(self, *, without: Iterable[bytes] = ()) -> bytes:
        """The request for the pod, alone on its connection. `without`: headers to leave out, in lower case."""
        left_out = {*_OF_CONNECTION, *without}
        # What a `Connection` header names is between two ends as well, but what leads to the user or lets in stays.
        kept = {b"host", b"authorization", b"last-event-id", b"content-type", b"origin"}
        named = {part.strip().lower().encode("latin-1") for v in self.values(b"connection") for part in v.split(",")}
        left_out |= {name for name in named if name not in kept and not name.startswith(b"sec-websocket-")}
        lines = [self._head.method + b" " + self._head.target + b" HTTP/1.1"]
        lines += [name + b": " + value for name, value in self._head.headers if name not in left_out]
        if self.is_websocket:
            lines += [b"connection: Upgrade", b"upgrade: websocket"]
        else:
            lines.append(b"connection: close")
        if self._head.method == b"POST":
            lines.append(b"content-length: %d" % len(self.body))
        return b"\r\n".join([*lines, b"", self.body])


class Reader:
    """Reads a connection's first request from its bytes: `read_head` until it returns one, then `read_body`."""

    def __init__(self) -> None:
        self._connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._body = bytearray()
        self._pieces = 0

    def read_head(self, data: bytes) -> Request | None:
        """Take what came, b"" for the end; returns the request, without its body, once its head is complete.

        Raises:
            BadRequest: it is none, or too large.
        """
        match self._next(data):
            case None:
                return None
            case h11.Request() as head:
                return Request(head)
            case _:
                raise BadRequest(HTTPStatus.BAD_REQUEST, "the connection ended before the request")

    def read_body(self, data: bytes | None = None) -> bytes | None:
        """Take what came after the head, b"" for the end, None if nothing did; returns the body once it is complete.

        Raises:
            BadRequest: it is none, too large, or in too many pieces.
        """
        event = self._next(data)
        while isinstance(event, h11.Data):
            self._body += event.data
            self._pieces += 1
            if len(self._body) > MAX_BODY_BYTES:
                raise BadRequest(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the body is too long")
            if self._pieces > MAX_BODY_PIECES:
                raise BadRequest(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the body comes in too many pieces")
            event = self._next()
        if event is None:
            return None
        if not isinstance(event, h11.EndOfMessage):
            raise BadRequest(HTTPStatus.BAD_REQUEST, "the connection ended before the request")
        return bytes(self._body)

    def _next(self, data: bytes | None = None) -> Any:
        """The next event; None if more data is needed."""
        try:
            if data is not None:
                self._connection.receive_data(data)
            event = self._connection.next_event()
        except h11.RemoteProtocolError as error:
            raise BadRequest(HTTPStatus(error.error_status_hint), "the request cannot be read") from None
        return None if event is h11.NEED_DATA else event

    @property
    def rest(self) -> bytes:
        """What came after the head, and after what was read of the body."""
        return self._connection.trailing_data[0]
