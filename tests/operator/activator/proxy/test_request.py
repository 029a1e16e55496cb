"""Requests, parsed and written again."""

from __future__ import annotations

from typing import Final

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from userrealtime_core.auth.connection_identity import HEADER
from userrealtime_operator.activator.proxy.request import (
    MAX_BODY_BYTES,
    MAX_BODY_PIECES,
    MAX_HEAD_BYTES,
    BadRequest,
    Request,
    RequestReader,
)
from userrealtime_relay.protocols import actioncable, durable_streams, pusher, socketio, supabase

POST = b"POST /publish HTTP/1.1\r\nHost: urt-a\r\n"
WEBSOCKET = b"GET /ws HTTP/1.1\r\nHost: urt-a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n"


def read(data: bytes) -> Request:
    reader = RequestReader()
    request = reader.read_head(data)
    assert request is not None
    body = reader.read_body()
    assert body is not None
    request.body = body
    return request


def parsed(data: bytes) -> tuple[h11.Request, bytes, bytes]:
    """A request as a server parses it: head, body and the remaining bytes."""
    server = h11.Connection(h11.SERVER)
    server.receive_data(data)
    head, body = server.next_event(), b""
    assert isinstance(head, h11.Request)
    while isinstance(event := server.next_event(), h11.Data):
        body += bytes(event.data)
    assert isinstance(event, h11.EndOfMessage)
    return head, body, server.trailing_data[0]


def test_a_broadcast_of_a_client_wakes_no_user() -> None:
    for path, base in ((b"/broadcast", ""), (b"/alice/broadcast", "/alice"), (b"/broadcast?sender=x", "")):
        error = read(b"POST " + path + b" HTTP/1.1\r\nHost: urt-a\r\nContent-Length: 0\r\n\r\n").endpoint_error(base)
        assert error is not None
        assert error[0] == 503
        assert "no client is connected" in error[1]
    assert read(POST + b"Content-Length: 0\r\n\r\n").endpoint_error("") is None


WEBSOCKETS: Final = [
    *(("actioncable", path) for path in actioncable.DIALECTS),
    *(("pusher", path.replace("*", "key")) for path in pusher.DIALECTS),
    *(("socketio", path) for path in socketio.PATHS),
    *(("supabase", path) for path in supabase.DIALECTS),
]
REQUESTS: Final = [
    ("durable-streams", durable_streams.PATH, ("GET", "HEAD")),
    ("pusher", pusher.CHANNELS, ("POST",)),
    ("pusher", pusher.USERS, ("POST",)),
    ("supabase", supabase.MESSAGES, ("POST",)),
    ("supabase", f"{supabase.MESSAGES}/log/events/a", ("POST",)),
]
UPGRADE: Final = "Connection: Upgrade\r\nUpgrade: websocket\r\n"


def error_at(path: str, *protocols: str, base: str = "", method: str = "GET", headers: str = "") -> int | None:
    """Return the status with which a request is rejected, None if it is not."""
    length = "Content-Length: 0\r\n" if method == "POST" else ""
    reader = RequestReader()
    request = reader.read_head(f"{method} {path}?x=1 HTTP/1.1\r\nHost: urt-a\r\n{length}{headers}\r\n".encode())
    assert request is not None
    error = request.endpoint_error(base, protocols)
    return None if error is None else error[0]


@pytest.mark.parametrize("base", ["", "/users/alice"])
@pytest.mark.parametrize(("protocol", "path"), WEBSOCKETS)
def test_a_websocket_of_another_protocol(protocol: str, path: str, base: str) -> None:
    assert error_at(f"{base}{path}", protocol, base=base, headers=UPGRADE) is None
    assert error_at(path, protocol, base=base, headers=UPGRADE) is None
    assert error_at(f"{base}{path}", "other", base=base, headers=UPGRADE) == 404
    assert error_at(f"{base}/application{path}", protocol, base=base, headers=UPGRADE) == 404
    # A request at the path of Socket.IO belongs to long polling.
    assert error_at(f"{base}{path}", protocol, base=base) == (None if protocol == "socketio" else 404)


@pytest.mark.parametrize("base", ["", "/users/alice"])
@pytest.mark.parametrize(("protocol", "path", "methods"), REQUESTS)
def test_a_request_of_another_protocol(protocol: str, path: str, methods: tuple[str, ...], base: str) -> None:
    for method in ("GET", "HEAD", "POST", "PUT"):
        error = None if method in methods else 405
        assert error_at(f"{base}{path}", protocol, base=base, method=method) == error
        assert error_at(f"{base}{path}", "other", base=base, method=method) == 404
    assert error_at(f"{base}{path}", protocol, base=base, headers=UPGRADE) == (404 if "GET" in methods else 405)
    if "GET" in methods:
        assert error_at(f"{base}{path}", protocol, base=base, headers="Content-Length: 1\r\n") == 400


def test_other_paths_of_durable_streams_do_not_exist() -> None:
    assert error_at(f"{durable_streams.ROOT}/other", "durable-streams") == 404


def test_the_identity_of_a_connection_is_that_of_the_activator() -> None:
    request = read(WEBSOCKET + f"{HEADER}: forged\r\n\r\n".encode())
    assert HEADER.lower().encode() not in request.serialize().lower()
    request.identity = "given"
    assert f"{HEADER.lower()}: given\r\n".encode() in request.serialize()
    assert b"forged" not in request.serialize()


def test_a_body_in_chunks_gets_a_length() -> None:
    request = read(POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\nGET / HTTP/1.1\r\n")
    head, body, rest = parsed(request.serialize())
    assert (body, rest) == (b"abc", b"")
    assert dict(head.headers)[b"content-length"] == b"3"
    assert b"transfer-encoding" not in dict(head.headers)
    assert dict(head.headers)[b"connection"] == b"close"


@given(st.binary(max_size=100), st.binary(max_size=100), st.integers(1, 50))
def test_the_bytes_after_a_request_are_discarded(body: bytes, rest: bytes, step: int) -> None:
    data = POST + b"Content-Length: %d\r\n\r\n" % len(body) + body
    reader = RequestReader()
    request = whole = None
    for start in range(0, len(data), step):
        assert whole is None
        piece = data[start : start + step]
        piece += rest if start + step >= len(data) else b""
        if request is None:
            request = reader.read_head(piece)
            whole = reader.read_body() if request is not None else None
        else:
            whole = reader.read_body(piece)
    assert request is not None
    assert whole is not None
    request.body = whole
    assert parsed(request.serialize())[1:] == (body, b"")


@pytest.mark.parametrize(
    "data",
    [
        POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        POST + b"Content-Length: +1\r\n\r\na",
        POST + b"Host: urt-b\r\n\r\n",
        POST + b"A\x00: b\r\n\r\n",
        POST + b"A : b\r\n\r\n",
        b"GET http://urt-b/ws HTTP/1.1\r\nHost: urt-a\r\n\r\n",
        b"GET /ws HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"x" * (MAX_HEAD_BYTES + 1),
    ],
)
def test_ambiguous_requests_are_rejected(data: bytes) -> None:
    with pytest.raises(BadRequest):
        read(data)


def test_the_size_of_a_body_is_limited() -> None:
    reader = RequestReader()
    assert reader.read_head(POST + b"Content-Length: %d\r\n\r\n" % (MAX_BODY_BYTES + 1)) is not None
    with pytest.raises(BadRequest) as caught:
        reader.read_body(bytes(MAX_BODY_BYTES + 1))
    assert caught.value.status == 413


def test_the_pieces_of_a_body_are_limited() -> None:
    reader = RequestReader()
    assert reader.read_head(POST + b"Transfer-Encoding: chunked\r\n\r\n") is not None
    assert reader.read_body(b"1\r\nx\r\n" * MAX_BODY_PIECES) is None
    with pytest.raises(BadRequest) as caught:
        reader.read_body(b"1\r\nx\r\n")
    assert caught.value.status == 413


def test_the_head_is_read_without_its_body() -> None:
    reader = RequestReader()
    request = reader.read_head(POST + b"Transfer-Encoding: chunked\r\n\r\nno chunk\r\n")
    assert request is not None
    assert request.has_body
    with pytest.raises(BadRequest):
        reader.read_body()


@pytest.mark.parametrize("framing", [b"", b"Content-Length: 0\r\n"])
def test_a_request_without_a_body_has_none(framing: bytes) -> None:
    assert not read(POST + framing + b"\r\n").has_body


def test_a_websocket_stays_one() -> None:
    reader = RequestReader()
    request = reader.read_head(WEBSOCKET + b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\nframes")
    assert request is not None
    assert request.is_websocket
    assert reader.rest == b"frames"
    head, _, rest = parsed(request.serialize(without=[b"sec-websocket-extensions"]))
    headers = dict(head.headers)
    assert (headers[b"connection"], headers[b"upgrade"], rest) == (b"Upgrade", b"websocket", b"")
    assert b"sec-websocket-extensions" not in headers


def test_a_websocket_with_a_body_is_none() -> None:
    assert not read(WEBSOCKET + b"Content-Length: 1\r\n\r\na").is_websocket


def test_the_token_is_found_where_the_relay_finds_it() -> None:
    get = b"GET /sse?token=c HTTP/1.1\r\nHost: urt-a\r\n"
    assert read(get + b"Authorization: Bearer a\r\n\r\n").opening(query_token=True).token == "a"
    assert read(get + b"\r\n").opening(query_token=True).token == "c"
    assert read(get + b"\r\n").opening(query_token=False).token is None
    subprotocols = b"Sec-WebSocket-Protocol: userrealtime.v1, bearer.b\r\n\r\n"
    assert read(WEBSOCKET + subprotocols).opening(query_token=False).token == "b"
    assert read(get + subprotocols).opening(query_token=False).token is None


def test_a_broadcast_of_a_client_wakes_a_parked_user() -> None:
    request = read(b"POST /alice/broadcast HTTP/1.1\r\nHost: urt-a\r\nContent-Length: 0\r\n\r\n")
    assert request.endpoint_error("/alice", parked=True) is None
    wrong = read(b"GET /broadcast HTTP/1.1\r\nHost: urt-a\r\n\r\n").endpoint_error("", parked=True)
    assert wrong is not None
    assert wrong[0] == 405


def test_a_resumed_request_has_another_token_and_position() -> None:
    first = read(
        WEBSOCKET + b"Authorization: Bearer old\r\nLast-Event-ID: 1\r\nCookie: a=b\r\n"
        b"Sec-WebSocket-Protocol: bearer.older, userrealtime.v1\r\n\r\n"
    )
    request = first.resumed("new", 7, "e")
    assert (first.greeted, request.greeted, request.is_websocket) == (False, True, True)
    head, _, _ = parsed(request.serialize())
    fields = [(bytes(name), bytes(value)) for name, value in head.headers]
    for field in ((b"authorization", b"Bearer new"), (b"last-event-id", b"7:e"), (b"cookie", b"a=b")):
        assert fields.count(field) == 1
    assert [value for name, value in fields if name == b"sec-websocket-protocol"] == [b"userrealtime.v1"]
    opening = request.opening(query_token=False)
    assert (opening.token, opening.resume) == ("new", (7, "e"))


def test_the_cursor_of_a_poll_takes_precedence() -> None:
    request = read(b"GET /poll?cursor=5&epoch=e&last_event_id=4 HTTP/1.1\r\nHost: urt-a\r\nLast-Event-ID: 3\r\n\r\n")
    assert request.opening(query_token=False).resume == (5, "e")
    stream = read(b"GET /sse?cursor=5&epoch=e HTTP/1.1\r\nHost: urt-a\r\nLast-Event-ID: 3\r\n\r\n")
    assert stream.opening(query_token=False).resume == (3, "e")
