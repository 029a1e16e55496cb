"""The ready-made trigger on a hypertable of TimescaleDB.

`python -m tests.timescale SOURCES` builds such a server and runs these tests with it.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest

from testing.patience import PATIENCE_S
from tests import timescale
from userrealtime_operator.postgres.migrate import migrate


@pytest.fixture
async def readings() -> AsyncIterator[asyncpg.Connection]:
    """A connection to a new database, with a captured hypertable whose chunks are days."""
    server = os.environ.get(timescale.VARIABLE)
    if not server:
        pytest.skip(f"{timescale.VARIABLE} names no server with TimescaleDB; python -m tests.timescale builds one")
    name = f"test_{secrets.token_hex(4)}"
    owner = await asyncpg.connect(server, timeout=PATIENCE_S)
    await owner.execute(f"create database {name}")
    try:
        url = server.rpartition("/")[0] + f"/{name}"
        await migrate(url)
        connection = await asyncpg.connect(url, timeout=PATIENCE_S)
        await connection.execute("create extension timescaledb")
        await connection.execute(
            """
            create table readings (at timestamptz not null, owner text, value int);
            select create_hypertable('readings', 'at', chunk_time_interval => interval '1 day');
            create trigger publish_readings after insert or update or delete on readings
                for each row execute function userrealtime.capture('owner', 'reading');
            """
        )
        yield connection
        await connection.close(timeout=5)
    finally:
        await owner.execute(f"drop database {name} with (force)")
        await owner.close(timeout=5)


def rows(count: int) -> list[tuple[datetime, str, int]]:
    """Return readings of seven users, each one hour after the previous one."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    return [(start + timedelta(hours=number), f"user-{number % 7}", number) for number in range(count)]


def test_a_folder_without_the_sources_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert timescale.main([str(tmp_path)]) == timescale.MISSING
    assert f"nothing was tested: {tmp_path} is no checkout of TimescaleDB" in capsys.readouterr().err


async def test_every_row_of_every_chunk_is_published(readings: asyncpg.Connection) -> None:
    await readings.executemany("insert into readings values ($1, $2, $3)", rows(100))
    await readings.copy_records_to_table("readings", records=rows(2_000))
    of_user = "select count(*) from readings where owner = $1"
    first, second = await readings.fetchval(of_user, "user-0"), await readings.fetchval(of_user, "user-1")
    await readings.execute("update readings set value = value + 1 where owner = 'user-0'")
    await readings.execute("delete from readings where owner = 'user-1'")
    assert await readings.fetchval("select count(*) from show_chunks('readings')") > 50
    found = await readings.fetch("select event, count(*) from userrealtime.event group by event")
    assert {row["event"]: row["count"] for row in found} == {
        "reading.insert": 2_100,
        "reading.update": first,
        "reading.delete": second,
    }
    gaps = "select user_id from userrealtime.event group by user_id having count(*) <> max(id) - min(id) + 1"
    assert await readings.fetch(gaps) == []


async def test_dropping_a_chunk_publishes_nothing(readings: asyncpg.Connection) -> None:
    await readings.copy_records_to_table("readings", records=rows(100))
    await readings.execute("select drop_chunks('readings', timestamptz '2026-01-03')")
    assert await readings.fetchval("select count(*) from readings") < 100
    assert await readings.fetchval("select count(*) from userrealtime.event") == 100


async def test_rows_of_compressed_chunks_are_published(readings: asyncpg.Connection) -> None:
    """Compression itself publishes nothing; later changes are published, also those of a whole segment."""
    await readings.copy_records_to_table("readings", records=rows(100))
    await readings.execute(
        "alter table readings set (timescaledb.compress, timescaledb.compress_segmentby = 'owner');"
        "select compress_chunk(chunk) from show_chunks('readings') chunk"
    )
    compressed = "select count(*) from timescaledb_information.chunks where is_compressed"
    assert await readings.fetchval(compressed) > 3
    assert await readings.fetchval("select count(*) from userrealtime.event") == 100
    at, owner, _ = rows(1)[0]
    await readings.execute("insert into readings values ($1, $2, 1000)", at, owner)
    updated = await readings.execute("update readings set value = -1 where owner = 'user-1' and value = 50")
    deleted = await readings.execute("delete from readings where owner = 'user-2'")
    assert (updated, deleted) == ("UPDATE 1", "DELETE 14")
    found = await readings.fetch("select event, count(*) from userrealtime.event group by event")
    assert {row["event"]: row["count"] for row in found} == {
        "reading.insert": 101,
        "reading.update": 1,
        "reading.delete": 14,
    }
    owners = await readings.fetch("select distinct user_id from userrealtime.event where event = 'reading.delete'")
    assert [row["user_id"] for row in owners] == ["user-2"]
