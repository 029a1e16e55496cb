from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from testing.database import Database
from testing.relay.harness import PATIENCE_S, USER, events, numbers, publish
from userrealtime_core.secret import Secret
from userrealtime_core.wire.position import LogState
from userrealtime_relay.log.log import ERRORS, Log, LogReplaced


@pytest.fixture
async def log(migrated: Database) -> AsyncIterator[Log]:
    log = await Log.connect(Secret(migrated.url), USER)
    yield log
    log.abandon()


async def test_a_log_without_events_is_open(log: Log) -> None:
    opened, _ = await log.open()
    assert opened == LogState(0, 1, opened.epoch)
    assert opened.epoch is not None
    assert not await log.page(0, max_events=10, max_bytes=1000)


async def test_open_tells_where_the_log_stands(log: Log, connection: asyncpg.Connection) -> None:
    await publish(connection, 5)
    await connection.execute("delete from userrealtime.event where id <= 2")
    opened, _ = await log.open()
    assert (opened.head, opened.earliest) == (5, 3)
    assert opened.epoch
    await connection.execute("delete from userrealtime.event")
    assert (await log.open())[0].earliest == 6


async def test_a_page_is_what_comes_after_a_number(log: Log, connection: asyncpg.Connection) -> None:
    await publish(connection, 5)
    await connection.execute("select userrealtime.publish('bob', 'not.hers')")
    page = await log.page(2, max_events=10, max_bytes=1000)
    assert numbers(page) == [3, 4, 5]
    event = events(page)[0]
    assert event["event"] == "test.event"
    assert event["data"] == {"n": 3, "text": "xxxxxxxxxx"}
    assert abs(datetime.fromisoformat(event["at"]) - datetime.now(UTC)) < timedelta(minutes=5)
    assert not await log.page(5, max_events=10, max_bytes=1000)
    assert numbers(await log.page(0, max_events=2, max_bytes=1000)) == [1, 2]


@pytest.mark.parametrize("size", [1000, 100_000])
async def test_a_page_ends_once_it_has_its_bytes(log: Log, connection: asyncpg.Connection, size: int) -> None:
    # Postgres compresses these to a hundredth. The limit applies to the uncompressed size.
    await publish(connection, 20, size=size)
    page = await log.page(0, max_events=500, max_bytes=3 * size)
    assert numbers(page) == [1, 2, 3]
    assert numbers(await log.page(3, max_events=500, max_bytes=1)) == [4]


async def test_a_page_ends_at_a_gap(log: Log, connection: asyncpg.Connection) -> None:
    await publish(connection, 9)
    await connection.execute("delete from userrealtime.event where id = 4")
    assert numbers(await log.page(0, max_events=500, max_bytes=1000)) == [1, 2, 3]
    assert numbers(await log.page(3, max_events=2, max_bytes=1000)) == [5, 6]


@pytest.mark.parametrize("pooled", [False, True])
async def test_one_event_is_a_page(migrated: Database, connection: asyncpg.Connection, pooled: bool) -> None:
    log = await Log.connect(Secret(migrated.url), USER, pooled=pooled)
    assert not await log.event(1)
    await publish(connection, 3)
    page = await log.event(2)
    assert numbers(page) == [2]
    assert events(page) == events(await log.page(1, max_events=1, max_bytes=1))
    await connection.execute("delete from userrealtime.event where id = 2")
    assert not await log.event(2)
    assert not await log.event(4)
    log.abandon()


@pytest.mark.parametrize("head", [3, 9])
async def test_a_page_of_another_log_is_not_taken_for_this_ones(
    log: Log, connection: asyncpg.Connection, head: int
) -> None:
    await publish(connection, 9)
    await log.open()
    await connection.execute("delete from userrealtime.event where id > $1", head)
    await connection.execute("update userrealtime.log set head = $1, epoch = 'another'", head)
    await publish(connection, 5)
    for after in (head, head + 5):
        with pytest.raises(LogReplaced):
            await log.page(after, max_events=10, max_bytes=1000)
        with pytest.raises(LogReplaced):
            await log.event(after + 1)
    await log.open()
    assert len(await log.page(head, max_events=10, max_bytes=1000)) == 5


async def test_the_first_epoch_is_not_another(log: Log, connection: asyncpg.Connection) -> None:
    await log.open()
    await publish(connection, 2)
    assert len(await log.page(0, max_events=10, max_bytes=1000)) == 2


async def test_listening_wakes_at_each_commit_and_at_the_end(log: Log, connection: asyncpg.Connection) -> None:
    wakes: asyncio.Queue[None] = asyncio.Queue()
    await log.attend("pod", listens=True)
    await log.listen((await log.open())[1], lambda: wakes.put_nowait(None))
    async with asyncio.timeout(PATIENCE_S):
        await publish(connection)
        await wakes.get()
        await publish(connection)
        await wakes.get()
        assert wakes.empty()
        log.abandon()
        await wakes.get()
    with pytest.raises(ERRORS):
        await log.open()


async def test_many_may_ask_at_once_and_leave(log: Log, connection: asyncpg.Connection) -> None:
    await publish(connection, 100)
    tasks = [asyncio.create_task(log.page(after, max_events=500, max_bytes=10**6)) for after in range(50)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    async with asyncio.timeout(PATIENCE_S):
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    for after, outcome in enumerate(outcomes):
        if after % 2:
            assert not isinstance(outcome, BaseException)
            assert numbers(outcome) == list(range(after + 1, 101))
        else:
            assert isinstance(outcome, asyncio.CancelledError)


@pytest.mark.parametrize(
    "url", ["postgresql://a:hunter2@b/c@d:x/e", "postgresql://u:hun/ter2@db/app", "postgresql://u:p@db:hunter2/app"]
)
async def test_a_url_that_cannot_be_parsed_is_not_quoted(url: str) -> None:
    with pytest.raises(ERRORS) as raised:
        await Log.connect(Secret(url), USER)
    assert raised.value.__cause__ is None
    for part in ("hunter2", "ter2"):
        assert part not in str(raised.value)


async def test_no_transaction_stays_open(log: Log, connection: asyncpg.Connection) -> None:
    await log.listen((await log.open())[1], lambda: None)
    await log.page(0, max_events=10, max_bytes=10)
    states = await connection.fetch("select state from pg_stat_activity where application_name = 'userrealtime-relay'")
    assert [row["state"] for row in states if row["state"] != "idle"] == []
    assert states


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("fraction", ["000000", "100000", "000010", "123456"])
async def test_times_are_utc_with_microseconds_always(
    migrated: Database, connection: asyncpg.Connection, fraction: str, pooled: bool
) -> None:
    await publish(connection, 1)
    await connection.execute(f"update userrealtime.event set at = '2026-01-02 03:00:00.{fraction}+02'")
    database = await connection.fetchval("select current_database()")
    for setting in ("timezone = 'Asia/Kolkata'", "datestyle = 'SQL, DMY'"):
        await connection.execute(f"alter database {database} set {setting}")
    log = await Log.connect(Secret(migrated.url), USER, pooled=pooled)
    for page in (await log.page(0, max_events=1, max_bytes=1), await log.event(1)):
        assert [event["at"] for event in events(page)] == [f"2026-01-02T01:00:00.{fraction}Z"]
    log.abandon()


async def test_a_plan_made_while_the_tables_were_small_is_no_trap(log: Log, connection: asyncpg.Connection) -> None:
    """No query reads all events for one page, with any statistics."""
    await publish(connection, 5)
    await connection.execute("analyze")
    for _ in range(10):  # more executions than those before a generic plan
        await log.page(0, max_events=500, max_bytes=1 << 20)
        await log.event(1)
        await log.open()
    await publish(connection, 20_000)
    read = (
        "select seq_tup_read + idx_tup_fetch from pg_stat_user_tables "
        "where schemaname = 'userrealtime' and relname = 'event'"
    )
    before = await connection.fetchval(read)
    for after in range(0, 20_000, 500):
        assert len(await log.page(after, max_events=500, max_bytes=1 << 20)) == 500
        assert len(await log.event(after + 1)) == 1
        await log.open()
    log.abandon()  # a backend's counts are visible when it has ended
    relays = "select count(*) from pg_stat_activity where application_name = 'userrealtime-relay'"
    async with asyncio.timeout(PATIENCE_S):
        while await connection.fetchval(relays):
            await asyncio.sleep(0.05)
    assert 20_000 <= await connection.fetchval(read) - before < 30_000
