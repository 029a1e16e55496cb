"""An attacker that controls the broker, or has the broker's URL of a pod: messages are hints, and withhold no event."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from testing.database import Database
from testing.installation import installation
from testing.patience import PATIENCE_S
from testing.relay.brokers import PASSWORD, bridging, make_broker
from testing.relay.harness import NEVER, USER, client, publish, receive, receive_ids, running, until
from userrealtime_core.secret import Secret
from userrealtime_core.wire.position import LogMoved, LogPosition
from userrealtime_relay.notify import Unreachable, redis
from userrealtime_relay.notify.broker import load


@asynccontextmanager
async def lying_redis(messages: list[str]) -> AsyncIterator[int]:
    """Serve as a Redis that accepts subscriptions and then repeats these messages; yield its port."""
    tasks: set[asyncio.Task[None]] = set()
    channel = f"user:{USER}:events".encode()

    async def lie(writer: asyncio.StreamWriter) -> None:
        while True:
            for message in [text.encode() for text in messages]:
                writer.write(
                    b"*3\r\n$7\r\nmessage\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"
                    % (len(channel), channel, len(message), message)
                )
            await asyncio.sleep(0.1)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            if b"SUBSCRIBE" in line:
                writer.write(b"*3\r\n$9\r\nsubscribe\r\n$%d\r\n%b\r\n:1\r\n" % (len(channel), channel))
                tasks.add(asyncio.create_task(lie(writer)))
            elif b"PING" in line:
                writer.write(b"*2\r\n$4\r\npong\r\n$0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize(
    "message", ["0 {epoch}", "1 {epoch}", "{present} {epoch}", "99999 {epoch}", "0 another", "nonsense"]
)
async def test_a_lying_broker_withholds_no_event(message: str) -> None:
    """It repeats an old position, the current one, a future one, or none."""
    async with installation() as site:
        admin = await asyncpg.connect(site.admin_url)
        await admin.execute("select userrealtime.publish($1, 'test') from generate_series(1, 2)", USER)
        epoch = await admin.fetchval("select epoch from userrealtime.log where user_id = $1", USER)
        messages = [message.format(epoch=epoch, present=2)]
        async with (
            lying_redis(messages) as port,
            running(
                await site.relay_url(USER),
                None,
                SIGNAL="redis",
                REDIS_URL=f"redis://127.0.0.1:{port}",
                POLL_INTERVAL="0.5",
                DATABASE_IDLE_AFTER="0.1",
            ) as relay,
            client(relay) as connection,
        ):
            assert (await receive(connection))["cursor"] == 2
            for number in (3, 4):
                await admin.execute("select userrealtime.publish($1, 'test')", USER)
                assert (await receive(connection))["id"] == number
                if "{present}" in message:
                    messages[:] = [message.format(epoch=epoch, present=number)]
        await admin.close()


@pytest.mark.parametrize(
    "reply",
    [
        b"*1000\r\n" + b"$60000\r\n%b\r\n" % (b"x" * 60_000) * 1000,
        b"*1000\r\n" + b"*1000\r\n" * 2 + b":1\r\n" * 1_000_000,
        b"*60000\r\n" + b":1\r\n" * 60_000,
        b"*1000\r\n" + b"+%b\r\n" % (b"x" * 60_000) * 1000,
        b"$70000\r\n%b\r\n" % (b"x" * 70_000),
    ],
    ids=["strings", "nested", "elements", "lines", "string"],
)
async def test_a_large_reply_of_a_broker_is_not_kept(reply: bytes) -> None:
    """A Redis cannot use up the memory of a relay: the connection ends before the rest of the reply is read."""

    closed = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(reply)
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        closed.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = Secret(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(Unreachable, match=r"reply of more than|a line of type"):
            await redis.subscribe(url, USER, lambda _message: None)
        await closed.wait()
    server.close()
    await server.wait_closed()


WITH_ACCOUNTS = ("nats", "redis")
"""The brokers whose accounts need no further server."""


@pytest.mark.parametrize("name", WITH_ACCOUNTS)
async def test_an_account_that_may_only_subscribe_is_enough_for_a_relay(
    migrated: Database, connection: asyncpg.Connection, name: str
) -> None:
    async with make_broker(name, PASSWORD) as broker:
        settings = {**broker.variables, f"{name.upper()}_URL": broker.subscriber_url, "POLL_INTERVAL": NEVER}
        async with (
            bridging(migrated.url, broker, POLL_INTERVAL=NEVER),
            running(migrated.url, None, **settings) as relay,
            client(relay) as alice,
        ):
            assert (await receive(alice))["cursor"] == 0
            await publish(connection, 3)
            assert await receive_ids(alice, 3) == [1, 2, 3]


@pytest.mark.parametrize("name", WITH_ACCOUNTS)
async def test_an_account_that_may_only_subscribe_cannot_publish(name: str) -> None:
    module, heard = load(name), list[bytes]()
    async with make_broker(name, PASSWORD) as broker:
        subscription = asyncio.create_task(module.subscribe(Secret(broker.subscriber_url), USER, heard.append))
        try:
            await until(lambda: heard == [b""] or subscription.done())
            for url, head in ((broker.subscriber_url, 1), (broker.url, 2)):
                with contextlib.suppress(Unreachable):
                    async with module.publishing(Secret(url)) as tell:
                        await tell([LogMoved(USER, LogPosition(head, "e"))])
            await until(lambda: b"2 e" in heard or subscription.done())
            assert heard == [b"", b"2 e"]
        finally:
            subscription.cancel()
            await asyncio.wait([subscription])
