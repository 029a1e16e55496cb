"""What publishing costs: `python -m bench.log` prints the table of docs/log.md.

Every line is the median of several runs on a separate PostgreSQL, beside two yardsticks on the same server: the plain
insert of the same rows into a table with the same primary key, and the notification of whole rows, `pg_notify(...,
row_to_json(new))`, which many tutorials show and which no client can resume from.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
from collections.abc import Awaitable, Callable

import asyncpg

from bench.durable import DEFAULT_FLUSH_MS, described, durable_postgres
from userrealtime_operator.postgres.migrate import migrate

EVENTS = 20_000
SINGLE = 2_000

SETUP = """
create table plain (user_id text, id bigint, event text, at timestamptz, data jsonb, primary key (user_id, id));
create table captured (id bigint, owner text, body text);
create trigger publish after insert or update or delete on captured
    for each row execute function userrealtime.capture('owner');
create table notified (id bigint, owner text, body text);
create function notify_row() returns trigger language plpgsql as $$
begin
    perform pg_notify('events', row_to_json(new)::text);
    return new;
end $$;
create trigger notify after insert on notified for each row execute function notify_row();
create table untouched (id bigint, owner text, body text);
"""

Work = Callable[[asyncpg.Connection], Awaitable[object]]


def plain(users: int) -> Work:
    return lambda connection: connection.execute(
        f"insert into plain select 'user-' || i % {users}, i, 'bench', now(), jsonb_build_object('number', i) "
        f"from generate_series(1, {EVENTS}) i"
    )


def published(users: int) -> Work:
    return lambda connection: connection.execute(
        f"select userrealtime.publish('user-' || i % {users}, 'bench', jsonb_build_object('number', i)) "
        f"from generate_series(1, {EVENTS}) i"
    )


def rows_into(table: str) -> Work:
    return lambda connection: connection.execute(
        f"insert into {table} select i, 'user-' || i % 100, 'some text' from generate_series(1, {EVENTS}) i"
    )


def one_by_one(statement: str) -> Work:
    async def work(connection: asyncpg.Connection) -> None:
        for number in range(SINGLE):
            await connection.execute(statement, number)

    return work


CASES: dict[str, tuple[int, Work]] = {
    "plain insert, 1 user": (EVENTS, plain(1)),
    "publish(), 1 user": (EVENTS, published(1)),
    "plain insert, 1,000 users": (EVENTS, plain(1_000)),
    "publish(), 1,000 users": (EVENTS, published(1_000)),
    "publish(), 20,000 users": (EVENTS, published(EVENTS)),
    "rows, no trigger": (EVENTS, rows_into("untouched")),
    "rows, capture() trigger": (EVENTS, rows_into("captured")),
    "rows, pg_notify(row_to_json(new))": (EVENTS, rows_into("notified")),
    "row a transaction, no trigger": (
        SINGLE,
        one_by_one("insert into untouched values ($1, 'alice', 'some text')"),
    ),
    "row a transaction, capture() trigger": (
        SINGLE,
        one_by_one("insert into captured values ($1, 'alice', 'some text')"),
    ),
    "row a transaction, pg_notify(row_to_json(new))": (
        SINGLE,
        one_by_one("insert into notified values ($1, 'alice', 'some text')"),
    ),
}
TABLES = "plain, captured, notified, untouched, userrealtime.event, userrealtime.log"


async def measure(url: str, runs: int) -> dict[str, float]:
    """Return the seconds per case: the median of a number of runs, which alternate between the cases."""
    await migrate(url)
    connection = await asyncpg.connect(url)
    taken: dict[str, list[float]] = {name: [] for name in CASES}
    try:
        await connection.execute(SETUP)
        for _ in range(runs):
            for name, (_, work) in CASES.items():
                await connection.execute(f"truncate {TABLES}")
                # As autovacuum does in its own time.
                await connection.execute("vacuum userrealtime.staged, userrealtime.pending")
                start = time.perf_counter()
                await work(connection)
                taken[name].append(time.perf_counter() - start)
    finally:
        await connection.close()
    return {name: statistics.median(times) for name, times in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.log", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="runs of every case; the median is printed (default: 5)")
    parser.add_argument("--flush", type=float, default=DEFAULT_FLUSH_MS, metavar="MS", help="WAL flush (default: 2 ms)")
    options = parser.parse_args()
    with durable_postgres(options.flush) as server:
        figures = asyncio.run(measure(server.url(), options.runs))
    print(
        f"PostgreSQL 18, {described(options.flush)}, {os.cpu_count()} cores, one connection, "
        f"median of {options.runs} runs\n"
    )
    print("| what | time | events/s |\n|---|---|---|")
    for name, seconds in figures.items():
        count = CASES[name][0]
        print(f"| {count:,} {name} | {seconds:.3f} s | {count / seconds:,.0f} |")


if __name__ == "__main__":
    main()
