"""The answers of language models, streamed to many users at the same time: `python -m bench.scale.tokens`.

An application collects the tokens of all its streams, and sends them at an interval, in one statement with one
broadcast for each user. The number of streams grows until one of them is not carried.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from typing import Final, NamedTuple

import asyncpg

from bench.durable import DEFAULT_FLUSH_MS, described, durable_postgres, machine
from bench.relay.figures import figure, percentile
from testing.local.postgres import LocalPostgres
from userrealtime_operator.postgres.migrate import migrate

from .__main__ import POSTGRES, relays_of, signalled
from .broadcasts import MODES, latency, received

WORD: Final = "word "
TOKENS_PER_SECOND: Final = 100
"""Tokens a second of each stream."""
INTERVALS_MS: Final = (10, 50, 100, 250)
"""With 10 ms, each token is a broadcast."""
STREAMS: Final = (10, 30, 100, 300, 1000)
CONNECTIONS: Final = 4
"""The streams are divided among so many connections of the application."""
CARRIED_P99_MS: Final = 250
CARRIED_SHARE: Final = 0.999
CARRIED_LATE: Final = 0.01
"""The share of intervals that may be left out."""
SEND: Final = """
select userrealtime.broadcast(u, 'token', jsonb_build_object(
    'at', date_part('epoch', clock_timestamp()), 'text', $2::text))
from unnest($1::text[]) u
"""


class Measured(NamedTuple):
    """One number of streams at one interval."""

    interval_ms: int
    streams: int
    sent: int
    """Broadcasts."""
    took_s: float
    late: int
    """Intervals that were left out, because the statement before took longer."""
    latencies: list[float]

    @property
    def share(self) -> float:
        return len(self.latencies) / self.sent

    @property
    def carried(self) -> bool:
        kept = self.late * self.interval_ms <= CARRIED_LATE * self.took_s * 1000 * CONNECTIONS
        return kept and self.share >= CARRIED_SHARE and percentile(self.latencies, 99) <= CARRIED_P99_MS

    @property
    def cells(self) -> list[str]:
        rate = len(self.latencies) / self.took_s
        tokens = rate * tokens_of(self.interval_ms)
        return [
            f"{self.interval_ms} ms",
            f"{self.streams:,}",
            f"{self.streams * TOKENS_PER_SECOND:,}",
            f"{figure(tokens)}",
            f"{figure(rate)}",
            f"{100 * self.share:.4g} %",
            latency(self.latencies),
            "yes" if self.carried else f"no, {self.late} intervals late" if self.late else "no",
        ]


def tokens_of(interval_ms: int) -> int:
    """Return the tokens of one stream in an interval."""
    return max(1, TOKENS_PER_SECOND * interval_ms // 1000)


async def stream(connection: asyncpg.Connection, users: Sequence[str], interval_ms: int, seconds: float) -> int:
    """Send the tokens of these users at an interval; return how many intervals were left out."""
    text = WORD * tokens_of(interval_ms)
    rounds = round(seconds * 1000 / interval_ms)
    began = time.monotonic()
    late = 0
    for number in range(rounds):
        await connection.execute(SEND, users, text)
        ahead = began + (number + 1 + late) * interval_ms / 1000 - time.monotonic()
        if ahead > 0:
            await asyncio.sleep(ahead)
        else:
            late += int(-ahead * 1000 / interval_ms)
    return late


async def measure(mode: str, users: int, server: LocalPostgres, arguments: argparse.Namespace) -> list[Measured]:
    """Measure all intervals, on a separate database."""
    name = f"tokens_{mode}"
    url = server.url(name)
    admin = await asyncpg.connect(server.url())
    await admin.execute(f"create database {name}")
    found: list[Measured] = []
    try:
        await migrate(url)
        connections = [await asyncpg.connect(url) for _ in range(CONNECTIONS)]
        await connections[0].execute(
            "insert into userrealtime.log (user_id) select 'user-' || n from generate_series(0, $1::int - 1) n", users
        )
        async with signalled(mode, url) as (variables, _), relays_of(users, url, variables) as relays:
            for interval_ms in arguments.intervals:
                for streams in arguments.streams:
                    names = [f"user-{number}" for number in range(min(streams, users))]
                    parts = [names[place::CONNECTIONS] for place in range(CONNECTIONS)]
                    await stream(connections[0], names, interval_ms, 0.5)  # to warm up
                    await received(relays, len(names) * round(500 / interval_ms))
                    began = time.monotonic()
                    late = await asyncio.gather(
                        *(
                            stream(connection, part, interval_ms, arguments.seconds)
                            for connection, part in zip(connections, parts, strict=True)
                            if part
                        )
                    )
                    took_s = time.monotonic() - began
                    sent = len(names) * round(arguments.seconds * 1000 / interval_ms)
                    latencies = await received(relays, sent)
                    found.append(Measured(interval_ms, len(names), sent, took_s, sum(late), latencies))
                    print(f"  {found[-1].cells}", flush=True)
                    if not found[-1].carried or streams >= users:
                        break
        for connection in connections:
            await connection.close()
    finally:
        await admin.execute(f"drop database {name} with (force)")
        await admin.close()
    return found


async def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.scale.tokens", description=__doc__)
    parser.add_argument("--mode", choices=MODES, default="nats")
    parser.add_argument("--users", type=int, default=1000, help="connected users (default: 1000)")
    parser.add_argument("--streams", nargs="+", type=int, default=STREAMS, metavar="COUNT")
    parser.add_argument("--intervals", nargs="+", type=int, default=INTERVALS_MS, metavar="MS")
    parser.add_argument("--seconds", type=float, default=5, help="how long each load lasts (default: 5)")
    parser.add_argument("--flush", type=float, default=DEFAULT_FLUSH_MS, metavar="MS", help="WAL flush (default: 2 ms)")
    arguments = parser.parse_args()
    titles = [
        *("interval", "streams", "tokens/s", "tokens/s that arrived", "broadcasts/s", "arrived"),
        *("call to socket: p50, p99", "carried"),
    ]
    rows = [titles, ["---"] * len(titles)]
    with durable_postgres(arguments.flush, POSTGRES) as server:
        print(
            f"{arguments.users:,} users over {arguments.mode}; {machine()}; Python {sys.version.split()[0]}, "
            f"{described(arguments.flush)}",
            flush=True,
        )
        rows += [found.cells for found in await measure(arguments.mode, arguments.users, server, arguments)]
    print()
    for row in rows:
        print(f"| {' | '.join(row)} |")
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
