"""Real brokers for tests, and bridges to them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from websockets.asyncio.client import ClientConnection

from testing.local.brokers import BROKERS, LocalBroker
from testing.relay.harness import NEVER, client, receive, running, until
from testing.skipping import skip
from userrealtime_relay.bridge.config import Config
from userrealtime_relay.bridge.server import Bridge
from userrealtime_relay.server import Relay

PASSWORD = "a-secret-of-the-broker"


def make_broker(name: str, password: str = "", pki: Path | None = None, host: str = "127.0.0.1") -> LocalBroker:
    """Return a broker that is not started yet. Without its programs, the test is skipped, or fails if CI=true."""
    kind = BROKERS[name]
    if (missing := kind.missing()) is not None:
        skip(f"nothing is tested over {name}: {missing}")
    return kind(password, pki, host)


def bridge_config(url: str, broker: LocalBroker, **changes: str) -> Config:
    return Config.from_environment(
        {"DATABASE_URL": url, "HOST": "127.0.0.1", "HEALTH_PORT": "0", **broker.variables, **changes}
    )


@asynccontextmanager
async def bridging(url: str, broker: LocalBroker, **changes: str) -> AsyncIterator[Bridge]:
    """Run a bridge; yield it when it is ready."""
    async with Bridge(bridge_config(url, broker, **changes)) as bridge:
        await until(lambda: bridge.not_ready_reason is None)
        yield bridge


@asynccontextmanager
async def following(url: str, broker: LocalBroker) -> AsyncIterator[tuple[Relay, ClientConnection]]:
    """Run a relay with a client at the beginning of its log, and a bridge. Neither reads the log without a signal."""
    async with (
        bridging(url, broker, POLL_INTERVAL=NEVER),
        running(url, None, **broker.variables, POLL_INTERVAL=NEVER) as relay,
        client(relay) as connection,
    ):
        assert (await receive(connection))["cursor"] == 0
        yield relay, connection
