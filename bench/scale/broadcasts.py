"""The rates and latencies of broadcasts, and of events beside them: `python -m bench.scale.broadcasts`."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time

import asyncpg

from bench.durable import DEFAULT_FLUSH_MS, described, durable_postgres, machine
from bench.relay.figures import figure, percentile
from testing.local.postgres import LocalPostgres
from userrealtime_operator.postgres.migrate import migrate

from .__main__ import DRAIN_S, POSTGRES, Relays, Writers, arrived, relays_of, signalled

MODES = ("listen", "nats", "redis")
RATES = (500, 2000, 10_000)
BESIDE = 2000
"""Broadcasts a second beside which events are measured."""
EVENTS = 500
"""Events a second."""
SCRIPT = b"""
\\set number random(0, :users - 1)
select userrealtime.broadcast('user-' || :number, 'token',
    jsonb_build_object('at', date_part('epoch', clock_timestamp()), 'text', 'hello'));
"""


async def received(relays: Relays, count: int) -> list[float]:
    """Return the latencies of this number of broadcasts, or of fewer if no more arrive."""
    latencies = await relays.take("broadcasts")
    deadline = time.monotonic() + DRAIN_S / 10
    while len(latencies) < count and time.monotonic() < deadline:
        await asyncio.sleep(0.2)
        more = await relays.take("broadcasts")
        latencies += more
        if more:
            deadline = time.monotonic() + DRAIN_S / 10
    return latencies


def latency(latencies: list[float]) -> str:
    return f"{figure(percentile(latencies, 50))}, {figure(percentile(latencies, 99))} ms" if latencies else "—"


async def measure(mode: str, count: int, server: LocalPostgres, seconds: float) -> list[str]:
    """Return the cells of a row, on a separate database."""
    name = f"broadcasts_{mode}_{count}"
    admin = await asyncpg.connect(server.url())
    await admin.execute(f"create database {name}")
    url = server.url(name)
    try:
        await migrate(url)
        connection = await asyncpg.connect(url)
        await connection.execute(
            "insert into userrealtime.log (user_id) select 'user-' || n from generate_series(0, $1::int - 1) n", count
        )
        await connection.close()
        events, broadcasts = Writers(server, name, count), Writers(server, name, count, SCRIPT)
        cells = [mode, f"{count:,}"]
        async with signalled(mode, url) as (variables, _), relays_of(count, url, variables) as relays:
            sent = await broadcasts.back_to_back(1)  # to warm up
            await received(relays, sent)
            for rate in RATES:
                sent, took = await broadcasts.at(rate, seconds)
                latencies = await received(relays, sent)
                share = f"{100 * len(latencies) / sent:.4g} % of {figure(sent / took)}/s"
                cells.append(f"{share}: {latency(latencies)}")
            await arrived(relays, await events.to_each())
            sent, _ = await events.at(EVENTS, seconds)
            cells.append(latency(await arrived(relays, sent)))
            (sent, _), _ = await asyncio.gather(events.at(EVENTS, seconds), broadcasts.at(BESIDE, seconds))
            cells.append(latency(await arrived(relays, sent)))
    finally:
        await admin.execute(f"drop database {name} with (force)")
        await admin.close()
    return cells


async def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.scale.broadcasts", description=__doc__)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES[:2])
    parser.add_argument("--relays", nargs="+", type=int, default=(1, 100, 1000), metavar="COUNT")
    parser.add_argument("--seconds", type=float, default=5, help="how long each load lasts (default: 5)")
    parser.add_argument("--flush", type=float, default=DEFAULT_FLUSH_MS, metavar="MS", help="WAL flush (default: 2 ms)")
    arguments = parser.parse_args()
    titles = [
        *("signal", "relays"),
        *(f"broadcasts at {rate:,}/s: p50, p99" for rate in RATES),
        *(f"events at {EVENTS}/s: p50, p99", f"the same beside {BESIDE:,} broadcasts/s"),
    ]
    rows = [titles, ["---"] * len(titles)]
    with durable_postgres(arguments.flush, POSTGRES) as server:
        print(
            f"{machine()}; Python {sys.version.split()[0]}, {described(arguments.flush)}",
            flush=True,
        )
        for mode in arguments.modes:
            for count in arguments.relays:
                rows.append(await measure(mode, count, server, arguments.seconds))
                print(f"  {rows[-1]}", flush=True)
    print()
    for row in rows:
        print(f"| {' | '.join(row)} |")
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
