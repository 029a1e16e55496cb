"""A client with a token, and the holder of a pod's credential, that fill the inbox, which all users share."""

from __future__ import annotations

import asyncio
import json
from unittest.mock import Mock

import asyncpg
import pytest

from testing.database import Database as OwnDatabase
from testing.installation import installation
from testing.operator.names import NAMES
from testing.patience import PATIENCE_S
from testing.relay.harness import client, metric, receive, running
from testing.relay.http_client import request
from userrealtime_operator.config import parse_config
from userrealtime_operator.model.policies import InboxQuota
from userrealtime_operator.postgres import retention
from userrealtime_operator.postgres.database import Database
from userrealtime_operator.postgres.retention import limit_inbox
from userrealtime_operator.process.metrics import Metrics
from userrealtime_operator.reconcile.reconciler import Reconciler
from userrealtime_operator.reconcile.resources import Resources
from userrealtime_operator.reconcile.tasks import Tasks
from userrealtime_operator.reconcile.triggers import Kind, Task

MALLORY = "mallory"
SUBMIT = "select userrealtime.submit($1, $2, 'x', $3)"
WAITING = "select count(*) from userrealtime.inbox where user_id = $1 and done is null"
DATA = json.dumps("x" * 1000)


async def fill(connection: asyncpg.Connection, user: str, attempts: int, prefix: str = "") -> int:
    """Submit messages until one is refused. Return how many were stored."""
    for number in range(attempts):
        try:
            await connection.execute(SUBMIT, user, f"{prefix}{number}", DATA)
        except asyncpg.ConfigurationLimitExceededError as error:
            assert "the inbox of this user is full" in str(error)  # noqa: PT017
            return number
    return attempts


@pytest.mark.parametrize("quota", [InboxQuota(max_messages=20), InboxQuota(max_messages=None, max_bytes=20 * 1300)])
async def test_a_pod_stores_no_more_than_the_quota(quota: InboxQuota) -> None:
    async with installation() as site, Database(site.operator_url) as database:
        assert await limit_inbox(database, quota) == 0
        thief = await asyncpg.connect(await site.relay_url(MALLORY))
        bob = await asyncpg.connect(await site.relay_url("bob"))
        admin = await asyncpg.connect(site.admin_url)
        assert await fill(thief, MALLORY, 100) == 20
        # In one transaction, with savepoints, and from several sessions.
        assert await fill(thief, MALLORY, 100, "again") == 0
        with pytest.raises(asyncpg.ConfigurationLimitExceededError):
            await thief.execute(
                "select userrealtime.submit($1, n::text || 'r', 'x', '1') from generate_series(1, 1000) n", MALLORY
            )
        assert await admin.fetchval(WAITING, MALLORY) == 20
        # A message that is known is acknowledged, and the other user is not limited.
        assert await thief.fetchval(SUBMIT, MALLORY, "0", DATA) > 0
        assert await fill(bob, "bob", 10) == 10
        assert await limit_inbox(database, quota) == 1

        # As the application processes messages, the user may send as many again, and no more.
        await admin.execute(
            "update userrealtime.inbox set done = now() where id in "
            "(select id from userrealtime.inbox where user_id = $1 order by id limit 5)",
            MALLORY,
        )
        assert await fill(thief, MALLORY, 100, "more") == 5
        await admin.execute("update userrealtime.inbox set done = now()")
        assert await limit_inbox(database, quota) == 0
        assert await fill(thief, MALLORY, 100, "last") == 20
        for connection in (thief, bob, admin):
            await connection.close()


async def test_many_sessions_together_store_no_more_than_the_quota() -> None:
    async with installation() as site, Database(site.operator_url) as database:
        await limit_inbox(database, InboxQuota(max_messages=20))
        url = await site.relay_url(MALLORY)
        sessions = [await asyncpg.connect(url) for _ in range(3)]
        counts = await asyncio.gather(*(fill(each, MALLORY, 100, f"s{n}-") for n, each in enumerate(sessions)))
        assert sum(counts) == 20
        for session in sessions:
            await session.close()


async def test_a_locked_quota_delays_no_other_party() -> None:
    """A pod that holds the row of its usage in an open transaction delays only messages of its own user."""
    async with installation() as site, Database(site.operator_url) as database:
        quota = InboxQuota(max_messages=5)
        await limit_inbox(database, quota)
        thief = await asyncpg.connect(await site.relay_url(MALLORY))
        bob = await asyncpg.connect(await site.relay_url("bob"))
        admin = await asyncpg.connect(site.admin_url)
        assert await fill(thief, MALLORY, 4) == 4
        transaction = thief.transaction()
        await transaction.start()
        await thief.execute(SUBMIT, MALLORY, "held", DATA)
        async with asyncio.timeout(PATIENCE_S):
            assert await limit_inbox(database, quota) == 0
            assert await fill(bob, "bob", 1) == 1
            # The application marks messages as done, and submits messages for the user.
            await admin.execute("update userrealtime.inbox set done = now()")
            await admin.execute(SUBMIT, MALLORY, "of the application", DATA)
            await admin.execute("delete from userrealtime.inbox where done is not null")
        await transaction.rollback()
        for connection in (thief, bob, admin):
            await connection.close()


PROCESS = "update userrealtime.inbox set done = now() where done is null"
PROCESSED = "select array_agg(ref order by id) from userrealtime.inbox where user_id = $1 and done is not null"


@pytest.mark.parametrize("quota", [InboxQuota(max_messages=20), InboxQuota(max_messages=None, max_bytes=20 * 1300)])
async def test_processed_messages_have_the_quota_too(quota: InboxQuota, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod sends without a pause, and the application processes everything at once."""
    monkeypatch.setattr(retention, "BATCH", 7)
    async with installation() as site, Database(site.operator_url) as database:
        await limit_inbox(database, quota)
        thief = await asyncpg.connect(await site.relay_url(MALLORY))
        bob = await asyncpg.connect(await site.relay_url("bob"))
        admin = await asyncpg.connect(site.admin_url)
        assert await fill(bob, "bob", 10) == 10
        stored: list[str] = []
        for number in range(8):
            assert await fill(thief, MALLORY, 20, f"{number}-") == 20
            await admin.execute(PROCESS)
            await limit_inbox(database, quota)
            stored = await admin.fetchval(PROCESSED, MALLORY)
            assert len(stored) <= 40
        # The newest are kept, because a client may repeat them.
        assert stored[-1] == "7-19"
        assert stored[-20:] == [f"7-{number}" for number in range(20)]
        known = await admin.fetchval("select id from userrealtime.inbox where ref = '7-0'")
        assert await thief.fetchval(SUBMIT, MALLORY, "7-0", DATA) == known
        assert len(await admin.fetchval(PROCESSED, "bob")) == 10
        # Without a quota, all are kept.
        await limit_inbox(database, InboxQuota(max_messages=None, max_bytes=None))
        for number in range(8):
            assert await fill(thief, MALLORY, 20, f"free-{number}-") == 20
        await admin.execute(PROCESS)
        await limit_inbox(database, InboxQuota(max_messages=None, max_bytes=None))
        assert len(await admin.fetchval(PROCESSED, MALLORY)) == len(stored) + 160
        for connection in (thief, bob, admin):
            await connection.close()


async def test_a_locked_quota_keeps_no_processed_messages() -> None:
    """A pod that holds the row of its usage all the time, and only commits to send more."""
    async with installation() as site, Database(site.operator_url) as database:
        quota = InboxQuota(max_messages=5)
        await limit_inbox(database, quota)
        thief = await asyncpg.connect(await site.relay_url(MALLORY))
        admin = await asyncpg.connect(site.admin_url)
        async with asyncio.timeout(PATIENCE_S):
            for number in range(8):
                assert await fill(thief, MALLORY, 5, f"{number}-") == 5
                await admin.execute(PROCESS)
                transaction = thief.transaction()
                await transaction.start()
                await thief.execute(SUBMIT, MALLORY, "held", DATA)
                await limit_inbox(database, quota)
                assert len(await admin.fetchval(PROCESSED, MALLORY)) <= 10
                await transaction.rollback()
        await thief.close()
        await admin.close()


async def test_the_application_is_not_limited() -> None:
    async with installation() as site, Database(site.operator_url) as database:
        await limit_inbox(database, InboxQuota(max_messages=5))
        admin = await asyncpg.connect(site.admin_url)
        assert await fill(admin, MALLORY, 30) == 30
        await admin.close()


async def test_a_crash_of_the_database_lifts_no_quota() -> None:
    """The usage is in a table that a crash empties."""
    async with installation() as site, Database(site.operator_url) as database:
        await limit_inbox(database, InboxQuota(max_messages=5))
        thief = await asyncpg.connect(await site.relay_url(MALLORY))
        admin = await asyncpg.connect(site.admin_url)
        assert await fill(thief, MALLORY, 10) == 5
        await admin.execute("truncate userrealtime.inbox_usage")
        assert await fill(thief, MALLORY, 10, "again") == 0
        await thief.close()
        await admin.close()


async def test_a_client_is_asked_to_repeat_its_message(migrated: OwnDatabase, connection: asyncpg.Connection) -> None:
    """With shared credentials, too: the fixture's relay uses the role of the owner."""
    async with Database(migrated.url) as database:
        await limit_inbox(database, InboxQuota(max_messages=3))
    body = json.dumps({"ref": "http", "event": "x"}).encode()
    async with running(migrated.url) as relay, client(relay) as alice:
        await receive(alice)
        for ref in ("a", "b", "c"):
            await alice.send(json.dumps({"type": "publish", "ref": ref, "event": "x"}))
            assert (await receive(alice))["type"] == "ack"
        await alice.send(json.dumps({"type": "publish", "ref": "d", "event": "x"}))
        error = await receive(alice)
        assert (error["type"], error["code"], error["ref"]) == ("error", "unavailable", "d")
        assert "inbox of this user is full" in error["message"]
        answer = await request(relay, "/publish", method="POST", body=body)
        assert answer.status == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert await metric(relay, 'submissions_total{outcome="full"}') >= 2
        assert await connection.fetchval("select count(*) from userrealtime.inbox") == 3

        await connection.execute("update userrealtime.inbox set done = now()")
        async with asyncio.timeout(PATIENCE_S):
            while (await request(relay, "/publish", method="POST", body=body)).status != 200:
                await asyncio.sleep(0.1)


async def test_the_operator_sets_the_quota_of_its_configuration(
    migrated: OwnDatabase, connection: asyncpg.Connection
) -> None:
    config = parse_config(
        "{namespaces: [users], relay: {image: x}, log: {inbox: {maxMessages: 5, maxBytes: 0}}}",
        {"DATABASE_URL": migrated.url},
    )
    metrics = Metrics()
    async with Database(migrated.url) as database:
        tasks = Tasks(Mock(spec=Reconciler), Resources(NAMES), database, config.log, ["here/users"], print, metrics)
        assert await tasks.run(Task(Kind.PRUNE)) is not None
        quota = await connection.fetchrow("select max_messages, max_bytes from userrealtime.inbox_quota")
        assert quota is not None
        assert tuple(quota) == (5, None)
        for number in range(4):
            await connection.execute("select userrealtime.submit('alice', $1, 'x', '{}', true)", str(number))
        await tasks.run(Task(Kind.PRUNE))
        assert "userrealtime_operator_nearly_full_inboxes 1.0" in metrics.expose().decode()
