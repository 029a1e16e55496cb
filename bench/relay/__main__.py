"""The relay beside its peers, on the same work, in one run.

`python -m bench.relay` (`make bench`) prints the table of bench/README.md.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import Any

import asyncpg

from bench.durable import described, durable_postgres
from bench.scale.__main__ import announcing
from userrealtime_operator.postgres.migrate import migrate

from . import workloads
from .dialects import PROTOCOLS
from .figures import OWN_SERVER, RELAY, Row, beside, figure, table
from .install import Unavailable
from .peers import ABSENT, NATIVE, OURS, PEERS, Peer, running, through
from .workloads import FULL, QUICK, Feed, Size

FLUSH_MS = 1.0
"""All events belong to one user, whose commits are sequential: a longer flush would not permit 500 per second."""

BASE = "ws"
Figures = dict[Row, dict[str, list[float]]]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.relay",
        description=(__doc__ or "").partition("\n")[0],
    )
    parser.add_argument("--quick", action="store_true", help="a small part of the work, once: to see that all works")
    parser.add_argument("--rounds", type=int, default=3, help="how often each server is measured (default: 3)")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", choices=[peer.name for peer in PEERS], help="these servers alone"
    )
    return parser


async def measure(
    peer: Peer, command: list[str], url: str, user: str, size: Size, figures: Figures, failures: dict[str, str]
) -> None:
    """Run all workloads on a newly started server. A workload that fails is reported, and has no figure."""

    async def note(rows: Sequence[Row], work: Coroutine[Any, Any, Sequence[float]]) -> None:
        for row in rows:
            figures.setdefault(row, defaultdict(list))  # in the order of the table, also if there is no figure
        place = f"{peer.name}, {rows[0].title}"
        if place in failures:  # it would fail again, after its timeout
            work.close()
            return
        try:
            values = await work
        except (TimeoutError, OSError, workloads.Wrong) as error:
            failures[place] = str(error) or "not everything arrived in time"
            return
        for row, value in zip(rows, values, strict=True):
            figures[row][peer.name].append(value)
            print(f"    {row.title}: {figure(value)} {row.unit}", flush=True)

    connection = await asyncpg.connect(url)
    try:
        cpu = 0 if (os.cpu_count() or 1) > 1 else None
        async with running(peer, command, url, user, cpu) as server:
            feed = Feed(connection, user, server)
            crowd = f"{size.crowd:,}"
            await note(
                (Row("memory, idle", "MiB", False), Row(f"memory a connection, of {crowd}", "KiB", False)),
                workloads.memory(server, size.crowd),
            )
            await feed.publish(feed.next_numbers(1000))
            await feed.analyze()
            await asyncio.sleep(0.5)  # until the server has them
            for rate in size.rates if peer.timed else ():
                title = f"commit to socket at {rate}/s"
                await note(
                    (Row(f"{title}, p50", "ms", False), Row(f"{title}, p99", "ms", False)),
                    workloads.latency(server, feed, rate, size.seconds),
                )
            for clients, events, times in size.fan_out:
                for _ in range(times):
                    await note(
                        (Row(f"fan-out to {clients:,}", "messages/s", True),),
                        workloads.fan_out(server, feed, clients, events),
                    )
            if peer.resumes:
                await note(
                    (Row(f"{crowd} reconnect at once", "s", False), Row("of what they missed, lost", "share", False)),
                    workloads.storm(server, feed, size.crowd),
                )
                if feed.last < size.catch_up:
                    await feed.publish(feed.next_numbers(size.catch_up - feed.last))
                await feed.analyze()
                row = Row(f"catch-up of {size.catch_up:,}", "events/s", True)
                for _ in range(size.catch_ups):
                    await note((row,), workloads.catch_up(server, feed, size.catch_up))
    finally:
        await connection.close(timeout=5)


async def run(peers: Sequence[Peer], size: Size, rounds: int) -> tuple[Figures, dict[str, str]]:
    """Measure the peers in turn, round after round: other load on the machine affects them equally."""
    figures: Figures = defaultdict(lambda: defaultdict(list))
    absent = dict(ABSENT)
    commands: dict[str, list[str]] = {}
    for peer in peers:
        try:
            commands[peer.name] = peer.prepare()
        except Unavailable as error:
            absent[peer.name] = str(error)
    async with AsyncExitStack() as stack:
        postgres = stack.enter_context(durable_postgres(FLUSH_MS))
        await migrate(postgres.url())
        # As in production, where the operator runs the announcer. It shares two cores with Postgres.
        await stack.enter_async_context(announcing(postgres.url()))
        if (os.cpu_count() or 1) > 1:
            os.sched_setaffinity(0, {1})  # the servers use the other core, and Postgres both
        for turn in range(rounds):
            for peer in peers:
                if peer.name not in commands:
                    continue
                print(f"▸ round {turn + 1} of {rounds}: {peer.name}", flush=True)
                try:
                    user = f"{peer.name}-{turn}"
                    await measure(peer, commands[peer.name], postgres.url(), user, size, figures, absent)
                except Unavailable as error:
                    absent[peer.name] = str(error)
                    del commands[peer.name]
    return figures, absent


def tables(figures: Figures, names: Sequence[str]) -> str:
    """Return the tables: the relay beside its peers, and each other protocol of the relay beside its own server."""
    native = [peer.name for peer in NATIVE if peer.name in names]
    protocols: dict[Row, dict[str, Sequence[float]]] = {}
    for protocol in PROTOCOLS:
        protocols |= beside(figures, protocol.title, through(protocol.name), protocol.server)
    parts = [table(figures, native, BASE)] if native else []
    parts += [table(protocols, [RELAY, OWN_SERVER], OWN_SERVER)] if protocols else []
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    options = _parser().parse_args(arguments)
    peers = [peer for peer in PEERS if not options.only or peer.name in options.only]
    began = time.monotonic()
    figures, absent = asyncio.run(
        run(peers, QUICK if options.quick else FULL, 1 if options.quick else max(1, options.rounds))
    )
    names = [peer.name for peer in peers if any(peer.name in row for row in figures.values())]
    print(f"\n{tables(figures, names)}\n")
    for name, reason in absent.items():
        print(f"{name}: no figure: {reason}")
    print(
        f"{os.cpu_count()} CPUs, Python {platform.python_version()}, {time.monotonic() - began:.0f} s; "
        f"PostgreSQL 18, {described(FLUSH_MS)}; medians of "
        f"{1 if options.quick else options.rounds}; in brackets: how many times as good as {BASE}, "
        "or as the protocol's own server"
    )
    expected = [peer.name for peer in peers if peer.name.startswith(OURS)]
    return 0 if all(name in names for name in expected) else 1


if __name__ == "__main__":
    sys.exit(main())
