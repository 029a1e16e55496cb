"""Redis, by its publish and subscribe: a message that nobody hears is gone, which is all that a signal needs.

The channel is `user:{id}:events`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Final

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from userrealtime_relay.config import Secret

from . import Hear, Moved, Publish, Unreachable, encode

CONNECT_TIMEOUT: Final = 5
ANSWER_TIMEOUT: Final = 5
PING_INTERVAL: Final = 10
"""Seconds; a server that has not answered the ping before is given up."""


def channel(user_id: str) -> str:
    """Where signals of one user are published."""
    return f"user:{user_id}:events"


async def subscribe(url: Secret, user_id: str, hear: Hear) -> None:
    """As `Broker.subscribe`."""
    async with _connected(url) as client, client.pubsub() as subscription:
        with _failures():
            await subscription.subscribe(channel(user_id))
            asked = False
            while True:
                message = await subscription.get_message(timeout=PING_INTERVAL)
                if message is None:
                    if asked:
                        raise Unreachable("it does not answer")
                    await subscription.ping()
                    asked = True
                    continue
                asked = False
                if message["type"] == "subscribe":
                    hear(b"")
                elif message["type"] == "message":
                    hear(message["data"])


@asynccontextmanager
async def publishing(url: Secret) -> AsyncIterator[Publish]:
    """As `Broker.publishing`."""
    async with _connected(url) as client:

        async def publish(moved: Sequence[Moved]) -> None:
            with _failures():
                async with client.pipeline(transaction=False) as pipeline:
                    for user_id, standing in moved:
                        pipeline.publish(channel(user_id), encode(standing))
                    pipeline.ping()
                    await pipeline.execute()

        with _failures():
            await client.ping()
        yield publish


@asynccontextmanager
async def _connected(url: Secret) -> AsyncIterator[Redis]:
    client = Redis.from_url(
        url.reveal(),
        client_name="userrealtime",
        socket_connect_timeout=CONNECT_TIMEOUT,
        socket_timeout=ANSWER_TIMEOUT,
        socket_keepalive=True,
        retry=Retry(NoBackoff(), 0),
    )
    try:
        yield client
    finally:
        await client.aclose()


@contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except (RedisError, OSError, TimeoutError) as error:
        raise Unreachable(f"{type(error).__name__}: {error}") from None
