"""Long polling of Socket.IO (Engine.IO): the responses of the activator. No I/O.

A session consists of many requests, and each one may reach another activator. Only one has the token: the first POST.
So the id of a session needs no state. The first poll waits for the pod, and the POST wakes the user. Both reach the
pod with the same identity, and the first of them begins the session there.

    GET without sid      the activator answers, with the id of a new session
    POST with the token  wakes the user, and is forwarded to the pod
    GET and WebSocket    wait for the pod, for a limited time; they wake no user
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Final

from userrealtime_core.protocols.dialect import Credential, Opening
from userrealtime_core.protocols.engineio import (
    BAD_REQUEST,
    CONTENT_TYPE,
    EARLY_BYTES,
    UNKNOWN_SESSION,
    UNKNOWN_SESSION_TEXT,
    identity_in,
    new_sid,
    request_error,
)
from userrealtime_core.protocols.socketio import SocketIO
from userrealtime_core.protocols.socketio_packets import CLOSE, NOOP, SEPARATOR, open_packet, split
from userrealtime_core.wire.frames import payloads

from .dialogue import Dialogue
from .request import Request
from .responses import Headers, Rejected, complete_response

HOLD_S: Final = 2.0
"""Seconds after which a poll that waits for the pod is answered without a message. The next one may reach the activator
that knows why the token was rejected."""


def is_poll(request: Request) -> bool:
    """Return whether a request at the path of Socket.IO belongs to a session of long polling."""
    return not request.is_websocket or "sid" in request.parameters


def check(request: Request, cors: Headers) -> None:
    """Return if a request of long polling is valid.

    Raises:
        Rejected: it is not.
    """
    if request.is_websocket:
        return
    error = request_error(request.method.decode(), request.parameters, has_body=request.has_body)
    if error is not None:
        raise failure(*error, cors)
    if request.values(b"transfer-encoding"):
        raise Rejected(HTTPStatus.LENGTH_REQUIRED, "send messages with Content-Length")


def check_early_body(request: Request) -> None:
    """Return if the body of a session that has not authenticated may be read.

    Raises:
        Rejected: it is too long.
    """
    lengths = request.values(b"content-length")
    if not lengths or int(lengths[0]) > EARLY_BYTES:
        raise Rejected(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the body is too long for a session without a token")


def handshake(identity: str, unix_s: float, ping_interval_s: float, cors: Headers) -> Rejected:
    """Return the response that begins a session."""
    packet = open_packet(new_sid(identity, unix_s), ["websocket"], ping_interval_s, EARLY_BYTES)
    return _answer(packet.encode(), cors)


def identity_of(request: Request, unix_s: float) -> str:
    """Return the identity of the session of a request; empty if the session has begun at a pod, or too long ago."""
    return identity_in(request.parameters.get("sid", ""), unix_s) or ""


def no_message(cors: Headers) -> Rejected:
    """Return the response to a poll without a message for the client."""
    return _answer(NOOP.encode(), cors)


def accepted(cors: Headers) -> Rejected:
    """Return the response to a request whose messages were processed."""
    return _answer(b"ok", cors)


def last_packets(body: bytes, cors: Headers) -> Rejected:
    """Return the response to the last poll of a session."""
    return _answer(body, cors)


def unknown_session(cors: Headers) -> Rejected:
    """Return the response after which a client begins a new session."""
    return failure(UNKNOWN_SESSION, UNKNOWN_SESSION_TEXT, cors)


def invalid_body(cors: Headers) -> Rejected:
    """Return the response to a body that is no list of packets."""
    return failure(BAD_REQUEST, "the body is no list of packets", cors)


def failure(code: int, message: str, cors: Headers) -> Rejected:
    """Return the response to a request that is rejected, with a code of Engine.IO."""
    body = json.dumps({"code": code, "message": message}).encode()
    status = HTTPStatus.BAD_REQUEST
    return Rejected(status, message, response=complete_response(status, "application/json", body, cors))


class FirstMessages:
    """The messages of a session that has not authenticated.

    Raises:
        ValueError: the body is no list of packets.
    """

    def __init__(self, opening: Opening, body: bytes) -> None:
        self.dialogue = Dialogue(opening, SocketIO)
        self._packets = iter(split(body))
        self.dialogue.begin(0)

    def credential(self) -> Credential | None:
        """Return the next credential in the messages; None if there is none."""
        while self.dialogue.question is None and self.dialogue.closing is None:
            packet = next(self._packets, None)
            if packet is None:
                return None
            self.dialogue.receive(packet)
        return None if self.dialogue.question is None else self.dialogue.question.credential

    def last_packets(self) -> bytes | None:
        """Return the packets after which the session ends; None if it does not."""
        if self.dialogue.closing is None:
            return None
        return SEPARATOR.join([*map(bytes, payloads(self.dialogue.take())), CLOSE.encode()])


def _answer(body: bytes, cors: Headers) -> Rejected:
    response = complete_response(HTTPStatus.OK, CONTENT_TYPE, body, cors)
    return Rejected(HTTPStatus.OK, "", outcome="polled", response=response)
