"""Kafka, for installations that have it already: a compacted topic whose key is the user.

A relay reads the whole partition of its user, so the topic should have many partitions. The client reconnects to a lost
broker and continues at its offset; the messages that it then reads count as signals.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.partitioner import DefaultPartitioner

from userrealtime_core.secret import Secret
from userrealtime_core.trust import client_context, kept_current, reloading
from userrealtime_core.wire.broadcast import Broadcast
from userrealtime_core.wire.position import LogMoved

from . import OnMessage, Publish, Subscription, Unreachable, encode

TOPIC: Final = "userrealtime"
DEFAULT_PORT: Final = 9092
REQUEST_TIMEOUT: Final = 5
CLOSE_TIMEOUT: Final = 2
"""Seconds."""


async def subscribe(url: Secret, user_id: str, on_message: OnMessage, broadcasts: Subscription | None = None) -> None:
    """As `Broker.subscribe`."""
    key = user_id.encode()
    broadcast_key, on_broadcast = (None, on_message) if broadcasts is None else (broadcasts[0].encode(), broadcasts[1])
    # Naming the topic loads its metadata, but would also subscribe to all of its partitions.
    consumer = AIOKafkaConsumer(
        TOPIC, **_connection(url), group_id=None, enable_auto_commit=False, auto_offset_reset="latest"
    )
    async with reloading():
        with _failures():
            try:
                await consumer.start()
                partitions = sorted(consumer.partitions_for_topic(TOPIC) or ())
                if not partitions:
                    raise Unreachable(f"there is no topic {TOPIC}: make it, with cleanup.policy=compact")
                partition = TopicPartition(TOPIC, DefaultPartitioner()(key, partitions, partitions))
                consumer.unsubscribe()
                consumer.assign([partition])
                await consumer.seek_to_end(partition)
                on_message(b"")
                async for message in consumer:
                    if message.key == key:
                        on_message(message.value)
                    elif message.key is not None and message.key == broadcast_key:
                        on_broadcast(message.value)
            finally:
                await _stop(consumer)


@asynccontextmanager
async def publishing(url: Secret) -> AsyncIterator[Publish]:
    """As `Broker.publishing`."""
    producer = AIOKafkaProducer(**_connection(url), linger_ms=1)

    async def send(message: LogMoved | Broadcast) -> Any:
        if isinstance(message, LogMoved):
            return await producer.send(TOPIC, encode(message.position), key=message.user_id.encode())
        # Their own key, so that the topic keeps the newest signal of each user; in the partition that the relay reads.
        partitions = sorted(await producer.partitions_for(TOPIC))
        partition = DefaultPartitioner()(message.user_id.encode(), partitions, partitions)
        return await producer.send(TOPIC, message.message.encode(), key=message.channel.encode(), partition=partition)

    async def publish(messages: Sequence[LogMoved | Broadcast]) -> None:
        with _failures():
            sent = [await send(message) for message in messages]
            async with asyncio.timeout(2 * REQUEST_TIMEOUT):
                await asyncio.gather(*sent)

    async with reloading():
        try:
            with _failures():
                await producer.start()
            yield publish
        finally:
            await _stop(producer)


def _connection(url: Secret) -> dict[str, Any]:
    """The options in a URL such as `kafka://user:password@host:port?mechanism=SCRAM-SHA-512`. `kafka+tls://` uses TLS.
    Commas separate several servers."""
    servers = [urlsplit(each) for each in url.reveal().split(",")]
    first = servers[0]
    tls = first.scheme == "kafka+tls"
    options: dict[str, Any] = {
        "bootstrap_servers": [_server(each) for each in servers],
        "client_id": "userrealtime",
        "request_timeout_ms": REQUEST_TIMEOUT * 1000,
        "security_protocol": "SSL" if tls else "PLAINTEXT",
        "ssl_context": kept_current(client_context()) if tls else None,
    }
    if first.username is not None:
        options |= {
            "security_protocol": "SASL_SSL" if tls else "SASL_PLAINTEXT",
            "sasl_mechanism": parse_qs(first.query).get("mechanism", ["PLAIN"])[0],
            "sasl_plain_username": unquote(first.username),
            "sasl_plain_password": unquote(first.password or ""),
        }
    return options


def _server(url: SplitResult) -> str:
    """Return `host:port`. An IPv6 address has brackets; `hostname` is without them."""
    host = url.hostname or ""
    return f"{f'[{host}]' if ':' in host else host}:{url.port or DEFAULT_PORT}"


async def _stop(client: AIOKafkaConsumer | AIOKafkaProducer) -> None:
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await client.stop()
    except (KafkaError, OSError, TimeoutError):
        pass  # it is lost in any case


@contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except (KafkaError, OSError, TimeoutError) as error:
        raise Unreachable(f"{type(error).__name__}: {error}") from None
