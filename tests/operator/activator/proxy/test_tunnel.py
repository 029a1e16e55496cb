"""The tunnel between a client and a pod, over loopback."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from websockets.frames import Frame, Opcode

from testing.operator.streams import Stream, connected
from testing.patience import PATIENCE_S
from userrealtime_operator.activator.metrics import Metrics
from userrealtime_operator.activator.proxy.connection import ClientConnection
from userrealtime_operator.activator.proxy.request import Request, RequestReader
from userrealtime_operator.activator.proxy.responses import Rejected
from userrealtime_operator.activator.proxy.tunnel import PodConnection, PodUnavailable, Tunnel

SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"
GET = b"GET /sse HTTP/1.1\r\nHost: urt-a\r\n\r\n"
POST = b"POST /publish HTTP/1.1\r\nHost: urt-a\r\nContent-Length: 0\r\n\r\n"
UPGRADE = b"GET /ws HTTP/1.1\r\nHost: urt-a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


def request(data: bytes) -> Request:
    found = RequestReader().read_head(data)
    assert found is not None
    return found


class Ends:
    """A client, a pod, and the tunnel between them."""

    def __init__(self, client: Stream, pod: Stream, ours: Stream, to_pod: Stream, idle_s: float) -> None:
        self.client_reader, self.client_writer = client
        self.pod_reader, self.pod_writer = pod
        self.connection = ClientConnection(*ours)
        self.pod = PodConnection(*to_pod)
        self.metrics = Metrics()
        self.tunnel = Tunnel(self.connection, self.pod, self.metrics, idle_s)

    def forwarded(self, to: str) -> float:
        return self.metrics.value("forwarded_bytes_total", to=to)


@contextlib.asynccontextmanager
async def ends(idle_s: float = PATIENCE_S) -> AsyncIterator[Ends]:
    async with asyncio.timeout(PATIENCE_S), connected() as (ours, client), connected() as (pod, to_pod):
        yield Ends(client, pod, ours, to_pod, idle_s)


async def test_a_pod_that_does_not_listen_may_be_tried_again() -> None:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    server.close()
    with pytest.raises(PodUnavailable, match="could not connect to the pod") as caught:
        await PodConnection.open(*address)
    assert caught.value.may_retry


@pytest.mark.parametrize(("data", "may_retry"), [(GET, True), (UPGRADE, True), (POST, False)])
async def test_only_an_unanswered_request_without_effect_is_repeated(data: bytes, may_retry: bool) -> None:
    async with ends() as here:
        sending = asyncio.create_task(here.pod.send_request(request(data), PATIENCE_S))
        await here.pod_reader.readuntil(b"\r\n\r\n")
        here.pod_writer.close()
        with pytest.raises(PodUnavailable) as caught:
            await sending
        assert caught.value.may_retry is may_retry


async def test_a_pod_that_is_silent_is_unavailable() -> None:
    async with ends() as here:
        with pytest.raises(PodUnavailable, match="did not respond: TimeoutError"):
            await here.pod.send_request(request(GET), 0.01)


async def test_the_head_of_a_handshake_is_read_alone() -> None:
    async with ends() as here:
        here.pod_writer.write(SWITCHED + b"frames")
        assert await here.pod.send_request(request(UPGRADE), PATIENCE_S) == SWITCHED
        assert await here.pod.reader.read(100) == b"frames"


async def test_a_response_is_forwarded_without_further_client_bytes() -> None:
    async with ends() as here:
        running = asyncio.create_task(here.tunnel.run(request(GET), b"HTTP/1.1 200 OK\r\n"))
        here.client_writer.write(b"GET /another HTTP/1.1\r\n\r\n")
        here.pod_writer.write(b"\r\nevents")
        assert await here.client_reader.readexactly(25) == b"HTTP/1.1 200 OK\r\n\r\nevents"
        here.pod_writer.write_eof()
        await running
        assert (here.forwarded("client"), here.forwarded("pod")) == (25, 0)


async def test_a_websocket_is_forwarded_both_ways_after_its_buffered_bytes() -> None:
    async with ends() as here:
        here.connection.buffered = b"early "
        running = asyncio.create_task(here.tunnel.run(request(UPGRADE), SWITCHED))
        assert await here.client_reader.readexactly(len(SWITCHED)) == SWITCHED
        here.client_writer.write(b"late")
        assert await here.pod_reader.readexactly(10) == b"early late"
        frame = Frame(Opcode.TEXT, b"hello").serialize(mask=False)
        here.pod_writer.write(frame)
        assert await here.client_reader.readexactly(len(frame)) == frame
        here.client_writer.close()
        await running


async def test_a_rejected_handshake_is_forwarded_without_the_clients_bytes() -> None:
    async with ends() as here:
        here.connection.buffered = b"a frame"
        running = asyncio.create_task(here.tunnel.run(request(UPGRADE), b"HTTP/1.1 403 Forbidden\r\n\r\n"))
        here.client_writer.write(b"another frame")
        assert (await here.client_reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 403 ")
        here.pod_writer.write_eof()
        await running
        here.pod.writer.close()
        assert await here.pod_reader.read() == b""


async def test_a_handshake_rejected_by_the_relay_is_a_bad_gateway() -> None:
    async with ends() as here:
        here.connection.upgraded = True
        with pytest.raises(Rejected) as caught:
            await here.tunnel.run(request(UPGRADE), b"HTTP/1.1 403 Forbidden\r\n\r\n")
        assert (caught.value.status, caught.value.close_code) == (502, 1013)


async def test_a_tunnel_that_is_cancelled_completes_the_frame_of_the_pod() -> None:
    frame = Frame(Opcode.TEXT, b"x" * 1000).serialize(mask=False)
    async with ends() as here:
        running = asyncio.create_task(here.tunnel.run(request(UPGRADE), SWITCHED))
        await here.client_reader.readexactly(len(SWITCHED))
        here.pod_writer.write(frame[:100])
        assert await here.client_reader.readexactly(100) == frame[:100]
        running.cancel()
        here.pod_writer.write(frame[100:] + b"\x81")
        assert await here.client_reader.readexactly(len(frame) - 100) == frame[100:]
        with pytest.raises(asyncio.CancelledError):
            await running
        assert here.connection.pod_frames is not None
        assert here.connection.pod_frames.missing == 0


async def test_a_tunnel_that_is_silent_both_ways_times_out() -> None:
    async with ends(idle_s=0.01) as here:
        with pytest.raises(TimeoutError):
            await here.tunnel.run(request(GET), b"HTTP/1.1 200 OK\r\n\r\n")
