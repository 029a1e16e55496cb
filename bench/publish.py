"""How fast an application commits while it publishes: `python -m bench.publish` prints the table of docs/log.md.

Every transaction publishes one event to one of 1,000 users at random. Two measures stand beside it, in the same run: a
plain insert of the same row, and an insert followed by `pg_notify`. The WAL flush takes 0, 1, 2 or 5 ms, as on disks
between a local one and a slow network disk; `fsync` is on.

`--decoding` measures the alternative to the queue of signals instead: logical decoding, with a message in the WAL for
each event and a replication slot that one process reads (docs/architecture.md has the comparison).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import asyncpg

from bench.durable import described, durable_postgres, machine
from bench.relay.figures import figure
from bench.scale.__main__ import relays_of, signalled
from bench.scale.plot import plot
from testing.local.postgres import LocalPostgres
from userrealtime_operator.postgres.migrate import migrate

FLUSHES_MS: Final = (0.0, 1.0, 2.0, 5.0)
WRITERS: Final = (1, 8, 64)
USERS: Final = 1000
ONLINE: Final = 100
RUN_TIMEOUT_S: Final = 120

SETUP: Final = """
create table plain (id bigserial primary key, user_id text, event text, data jsonb, at timestamptz default now());
create table notified (like plain including all);
"""
_ROW: Final = """(user_id, event, data) values ('user-' || :number, 'bench', '{"text": "hello"}')"""
_PUBLISH: Final = """select userrealtime.publish('user-' || :number, 'bench', '{"text": "hello"}');"""


@dataclass(frozen=True)
class Case:
    """The statements of the writers, and the processes that run beside them.

    Attributes:
        title: of its column.
        script: of pgbench; `:number` is the user's.
        signal: of the online relays; None if nothing runs beside the writers.
        online: how many of the users have a relay.
    """

    title: str
    script: str
    signal: str | None = None
    online: int = 0


PLAIN: Final = Case("plain insert", f"insert into plain {_ROW};")
CASES: Final = (
    PLAIN,
    Case(
        "insert + pg_notify", f"begin; insert into notified {_ROW}; select pg_notify('events', :number::text); commit;"
    ),
    Case("publish(), no relays", _PUBLISH, "listen"),
    Case(f"publish(), {ONLINE} listen", _PUBLISH, "listen", ONLINE),
    Case(f"publish(), {ONLINE} over NATS", _PUBLISH, "nats", ONLINE),
)


DECODED: Final = Case("publish(), decoded", _PUBLISH, "decoding")
DECODING: Final = (PLAIN, Case("publish(), no relays", _PUBLISH, "listen"), DECODED)
DECODING_SETUP: Final = """
create or replace function userrealtime.signal(user_id text, head bigint, epoch text) returns void language sql as $$
    select pg_logical_emit_message(true, 'userrealtime', user_id || ' ' || head || ' ' || epoch)
$$;
create publication signals;
select pg_create_logical_replication_slot('signals', 'pgoutput')
"""


@dataclass(frozen=True)
class Rate:
    """Transactions per second of one case."""

    flush_ms: float
    writers: int
    case: Case
    tps: float


@asynccontextmanager
async def decoding(server: LocalPostgres, url: str) -> AsyncIterator[None]:
    """A process that reads the messages of a replication slot."""
    options = ("proto_version=1", "publication_names=signals", "messages=true")
    process = await asyncio.create_subprocess_exec(
        server.program("pg_recvlogical"),
        *("--dbname", url, "--slot", "signals", "--start", "--file", os.devnull),
        *(argument for option in options for argument in ("--option", option)),
    )
    try:
        yield
    finally:
        process.terminate()
        await process.wait()


@asynccontextmanager
async def beside(case: Case, server: LocalPostgres, url: str) -> AsyncIterator[None]:
    """Run the processes beside the writers: the announcer or the bridge, and relays; or the reader of the slot."""
    async with AsyncExitStack() as stack:
        if case is DECODED:
            await stack.enter_async_context(decoding(server, url))
        elif case.signal is not None:
            variables, _ = await stack.enter_async_context(signalled(case.signal, url))
            if case.online:
                await stack.enter_async_context(relays_of(case.online, url, variables))
        yield


async def measure(
    server: LocalPostgres, cases: Sequence[Case], flush_ms: float, writers: Sequence[int], seconds: float
) -> list[Rate]:
    """Measure all cases on one server, each in a separate database."""
    rates = []
    admin = await asyncpg.connect(server.url())
    try:
        for number, case in enumerate(cases):
            name = f"publish_{number}"
            await admin.execute(f"create database {name}")
            url = server.url(name)
            await migrate(url)
            connection = await asyncpg.connect(url)
            await connection.execute(SETUP)
            if case is DECODED:
                for statement in DECODING_SETUP.strip().split(";\n"):
                    await connection.execute(statement)
            await connection.close()
            async with beside(case, server, url):
                await _pgbench(server, name, case, writers[-1], 1)  # warm-up
                for count in writers:
                    rates.append(Rate(flush_ms, count, case, await _pgbench(server, name, case, count, seconds)))
                    print(f"  {flush_ms:g} ms, {count} writers, {case.title}: {rates[-1].tps:,.0f}/s", flush=True)
            if case is DECODED:
                await _drop_slot(url)
            await admin.execute(f"drop database {name} with (force)")
    finally:
        await admin.close()
    return rates


async def _drop_slot(url: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        async with asyncio.timeout(RUN_TIMEOUT_S):
            while await connection.fetchval("select active from pg_replication_slots"):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        await connection.execute("select pg_drop_replication_slot('signals')")
    finally:
        await connection.close()


async def _pgbench(server: LocalPostgres, database: str, case: Case, writers: int, seconds: float) -> float:
    process = await asyncio.create_subprocess_exec(
        server.program("pgbench"),
        *("--no-vacuum", "--protocol", "simple", "--client", str(writers), "--jobs", "2", "--file", "-"),
        *("--time", str(max(1, round(seconds))), server.url(database)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(seconds + RUN_TIMEOUT_S):
            script = f"\\set number random(0, {USERS - 1})\n" + case.script.replace("; ", ";\n") + "\n"
            output, errors = await process.communicate(script.encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    found = re.search(r"^tps = ([\d.]+)", output.decode(), re.MULTILINE)
    if process.returncode != 0 or found is None:
        raise RuntimeError(f"pgbench failed: {errors.decode()[-1000:]}")
    return float(found[1])


def table(rates: Sequence[Rate]) -> str:
    """Return a Markdown table of transactions per second, with the ratio to the plain insert of the same line."""
    cases = list(dict.fromkeys(rate.case for rate in rates))
    titles = [case.title for case in cases]
    lines = [f"| flush | writers | {' | '.join(titles)} |", f"|---|---|{'---|' * len(titles)}"]
    for flush_ms, writers in sorted({(rate.flush_ms, rate.writers) for rate in rates}):
        row = {rate.case: rate.tps for rate in rates if (rate.flush_ms, rate.writers) == (flush_ms, writers)}
        cells = [f"{figure(row[case])}/s{_ratio(row[case], row[PLAIN]) if case != PLAIN else ''}" for case in cases]
        lines.append(f"| {flush_ms:g} ms | {writers} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _ratio(tps: float, plain: float) -> str:
    return f" ({tps / plain:.2f})"


def drawing(rates: Sequence[Rate]) -> str:
    """Return an SVG with the rate of each case over the number of writers, for each flush time."""
    return plot(
        {
            f"commits/s, WAL flush of {flush_ms:g} ms": {
                case.title: [(r.writers, r.tps) for r in rates if (r.flush_ms, r.case) == (flush_ms, case)]
                for case in dict.fromkeys(rate.case for rate in rates)
            }
            for flush_ms in sorted({rate.flush_ms for rate in rates})
        },
        across="writers",
    )


async def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.publish", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--flush", nargs="+", type=float, default=FLUSHES_MS, metavar="MS", help="WAL flush times")
    parser.add_argument("--writers", nargs="+", type=int, default=WRITERS, metavar="COUNT")
    parser.add_argument("--seconds", type=float, default=4, help="how long each load lasts (default: 4)")
    parser.add_argument("--decoding", action="store_true", help="measure logical decoding instead")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the rates into this SVG file")
    arguments = parser.parse_args()
    rates: list[Rate] = []
    settings = {"max_connections": "400", **({"wal_level": "logical"} if arguments.decoding else {})}
    cases = DECODING if arguments.decoding else CASES
    print(
        f"{machine()}; PostgreSQL 18, {described(arguments.flush[0])} and more",
        flush=True,
    )
    for flush_ms in arguments.flush:
        with durable_postgres(flush_ms, settings) as server:
            rates += await measure(server, cases, flush_ms, sorted(arguments.writers), arguments.seconds)
    print(f"\n{table(rates)}")
    if arguments.plot is not None:
        arguments.plot.write_text(drawing(rates))
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
