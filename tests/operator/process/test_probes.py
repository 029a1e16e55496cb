"""The ports for the cluster: their responses, and the limit of idle connections."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import ClientSession, web

from testing.local.ports import free_port
from testing.relay.harness import PATIENCE_S, get
from userrealtime_core.probes import CONNECTIONS
from userrealtime_operator.process import probes as endpoints


async def ended(reader: asyncio.StreamReader) -> bool:
    """Return whether the connection was closed, with or without an error, before any data arrived."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            return await reader.read() == b""
    except ConnectionError:
        return True


async def test_metrics_and_probes_are_answered_one_on_a_connection() -> None:
    async with (
        endpoints.serve("127.0.0.1", 0, lambda: b"a 1\n", lambda: "draining") as port,
        ClientSession() as session,
    ):
        answers = []
        for path in ("/metrics", "/health", "/ready", "/other"):
            async with session.get(f"http://127.0.0.1:{port}{path}") as answer:
                assert answer.headers["Connection"] == "close"
                answers.append((answer.status, await answer.text()))
    assert answers[:3] == [
        (200, "a 1\n"),
        (200, '{"status":"ok"}'),
        (503, '{"status":"not ready","reason":"draining"}'),
    ]
    assert answers[3][0] == 404


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_without_a_host_a_server_has_the_addresses_of_ipv4_and_ipv6(address: str) -> None:
    """A cluster can have pods with addresses of either family, or of both."""
    port = free_port()
    async with endpoints.serve("", port, lambda: b"a 1\n", lambda: None):
        reader, writer = await asyncio.open_connection(address, port)
        writer.write(b"GET /ready HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await reader.readline()).split()[1] == b"200"
        writer.close()


async def test_incomplete_requests_make_room() -> None:
    async with endpoints.serve("127.0.0.1", 0, lambda: b"", lambda: None) as port:
        held = []
        for _ in range(CONNECTIONS + 10):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /metrics HTTP/1.1\r\nX: ")
            held.append((reader, writer))
        assert all([await ended(reader) for reader, _ in held[:10]])
        assert await get(port, "/ready") == (200, '{"status":"ready"}')
        for _, writer in held:
            writer.transport.abort()


async def test_a_connection_has_a_limited_time() -> None:
    async with endpoints.listen(web.Application(), "127.0.0.1", 0, lifetime_s=0.1) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\n")
        assert await ended(reader)
        writer.transport.abort()
