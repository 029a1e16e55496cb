"""An attacker with the database credential of one user's pod, against the broadcasts of others."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from testing.announcer import broadcasting, until_async
from testing.installation import Installation, installation
from testing.relay.harness import NEVER, USER, client, receive, running
from userrealtime_core.announcer.queue import BROADCAST_DOORBELL

MALLORY = "mallory"


@asynccontextmanager
async def attacked() -> AsyncIterator[tuple[Installation, asyncpg.Connection, asyncpg.Connection]]:
    """An installation with an announcer, a connection of its administrator, and one with the credential of a pod."""
    async with installation() as site, broadcasting(site.operator_url):
        admin = await asyncpg.connect(site.admin_url)
        thief = await asyncpg.connect(await site.relay_url(MALLORY))
        try:
            yield site, admin, thief
        finally:
            await thief.close()
            await admin.close()


@asynccontextmanager
async def delivering_during(
    flood: Callable[[], Coroutine[Any, Any, None]], count: int, site: Installation, admin: asyncpg.Connection
) -> AsyncIterator[list[dict[str, Any]]]:
    """During a flood, check that a client receives this number of broadcasts in order, and yield all of its messages.

    The flood must still go on at the end of the block.
    """
    flooding = asyncio.create_task(flood())
    try:
        async with running(await site.relay_url(USER), POLL_INTERVAL=NEVER) as relay, client(relay) as alice:
            assert (await receive(alice))["type"] == "connected"
            await until_async(lambda: has_sent(admin, relay_hears=relay.tail.broadcasts.head))
            sent = list(range(count))
            for number in sent:
                await admin.execute("select userrealtime.broadcast($1, 'test', to_jsonb($2::int))", USER, number)
            messages: list[dict[str, Any]] = []
            while not messages or messages[-1]["data"] != sent[-1]:
                messages.append(await receive(alice))
            assert [each["data"] for each in messages if each["data"] != "secret"] == sent
            yield messages
            assert not flooding.done()
    finally:
        flooding.cancel()
        await asyncio.wait([flooding])


async def test_a_pod_reads_and_sends_no_broadcast_of_another_user() -> None:
    async with attacked() as (site, admin, thief), running(await site.relay_url(USER), POLL_INTERVAL=NEVER) as relay:
        own = await thief.fetchval("select userrealtime.broadcast_channel($1)", MALLORY)
        victims = await admin.fetchval("select userrealtime.broadcast_channel($1)", USER)
        assert own == await admin.fetchval("select userrealtime.broadcast_channel($1)", MALLORY) != victims
        assert await thief.fetchval("select userrealtime.broadcast_channel($1)", USER) is None
        for query in (
            f"select userrealtime.broadcast('{USER}', 'forged')",
            f"select userrealtime.broadcast('{MALLORY}', 'forged')",
            f"select userrealtime.forward_broadcasts('{USER}', array['{{}}'])",
            "select userrealtime.take_broadcasts(1, null, 1)",
            "select userrealtime.lease_broadcasts(1)",
            "select userrealtime.release_broadcasts(1, null)",
            "select userrealtime.arm_broadcasts()",
            "select userrealtime.broadcast_channel_of('', '')",
            "select * from userrealtime.broadcast_queue",
            "delete from userrealtime.broadcast_queue",
            "select * from userrealtime.broadcast_secret",
            "select setval('userrealtime.broadcast_taken', 1)",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await thief.execute(query)
        # Where the names of channels could be read: the notifications of the announcer, and the queries of relays.
        received = list[str]()
        for channel in (own, BROADCAST_DOORBELL, "userrealtime"):
            await thief.add_listener(channel, lambda *notified: received.append(str(notified[3])))
        async with client(relay) as alice:
            assert (await receive(alice))["type"] == "connected"
            await until_async(lambda: has_sent(admin, relay_hears=relay.tail.broadcasts.head))
            assert (await receive(alice))["data"] == "secret"
        assert not any("secret" in payload or victims in payload for payload in received)
        queries = [row["query"] for row in await thief.fetch("select query from pg_stat_activity where query <> ''")]
        assert queries
        assert not any(victims in query for query in queries)


async def has_sent(admin: asyncpg.Connection, *, relay_hears: int) -> bool:
    """Broadcast until the relay listens."""
    if relay_hears == 0:
        await admin.execute("select userrealtime.broadcast($1, 'test', '\"secret\"')", USER)
        await asyncio.sleep(0.1)
    return relay_hears > 0


async def test_forged_notifications_lose_no_broadcast() -> None:
    """A pod can ring all the time, and can notify its own channel: its own clients receive only valid broadcasts."""
    async with attacked() as (site, admin, thief):
        forged = json.dumps({"type": "broadcast", "event": "forged", "data": 1})
        own = await thief.fetchval("select userrealtime.broadcast_channel($1)", MALLORY)

        async def flood() -> None:
            while True:
                for channel in (BROADCAST_DOORBELL, own, "urb_", "userrealtime"):
                    await thief.execute("select pg_notify($1, $2), pg_notify($1, 'x')", channel, f"1 {forged}")

        async with delivering_during(flood, 20, site, admin) as messages:
            assert all(each["event"] == "test" for each in messages)


async def test_a_pod_fills_no_queue_with_the_broadcasts_of_its_clients() -> None:
    """A pod can forward as fast as Postgres allows, also from transactions that stay open or are rolled back."""
    async with attacked() as (site, admin, thief):
        content = json.dumps({"type": "broadcast", "event": "flood", "data": "x" * 7000})

        async def flood() -> None:
            while True:
                transaction = thief.transaction()
                await transaction.start()
                await thief.execute(
                    "select userrealtime.forward_broadcasts($1, array_fill($2::text, array[200])) "
                    "from generate_series(1, 10)",
                    MALLORY,
                    content,
                )
                await transaction.rollback()
                await thief.execute(
                    "select userrealtime.forward_broadcasts($1, array_fill($2::text, array[200]))", MALLORY, content
                )

        async with delivering_during(flood, 100, site, admin):
            assert await admin.fetchval("select userrealtime.broadcasts_dropped()") == 0
