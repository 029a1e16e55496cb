"""The end of a pod's greeting in a stream, however its bytes are divided."""

from __future__ import annotations

import pytest

from userrealtime_operator.activator.proxy.greeting import StreamGreeting

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
RETRY = b"retry: 1000\n\n"
CONNECTED = b'id: 3:e\ndata: {"type":"connected","cursor":3}\n\n'
EVENT = b'id: 4:e\ndata: {"type":"event","id":4}\n\n'


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


RESPONSES = {
    "three chunks": (HEAD + chunk(RETRY) + chunk(CONNECTED) + chunk(EVENT), chunk(EVENT)),
    "one chunk": (HEAD + chunk(RETRY + CONNECTED + EVENT), chunk(EVENT)),
    "within a chunk": (HEAD + chunk(RETRY + CONNECTED[:20]) + chunk(CONNECTED[20:] + EVENT), chunk(EVENT)),
    "nothing more": (HEAD + chunk(RETRY + CONNECTED), b""),
}


@pytest.mark.parametrize(("response", "rest"), RESPONSES.values(), ids=RESPONSES)
def test_the_rest_follows_the_greeting(response: bytes, rest: bytes) -> None:
    for size in (1, 7, len(response)):
        greeting = StreamGreeting()
        found = None
        for begin in range(0, len(response), size):
            piece = response[begin : begin + size]
            # From the greeting on, the bytes are forwarded unchanged.
            found = greeting.feed(piece) if found is None else found + piece
        assert found == rest
        assert greeting.accepted is True


def test_a_response_that_is_not_a_stream() -> None:
    greeting = StreamGreeting()
    assert greeting.feed(b"HTTP/1.1 503 Service") is None
    assert greeting.accepted is None
    assert greeting.feed(b" Unavailable\r\ncontent-length: 0\r\n\r\n") is None
    assert greeting.accepted is False


def test_a_body_that_is_not_chunked() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        StreamGreeting().feed(HEAD + b"data: x\r\n")
