"""The rate of retention compared with that of publishing: `python -m bench.retention` prints the table of docs/log.md.

A log of 10 million events of 1,000 users, of which 1,000 reach the maximum age every second, while 1,000 transactions a
second publish new ones. The operator's own code deletes what is overdue. The same load without retention stands beside
it. Retention keeps up if no more is overdue at the end than expires between two passes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import sys
import time
from dataclasses import dataclass
from typing import Final

import asyncpg

from bench.durable import DEFAULT_FLUSH_MS, described, durable_postgres
from testing.local.postgres import LocalPostgres
from userrealtime_operator.model.policies import Retention
from userrealtime_operator.postgres.database import Database
from userrealtime_operator.postgres.migrate import migrate
from userrealtime_operator.postgres.retention import prune

USERS: Final = 1000
WRITERS: Final = 16
LOAD_TIMEOUT_S: Final = 1800
SCRIPT: Final = f"""
\\set number random(1, {USERS})
select userrealtime.publish('user-' || :number, 'bench', '{{"text": "hello"}}');
"""


@dataclass(frozen=True)
class Outcome:
    """The result of one load. Times are in milliseconds."""

    name: str
    tps: float
    latency: float
    deviation: float
    deleted: int
    overdue: int
    longest_pass_s: float
    growth_mib: float


async def fill(connection: asyncpg.Connection, rows: int, rate: float) -> None:
    """Write a log with evenly distributed ages, of which `rate` events reach the age of the oldest every second."""
    each = rows // USERS
    for statement in (
        # The primary key is built once all rows are there, which is faster.
        "alter table userrealtime.event drop constraint event_pkey",
        f"""
        insert into userrealtime.event (user_id, id, event, at, data)
        select 'user-' || u, n, 'bench', now() - ({each} - n) * {USERS / rate} * interval '1 second',
               '{{"text": "hello"}}'
        from generate_series(1, {each}) n, generate_series(1, {USERS}) u
        """,
        "alter table userrealtime.event add primary key (user_id, id)",
        f"insert into userrealtime.log (user_id, head) select 'user-' || u, {each} from generate_series(1, {USERS}) u",
        "analyze userrealtime.event, userrealtime.log",
    ):
        await connection.execute(statement, timeout=LOAD_TIMEOUT_S)


async def measure(
    server: LocalPostgres, name: str, retention: Retention | None, rate: float, seconds: float, interval: float
) -> Outcome:
    """Publish at a rate, and prune every `interval` seconds if there is retention."""
    admin = await asyncpg.connect(server.url())
    before = await size(admin)
    deleted, longest = 0, 0.0

    async def keep_pruning() -> None:
        nonlocal deleted, longest
        async with Database(server.url()) as database:
            while retention is not None:
                began = time.monotonic()
                events, _ = await prune(database, retention, [])
                deleted += events
                longest = max(longest, time.monotonic() - began)
                await asyncio.sleep(interval)

    pruning = asyncio.create_task(keep_pruning())
    try:
        tps, latency, deviation = await publish(server, rate, seconds)
    finally:
        pruning.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await pruning
    overdue = 0
    if retention is not None:
        query = "select count(*) from userrealtime.event where at < now() - $1 * interval '1 second'"
        overdue = await admin.fetchval(query, retention.max_age_s, timeout=LOAD_TIMEOUT_S)
    grown = (await size(admin) - before) / 2**20
    await admin.close()
    return Outcome(name, tps, latency, deviation, deleted, overdue, longest, grown)


async def size(connection: asyncpg.Connection) -> int:
    number: int = await connection.fetchval("select pg_total_relation_size('userrealtime.event')")
    return number


async def publish(server: LocalPostgres, rate: float, seconds: float) -> tuple[float, float, float]:
    """Return the transactions per second, and the average and the deviation of their latency in ms."""
    process = await asyncio.create_subprocess_exec(
        server.program("pgbench"),
        *("--no-vacuum", "--protocol", "prepared", "--client", str(WRITERS), "--jobs", "2", "--file", "-"),
        *("--rate", str(rate), "--time", str(round(seconds)), server.url()),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(seconds + 120):
            output, errors = await process.communicate(SCRIPT.encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    said = output.decode()
    figures = [
        re.search(rf"^{name} = ([\d.]+)", said, re.MULTILINE) for name in ("tps", "latency average", "latency stddev")
    ]
    if process.returncode != 0 or not all(figures):
        raise RuntimeError(f"pgbench failed: {errors.decode()[-1000:]}")
    tps, latency, deviation = (float(found[1]) for found in figures if found is not None)
    return tps, latency, deviation


async def run(server: LocalPostgres, rows: int, rate: float, seconds: float, interval: float) -> list[Outcome]:
    await migrate(server.url())
    connection = await asyncpg.connect(server.url())
    began = time.monotonic()
    await fill(connection, rows, rate)
    print(f"{rows:,} events written in {time.monotonic() - began:.0f} s", flush=True)
    await connection.close()
    # The first events to reach this age are the oldest ones of the written log.
    retention = Retention(max_age_s=rows / rate)
    return [
        await measure(server, "without retention", None, rate, seconds, interval),
        await measure(server, "with retention", retention, rate, seconds, interval),
    ]


def table(outcomes: list[Outcome]) -> str:
    """Return the results as a Markdown table."""
    titles = ("commits/s", "latency, average ± deviation", "deleted", "overdue at the end", "longest pass", "growth")
    lines = [f"| | {' | '.join(titles)} |", f"|---|{'---|' * len(titles)}"]
    for each in outcomes:
        lines.append(
            f"| {each.name} | {each.tps:,.0f} | {each.latency:.1f} ± {each.deviation:.1f} ms | {each.deleted:,} | "
            f"{each.overdue:,} | {each.longest_pass_s:.1f} s | {each.growth_mib:,.0f} MiB |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.retention", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=10_000_000, help="events in the log (default: 10 million)")
    parser.add_argument("--rate", type=float, default=1000, help="events published, and expiring, a second")
    parser.add_argument("--seconds", type=float, default=120, help="how long each load lasts (default: 120)")
    parser.add_argument(
        "--interval", type=float, default=60, help="seconds between two passes (default: 60, as in the operator)"
    )
    parser.add_argument("--flush", type=float, default=DEFAULT_FLUSH_MS, metavar="MS", help="WAL flush (default: 2 ms)")
    options = parser.parse_args()
    print(
        f"PostgreSQL 18, {described(options.flush)}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; "
        f"{options.rows:,} events, {options.rate:g} published and {options.rate:g} expiring a second",
        flush=True,
    )
    settings = {"max_wal_size": "4GB", "shared_buffers": "1GB", "maintenance_work_mem": "512MB"}
    with durable_postgres(options.flush, settings) as server:
        outcomes = asyncio.run(run(server, options.rows, options.rate, options.seconds, options.interval))
    print(f"\n{table(outcomes)}")
    expiring = options.rate * (options.interval + outcomes[-1].longest_pass_s)
    kept = outcomes[-1].overdue <= 1.2 * expiring
    print(f"\nretention {'keeps up' if kept else 'DOES NOT keep up'}: {expiring:,.0f} events expire between two passes")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
