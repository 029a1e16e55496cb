"""Any data on the public port is answered or the connection is closed in time, and the relay still serves."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from testing.database import create_database
from testing.local.postgres import LocalPostgres
from testing.relay.harness import PATIENCE_S, client, receive, running, token
from userrealtime_operator.postgres.migrate import migrate

KEY = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + "A" * 22 + "=="
TOKEN = token()
GOOD = f"Authorization: Bearer {TOKEN}"
FRAMES = [
    bytes((first, 0x80 | size)) + bytes(4) + b"x" * size
    for first in (0x81, 0x01, 0x80, 0x88, 0x89, 0xC1, 0x83)
    for size in (0, 2, 125)
]
PIECES = st.one_of(
    st.sampled_from([b"GET /ws HTTP/1.1\r\n", b"GET /sse HTTP/1.1\r\n", b"GET /poll?cursor=0&timeout=0 HTTP/1.1\r\n"]),
    st.sampled_from(
        [b"POST /publish HTTP/1.1\r\n", b"OPTIONS /poll HTTP/1.1\r\n", b"GET /ws?last_event_id=%00 HTTP/1.0\r\n"]
    ),
    st.sampled_from(
        [f"{line}\r\n".encode() for line in ("Host: relay", KEY, GOOD, "Authorization: Bearer x", "Origin: null")]
    ),
    st.sampled_from(
        [b"Last-Event-ID: 9999999999999999999999\r\n", b"Last-Event-ID: 1:e\r\n", b"Content-Type: application/json\r\n"]
    ),
    st.sampled_from(
        [
            b"Content-Length: 5\r\n",
            b"Content-Length: -1\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"Expect: 100-continue\r\n",
        ]
    ),
    st.sampled_from([b"\r\n", b"\r\n\r\n", b"\n", b"\x00", b"5\r\nhello\r\n", b"0\r\n\r\n", b"{}", b'{"type":"auth"}']),
    st.sampled_from(FRAMES),
    st.binary(max_size=200),
)
WHOLE = [
    f"GET {path} HTTP/1.1\r\nHost: relay\r\n{GOOD}\r\n\r\n".encode()
    for path in ("/sse", "/poll?cursor=0&timeout=0", "/nowhere")
]


class Served:
    """A relay with an event loop in another thread, because the tests block."""

    def __init__(self, url: str) -> None:
        self.port = 0
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(url),))

    def __enter__(self) -> Served:
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(PATIENCE_S)
        self._loop.close()

    async def _serve(self, url: str) -> None:
        async with running(url, AUTH_TIMEOUT="0.3", PING_INTERVAL="0.3", SEND_TIMEOUT="1", INSTANCE="fuzzed") as relay:
            self.port = relay.ws_port
            self._ready.set()
            await self._stop.wait()


@pytest.fixture(scope="module")
def served(postgres_server: LocalPostgres) -> Iterator[Served]:
    async def database() -> str:
        created = await create_database(postgres_server)
        await migrate(created.url)
        return created.url

    with Served(asyncio.run(database())) as relay:
        good(relay)
        files = len(os.listdir("/proc/self/fd"))
        yield relay
        good(relay)
        assert len(os.listdir("/proc/self/fd")) <= files + 2


def good(relay: Served) -> None:
    """Assert that a well-behaved client receives `connected`."""

    async def greeted() -> None:
        async with client(relay.port) as alice:
            assert (await receive(alice))["type"] == "connected"

    asyncio.run(greeted())


@given(st.lists(PIECES, max_size=12).map(b"".join))
@example(WHOLE[0])
@example(WHOLE[1] * 20)
@example(WHOLE[2] + b"\x00")
@settings(max_examples=150, deadline=None)
def test_anything_is_answered_or_cut(served: Served, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=PATIENCE_S) as connection:
        try:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            heard = b""
            # A valid stream continues as long as its client is connected.
            while b"text/event-stream" not in heard and (got := connection.recv(1 << 16)):
                heard += got
        except ConnectionError:
            return
    assert TOKEN.encode() not in heard
    assert b"Traceback" not in heard
    assert b" 500 " not in heard.partition(b"\r\n")[0]
