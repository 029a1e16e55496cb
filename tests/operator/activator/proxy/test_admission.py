"""The steps of admission, their order, and the limits. The client is a pair of in-memory streams."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from testing.operator.activator import resource
from userrealtime_core.auth.errors import KeySetStale, Unauthorized
from userrealtime_operator.activator.proxy.admission import Admission, Admitted, Limits
from userrealtime_operator.activator.proxy.connection import ClientConnection
from userrealtime_operator.activator.proxy.origins import Origins
from userrealtime_operator.activator.proxy.responses import Rejected
from userrealtime_operator.activator.routes import Route, RouteTable

HOST = "realtime.example.com"
ORIGIN = "https://app.example.com"
VALID = "valid"
KEY = "k" * 40


class StreamWriter:
    """A writer that records the written bytes."""

    def __init__(self) -> None:
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data

    async def drain(self) -> None:
        pass

    def get_extra_info(self, name: str) -> object:
        return ("192.0.2.7", 40_000) if name == "peername" else None


class Tokens:
    """Accepts one token; records the tokens that were checked."""

    def __init__(self) -> None:
        self.checked: list[str] = []
        self.unavailable = False

    async def check(self, route: Route, token: str) -> None:
        assert route.user_id == "alice"
        self.checked.append(token)
        if self.unavailable:
            raise KeySetStale
        if token != "valid":
            raise Unauthorized

    async def check_signature(self, route: Route, content: str, signature: str) -> None:
        assert route.user_id == "alice"
        if signature != "a" * 64:
            raise Unauthorized

    def cached_keys(self, route: Route) -> tuple[str, ...]:
        return (KEY,)


class Setup:
    """An admission for one user, without a wake."""

    def __init__(self, **limits: Any) -> None:
        routes = RouteTable()
        routes.put(resource("alice", url=f"https://{HOST}"))
        self.tokens = Tokens()
        self.admission = Admission(routes, Origins((ORIGIN,)), self.tokens, Limits(**limits))
        self.writers: list[StreamWriter] = []

    def connect(self, head: str, rest: bytes = b"") -> ClientConnection:
        """Return a connection on which this request has arrived."""
        reader = asyncio.StreamReader()
        reader.feed_data(head.replace("\n", "\r\n").encode() + b"\r\n" + rest)
        self.writers.append(StreamWriter())
        return ClientConnection(reader, self.writers[-1])  # type: ignore[arg-type]

    @contextlib.asynccontextmanager
    async def admit(self, head: str, rest: bytes = b"") -> AsyncIterator[Admitted]:
        async with self.admission.admit(self.connect(head, rest)) as admitted:
            yield admitted

    async def rejection(self, head: str, rest: bytes = b"") -> tuple[int, str]:
        """The status and the outcome of a request that is rejected."""
        with pytest.raises(Rejected) as caught:
            async with self.admit(head, rest):
                pass
        return caught.value.status, caught.value.outcome


def get(path: str = "/sse", *headers: str, host: str = HOST, token: str | None = VALID, method: str = "GET") -> str:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *headers]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    return "\n".join([*lines, ""])


def upgrade(*headers: str, token: str | None = VALID, path: str = "/ws") -> str:
    handshake = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
    return get(path, *handshake, "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", *headers, token=token)


async def test_a_valid_request_is_admitted_with_its_user() -> None:
    async with Setup().admit(get("/sse?last_event_id=3")) as (request, route):
        assert (request.path, request.query) == ("/sse", "last_event_id=3")
        assert route.user == ("users", "alice")


@pytest.mark.parametrize(
    ("head", "status", "outcome"),
    [
        pytest.param("GET /sse HTTP/1.1\nHost: a\nHost: b\n", 400, "rejected", id="malformed"),
        pytest.param(get(host="other.example.com"), 404, "unknown_host", id="unknown host"),
        pytest.param(get("/other"), 404, "rejected", id="unknown path"),
        pytest.param(get(method="POST"), 405, "rejected", id="wrong method"),
        pytest.param(get("/sse", "Content-Length: 1"), 400, "rejected", id="a GET with a body"),
        pytest.param(upgrade(path="/sse"), 404, "rejected", id="a WebSocket at another endpoint"),
        pytest.param(upgrade("Origin: https://evil.example.com"), 403, "rejected", id="another origin"),
    ],
)
async def test_cheap_checks_come_before_the_token(head: str, status: int, outcome: str) -> None:
    setup = Setup()
    assert await setup.rejection(head) == (status, outcome)
    assert setup.tokens.checked == []


async def test_checks_run_in_the_order_host_origin_token() -> None:
    setup = Setup()
    foreign = "Origin: https://evil.example.com"
    assert await setup.rejection(upgrade(foreign).replace(HOST, "other.example.com")) == (404, "unknown_host")
    assert await setup.rejection(upgrade(foreign, token="wrong")) == (403, "rejected")
    assert setup.tokens.checked == []


async def test_a_preflight_request_needs_no_token() -> None:
    setup = Setup()
    asked = ("Access-Control-Request-Method: GET", f"Origin: {ORIGIN}")
    assert await setup.rejection(get("/sse", *asked, method="OPTIONS", token=None)) == (200, "preflight")
    other = ("Access-Control-Request-Method: GET", "Origin: https://evil.example.com")
    assert await setup.rejection(get("/sse", *other, method="OPTIONS", token=None)) == (400, "rejected")
    assert setup.tokens.checked == []


async def test_a_missing_or_invalid_token_is_unauthorized() -> None:
    setup = Setup()
    assert await setup.rejection(get(token=None)) == (401, "unauthorized")
    assert await setup.rejection(get(token="wrong")) == (401, "unauthorized")
    assert setup.tokens.checked == ["wrong"]


async def test_keys_that_cannot_be_read_make_the_service_unavailable() -> None:
    setup = Setup()
    setup.tokens.unavailable = True
    assert await setup.rejection(get()) == (503, "unavailable")
    assert await setup.rejection(upgrade()) == (503, "unavailable")
    assert setup.writers[-1].written.startswith(b"HTTP/1.1 101 "), "a browser gets a close code, but no status"


async def test_a_token_in_the_query_needs_the_setting() -> None:
    assert await Setup().rejection(get("/sse?token=valid", token=None)) == (401, "unauthorized")
    async with Setup(query_token=True).admit(get("/sse?token=valid", token=None)):
        pass


async def test_the_body_is_read_after_the_token_was_accepted() -> None:
    post = get("/publish", "Content-Length: 2", method="POST")
    async with Setup().admit(post, b"{}") as (request, _):
        assert request.body == b"{}"
    setup = Setup(request_s=0.01)
    assert await setup.rejection(post.replace("valid", "wrong")) == (401, "unauthorized")
    with pytest.raises(TimeoutError):
        async with setup.admit(post, b"{"):
            pass


async def test_a_websocket_without_a_message_is_unauthorized_in_time() -> None:
    setup = Setup(request_s=0.01)
    assert await setup.rejection(upgrade(token=None)) == (401, "unauthorized")


async def test_connections_are_counted_only_while_they_are_open() -> None:
    setup = Setup(connections=2, user_connections=2)
    for _ in range(5):
        async with setup.admit(get()), setup.admit(get()):
            assert await setup.rejection(get()) == (503, "overloaded")
    with contextlib.suppress(RuntimeError):
        async with setup.admit(get()):
            raise RuntimeError
    async with setup.admit(get()), setup.admit(get()):
        pass


async def test_a_connection_is_unauthenticated_until_its_token_is_accepted() -> None:
    setup = Setup()
    connection = setup.connect(get())
    async with setup.admission.evictable(connection):
        assert setup.admission.unauthenticated == 1
        async with setup.admission.admit(connection):
            assert setup.admission.unauthenticated == 0
    assert setup.admission.unauthenticated == 0


async def test_the_oldest_unauthenticated_connection_is_evicted() -> None:
    setup = Setup(unauthenticated=1)
    idle = ClientConnection(asyncio.StreamReader(), StreamWriter())  # type: ignore[arg-type]

    async def wait() -> None:
        async with setup.admission.evictable(idle):
            await idle.read_request()

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    async with setup.admission.evictable(setup.connect(get())):
        with pytest.raises(TimeoutError):
            await waiting
