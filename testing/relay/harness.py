"""A relay in the event loop of the test, and clients for it. Every wait has a limit far above the usual time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlencode

import asyncpg
import jwt
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from testing import patience
from userrealtime_core.auth.tokens import TokenVerifier
from userrealtime_core.wire.frames import payloads
from userrealtime_relay.config import Config
from userrealtime_relay.log.log import Page
from userrealtime_relay.notify import Notifier
from userrealtime_relay.server import Relay, key_set

NEVER = "600"
"""A POLL_INTERVAL that is longer than any test."""
PATIENCE_S = patience.PATIENCE_S
USER = "alice"
KEY = "a key of this user's that is long enough"


def environment(url: str, **changes: str) -> dict[str, str]:
    """Return the complete environment for a relay on loopback with free ports."""
    return {
        "USER_ID": USER,
        "DATABASE_URL": url,
        "TOKEN_KEY": KEY,
        "HOST": "127.0.0.1",
        "WS_PORT": "0",
        "HEALTH_PORT": "0",
        **changes,
    }


def config(url: str, **changes: str) -> Config:
    return Config.from_environment(environment(url, **changes))


def verifier_of(settings: Config) -> TokenVerifier:
    return TokenVerifier(settings, settings.user_id, settings.token_keys, key_set(settings))


def token(*, sub: str = USER, key: str = KEY, life_s: float = 3600, **claims: Any) -> str:
    return jwt.encode({"sub": sub, "exp": int(time.time() + life_s), **claims}, key, algorithm="HS256")


@asynccontextmanager
async def running(url: str, signal: Notifier | None = None, **changes: str) -> AsyncIterator[Relay]:
    """Run a relay; yield it when it is ready. It uses LISTEN unless `changes` sets another SIGNAL."""
    async with Relay(config(url, **{"SIGNAL": "listen", **changes}), signal) as relay:
        await until(lambda: relay.not_ready_reason is None)
        yield relay


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def client(
    port: int | Relay,
    bearer: str | None = "",
    *,
    path: str = "/ws",
    headers: dict[str, str] | None = None,
    host: str = "127.0.0.1",
    **options: Any,
) -> AsyncIterator[ClientConnection]:
    """Connect a WebSocket client, by default with a valid token in the Authorization header.

    `options` are parameters of the URL, except the arguments of `connect`.
    """
    known = {
        name: options.pop(name) for name in ("subprotocols", "max_size", "ping_interval", "sock") if name in options
    }
    authorization = {} if bearer is None else {"Authorization": f"Bearer {bearer or token()}"}
    number = port if isinstance(port, int) else port.ws_port
    async with connect(
        f"ws://{f'[{host}]' if ':' in host else host}:{number}{path}?{urlencode(options)}",
        additional_headers={**authorization, **(headers or {})},
        **known,
    ) as connection:
        yield connection


async def receive(connection: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(PATIENCE_S):
        message: dict[str, Any] = json.loads(await connection.recv())
    return message


async def receive_ids(connection: ClientConnection, last: int) -> list[int]:
    """Return the ids of the events up to the one with the id `last`. No other message may arrive."""
    ids: list[int] = []
    while not ids or ids[-1] != last:
        message = await receive(connection)
        assert message["type"] == "event", message
        ids.append(message["id"])
    return ids


async def closed(connection: ClientConnection) -> tuple[int, str]:
    """Return the code and the reason of the relay's close frame. Earlier messages are ignored."""
    with contextlib.suppress(ConnectionClosed):
        async with asyncio.timeout(PATIENCE_S):
            while True:
                await connection.recv()
    assert connection.protocol.close_rcvd is not None, "the connection was cut without a close"
    return connection.protocol.close_rcvd.code, connection.protocol.close_rcvd.reason


async def publish(connection: asyncpg.Connection, count: int = 1, *, size: int = 10) -> None:
    """Publish events in one transaction. Each contains a string of `size` characters."""
    await connection.execute(
        "select userrealtime.publish($1, 'test.event', jsonb_build_object('n', n, 'text', repeat('x', $3))) "
        "from generate_series(1, $2::int) n",
        USER,
        count,
        size,
    )


def events(page: Page) -> list[dict[str, Any]]:
    """Return the events in the frames of a page."""
    return [json.loads(bytes(text)) for text in payloads(b"".join(page.frames()))]


def numbers(page: Page) -> list[int]:
    """Return the numbers of the events in the frames of a page."""
    return [event["id"] for event in events(page)]


async def terminate(connection: asyncpg.Connection) -> int:
    """Terminate the relay's connections to this database, and return their number."""
    ended: int = await connection.fetchval(
        "select count(pg_terminate_backend(pid)) from pg_stat_activity "
        "where application_name = 'userrealtime-relay' and datname = current_database()"
    )
    return ended


async def get(port: int, path: str, method: str = "GET", host: str = "127.0.0.1") -> tuple[int, str]:
    """Send a plain HTTP request; return the status and the body."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(f"{method} {path} HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n".encode())
        async with asyncio.timeout(PATIENCE_S):
            head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
        return int(head.split()[1]), body
    finally:
        writer.close()
        await writer.wait_closed()


async def metric(relay: Relay, name: str) -> float:
    """Return the value of a line of /metrics, whose name includes the labels; 0 if it does not exist."""
    _, body = await get(relay.health_port, "/metrics")
    for line in body.splitlines():
        if line.startswith(f"userrealtime_relay_{name} "):
            return float(line.rpartition(" ")[2])
    return 0.0


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await condition():
            await asyncio.sleep(0.01)


async def is_metric(relay: Relay, name: str, value: float) -> bool:
    return await metric(relay, name) == value
