"""An attacker with the database credential of one user's pod, against the signals of all others."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from testing.installation import installation
from testing.relay.brokers import bridging, make_broker
from testing.relay.harness import USER, client, receive, running
from testing.skipping import require_postgres
from userrealtime_core.announcer.queue import DOORBELL

FLOODS = 2
MALLORY = "mallory"


@asynccontextmanager
async def flooding(url: str, *payloads: str) -> AsyncIterator[None]:
    """Run connections that notify the doorbell, and the channel of earlier versions, while the block runs."""

    async def flood() -> None:
        connection = await asyncpg.connect(url)
        try:
            while True:
                for payload in payloads:
                    await connection.execute(
                        "select pg_notify($1, $2), pg_notify('userrealtime', $2)", DOORBELL, payload
                    )
        finally:
            connection.terminate()

    tasks = [asyncio.create_task(flood()) for _ in range(FLOODS)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_forged_notifications_withhold_no_event() -> None:
    async with installation() as site, make_broker("nats") as broker:
        admin = await asyncpg.connect(site.admin_url)
        await admin.execute("insert into userrealtime.log (user_id) values ($1)", USER)
        epoch = await admin.fetchval("select epoch from userrealtime.log where user_id = $1", USER)
        channel = await admin.fetchval("select userrealtime.channel($1)", USER)
        forged = (json.dumps({USER: [0, epoch]}), channel, f"{channel} {channel}", f"0 {epoch}")
        async with (
            bridging(site.operator_url, broker, POLL_INTERVAL="600"),
            running(await site.relay_url(USER), None, **broker.variables, POLL_INTERVAL="600") as relay,
            client(relay) as connection,
        ):
            assert (await receive(connection))["type"] == "connected"
            async with flooding(await site.relay_url(MALLORY), *forged):
                for number in range(1, 20):
                    await admin.execute("select userrealtime.publish($1, 'test')", USER)
                    assert (await receive(connection))["id"] == number
        await admin.close()


async def test_a_full_notification_queue_delays_no_event() -> None:
    require_postgres(17, "setting for the size of the queue")
    async with installation({"max_notify_queue_pages": "64"}) as site:
        admin = await asyncpg.connect(site.admin_url)
        url = await site.relay_url(MALLORY)
        listener, filler = await asyncpg.connect(url), await asyncpg.connect(url)
        async with (
            running(await site.relay_url(USER), None, POLL_INTERVAL="1") as relay,
            client(relay) as connection,
        ):
            assert (await receive(connection))["type"] == "connected"
            # The limits of the role are defaults, which it may change.
            await listener.execute("set idle_in_transaction_session_timeout = 0; set statement_timeout = 0")
            await listener.execute("listen anything")
            await listener.execute("begin; select 1")
            with pytest.raises(asyncpg.ProgramLimitExceededError):
                await fill(filler)
            await admin.execute("select userrealtime.publish($1, 'test')", USER)
            assert (await receive(connection))["id"] == 1
            await connection.send(json.dumps({"type": "publish", "ref": "one", "event": "typed", "data": {}}))
            assert (await receive(connection))["type"] == "ack"
        for each in (listener, filler, admin):
            await each.close()


async def fill(connection: asyncpg.Connection) -> None:
    while True:
        await connection.execute("select pg_notify('x', repeat('y', 7900) || n) from generate_series(1, 16) n")


async def test_channels_name_no_user() -> None:
    async with installation() as site:
        admin = await asyncpg.connect(site.admin_url)
        thief, received = await asyncpg.connect(await site.relay_url(MALLORY)), list[str]()
        channels = (DOORBELL, "userrealtime", "userrealtime_inbox")
        for channel in channels:
            await thief.add_listener(channel, lambda *notified: received.append(str(notified[3])))
        await thief.execute("select userrealtime.attend($1, 'pod', true)", MALLORY)
        users = ["bob@example.com", "carol@example.com"]
        await admin.execute("select userrealtime.publish(u, 'test') from unnest($1::text[]) u", users)
        await admin.execute("select userrealtime.submit(u, 'ref', 'typed') from unnest($1::text[]) u", users)
        await admin.execute("select pg_notify('userrealtime', 'last')")
        async with asyncio.timeout(60):
            while "last" not in received:
                await asyncio.sleep(0.01)
        assert len(received) > 2
        assert not any(name in payload for payload in received for name in ("bob", "carol", "@", "example"))
        await thief.close()
        await admin.close()
