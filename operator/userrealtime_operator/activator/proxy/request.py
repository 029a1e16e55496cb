"""Reads one HTTP request, and writes it again for the pod. No I/O.

A proxy in front may send the requests of several users over one connection, and two parsers may disagree about where
a request ends. Therefore h11 parses the first request of a connection strictly, and the pod receives only that request,
written again from its parts, with a single length. The bytes after it are discarded.

The head and the body are read in two steps: the body is parsed only for a client whose token was accepted, and in a
limited number of pieces, since h11 needs about 33 µs for each chunk, even for a chunk of one byte.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qsl

import h11

from userrealtime_core.auth.connection_identity import HEADER
from userrealtime_core.wire.connect_request import SUBPROTOCOL, ConnectRequest

MAX_HEAD_BYTES: Final = 16 << 10
MAX_BODY_BYTES: Final = 1 << 20
"""The largest message that `spec.limits` can allow."""
MAX_BODY_PIECES: Final = 2048
"""The limit of pieces of a body: 512 bytes each, on average, for the longest body."""
TRANSPORTS: Final = {"/ws": b"GET", "/sse": b"GET", "/poll": b"GET", "/publish": b"POST"}
BROADCAST: Final = "/broadcast"
"""The path for broadcasts of clients, which wake only a parked user: they are for connected clients."""
_WEBSOCKET: Final = ()
"""In place of methods: the path has a WebSocket only."""
PROTOCOLS: Final = (
    ("actioncable", re.compile("/cable"), _WEBSOCKET),
    ("durable-streams", re.compile("/streams/log"), (b"GET", b"HEAD")),
    ("pusher", re.compile("/app/[^/]+"), _WEBSOCKET),
    ("pusher", re.compile("/pusher/(user-)?auth"), (b"POST",)),
    ("socketio", re.compile(r"/socket\.io/?"), (b"GET", b"POST")),
    ("supabase", re.compile("/realtime/v1/websocket"), _WEBSOCKET),
    ("supabase", re.compile("/realtime/v1/api/broadcast(/.+)?"), (b"POST",)),
)
"""The paths of the protocols of other systems, and their methods."""
# Hop-by-hop fields (RFC 9110, section 7.6.1), and the fields that frame a body.
_HOP_BY_HOP: Final = frozenset(
    b"connection keep-alive proxy-connection te trailer transfer-encoding upgrade content-length expect".split()
)
_IDENTITY: Final = HEADER.lower().encode()


class BadRequest(Exception):
    """A request that is not forwarded, with the status of the response."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Request:
    """A request. Its body is empty until it was read.

    Raises:
        BadRequest: the target is not a path.
    """

    def __init__(self, head: h11.Request) -> None:
        target = head.target.decode("latin-1")
        if not target.startswith("/"):
            raise BadRequest(HTTPStatus.BAD_REQUEST, "the target of the request must be a path")
        self.path, _, self.query = target.partition("?")
        self.body = b""
        """The body to forward."""
        self.greeted = False
        """Whether the client has received the pod's first message from the activator, while it was parked."""
        self.may_wake = True
        """Whether the request wakes the user. Otherwise, it is forwarded only if there is a pod."""
        self.identity = ""
        """For the pod, if the activator has given the connection an identity; see `core.auth.connection_identity`."""
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
        """Whether the request may be sent again if no response was received."""
        return self.method in (b"GET", b"HEAD")

    @property
    def host(self) -> str:
        return next(iter(self.values(b"host")), "")

    @property
    def is_websocket(self) -> bool:
        """Whether the request is the handshake of a WebSocket."""
        wanted = [token.strip().lower() for value in self.values(b"connection") for token in value.split(",")]
        upgrades = [value.strip().lower() for value in self.values(b"upgrade")]
        return self._head.method == b"GET" and "upgrade" in wanted and upgrades == ["websocket"] and not self.has_body

    @property
    def parameters(self) -> dict[str, str]:
        """The parameters in the query."""
        try:
            return dict(parse_qsl(self.query, keep_blank_values=True, max_num_fields=32))
        except ValueError:
            return {}  # the pod rejects it for the same reason

    @property
    def headers(self) -> dict[str, str]:
        """The headers, by names in lower case; of several with the same name, the last one."""
        return {name.decode("latin-1"): value.decode("latin-1") for name, value in self._head.headers}

    @property
    def offered_subprotocols(self) -> list[str]:
        """The subprotocols that the client offers."""
        return [part.strip() for value in self.values(b"sec-websocket-protocol") for part in value.split(",")]

    def protocol(self, base_path: str) -> str | None:
        """Return the protocol of another system that the path belongs to, None if there is none."""
        found = self._protocol(base_path)
        return found and found[0]

    def _protocol(self, base_path: str) -> tuple[str, tuple[bytes, ...]] | None:
        for path in (self.path.removeprefix(base_path), self.path):
            for name, pattern, methods in PROTOCOLS:
                if pattern.fullmatch(path):
                    return name, methods
        return None

    def values(self, name: bytes) -> list[str]:
        """Return all values of a header. `name` is in lower case."""
        return [value.decode("latin-1") for key, value in self._head.headers if key == name]

    def endpoint_error(
        self, base_path: str, protocols: Collection[str] = (), *, parked: bool = False
    ) -> tuple[HTTPStatus, str] | None:
        """Return the error that the relay would respond with before it checks the token, None if there is none.

        Args:
            protocols: those of other systems that the user's relay serves.
            parked: the user has no pod, but connected clients.
        """
        protocol = self._protocol(base_path)
        if protocol is not None and protocol[0] in protocols:
            return self._protocol_error(*protocol)
        if BROADCAST in (self.path, self.path.removeprefix(base_path)):
            if not parked:
                return HTTPStatus.SERVICE_UNAVAILABLE, "the user sleeps: no client is connected that could receive it"
            method: bytes | None = b"POST"
        else:
            method = TRANSPORTS.get(self.path.removeprefix(base_path)) or TRANSPORTS.get(self.path)
        if method is None:
            return HTTPStatus.NOT_FOUND, "not found"
        if method != self._head.method:
            return HTTPStatus.METHOD_NOT_ALLOWED, f"only {method.decode()} is allowed"
        if method == b"GET" and self.has_body:
            return HTTPStatus.BAD_REQUEST, "a GET request must not have a body"
        if self.is_websocket and not self.path.endswith("/ws"):
            return HTTPStatus.NOT_FOUND, "no WebSocket endpoint at this path"
        return None

    def _protocol_error(self, protocol: str, methods: tuple[bytes, ...]) -> tuple[HTTPStatus, str] | None:
        """Return the error at a path of another system's protocol, None if there is none."""
        if self.is_websocket and (not methods or protocol == "socketio"):
            return None
        if not methods:
            return HTTPStatus.NOT_FOUND, "not found"
        if protocol == "socketio":
            return None  # its errors have a code; see `polling.check`
        if self.method not in methods:
            allowed = " and ".join(method.decode() for method in methods)
            return HTTPStatus.METHOD_NOT_ALLOWED, f"only {allowed} is allowed"
        if self.method != b"POST" and self.has_body:
            return HTTPStatus.BAD_REQUEST, f"a {self.method.decode()} request must not have a body"
        if self.is_websocket:
            return HTTPStatus.NOT_FOUND, "no WebSocket endpoint at this path"
        return None

    def opening(self, *, query_token: bool) -> ConnectRequest:
        """Return the client's token and position, parsed by the relay's code."""
        last_event_id = self.values(b"last-event-id")
        if self.path.endswith("/poll"):
            last_event_id.insert(0, self.parameters.get("cursor", ""))
        return ConnectRequest.parse(
            query=self.query,
            authorization=self.values(b"authorization"),
            last_event_id=last_event_id,
            subprotocols=self.offered_subprotocols if self.is_websocket else (),
            query_token=query_token,
        )

    def resumed(self, token: str, cursor: int, epoch: str) -> Request:
        """Return the request of the same client with another token, at another position, which it was greeted with."""
        left_out = (b"authorization", b"last-event-id", b"sec-websocket-protocol")
        headers = [(name, value) for name, value in self._head.headers if name not in left_out]
        offers = SUBPROTOCOL in self.offered_subprotocols
        headers += [(b"sec-websocket-protocol", SUBPROTOCOL.encode())] if offers else []
        headers += [(b"authorization", b"Bearer " + token.encode()), (b"last-event-id", f"{cursor}:{epoch}".encode())]
        request = Request(h11.Request(method=self._head.method, target=self._head.target, headers=headers))
        request.greeted = True
        return request

    def serialize(self, *, without: Iterable[bytes] = ()) -> bytes:
        """Return the request for the pod, without the headers `without`, which are in lower case."""
        left_out = {*_HOP_BY_HOP, *without, _IDENTITY}
        # A `Connection` header names further hop-by-hop headers. The headers that route or authorize the request stay.
        kept = {b"host", b"authorization", b"last-event-id", b"content-type", b"origin"}
        named = {part.strip().lower().encode("latin-1") for v in self.values(b"connection") for part in v.split(",")}
        left_out |= {name for name in named if name not in kept and not name.startswith(b"sec-websocket-")}
        lines = [self._head.method + b" " + self._head.target + b" HTTP/1.1"]
        lines += [name + b": " + value for name, value in self._head.headers if name not in left_out]
        if self.identity:
            lines.append(_IDENTITY + b": " + self.identity.encode())
        if self.is_websocket:
            lines += [b"connection: Upgrade", b"upgrade: websocket"]
        else:
            lines.append(b"connection: close")
        if self._head.method == b"POST":
            lines.append(b"content-length: %d" % len(self.body))
        return b"\r\n".join([*lines, b"", self.body])


class RequestReader:
    """Parses a connection's first request: call `read_head` until it returns a request, then `read_body`."""

    def __init__(self) -> None:
        self._connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._body = bytearray()
        self._pieces = 0

    def read_head(self, data: bytes) -> Request | None:
        """Parse received data, b"" for the end of the connection. Returns the request once its head is complete.

        Raises:
            BadRequest: the head is invalid or too large.
        """
        match self._next(data):
            case None:
                return None
            case h11.Request() as head:
                return Request(head)
            case _:
                raise BadRequest(HTTPStatus.BAD_REQUEST, "the connection ended before the request was complete")

    def read_body(self, data: bytes | None = None) -> bytes | None:
        """Parse data after the head, None for the data that came with it. Returns the body once it is complete.

        Raises:
            BadRequest: the body is invalid, too large, or in too many pieces.
        """
        event = self._next(data)
        while isinstance(event, h11.Data):
            self._body += event.data
            self._pieces += 1
            if len(self._body) > MAX_BODY_BYTES:
                raise BadRequest(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the body is too long")
            if self._pieces > MAX_BODY_PIECES:
                raise BadRequest(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the body has too many pieces")
            event = self._next()
        if event is None:
            return None
        if not isinstance(event, h11.EndOfMessage):
            raise BadRequest(HTTPStatus.BAD_REQUEST, "the connection ended before the request was complete")
        return bytes(self._body)

    def _next(self, data: bytes | None = None) -> Any:
        """Return the next event, None if more data is needed."""
        try:
            if data is not None:
                self._connection.receive_data(data)
            event = self._connection.next_event()
        except h11.RemoteProtocolError as error:
            raise BadRequest(HTTPStatus(error.error_status_hint), "the request is malformed") from None
        return None if event is h11.NEED_DATA else event

    @property
    def rest(self) -> bytes:
        """The bytes after the head, and after the part of the body that was read."""
        return self._connection.trailing_data[0]
