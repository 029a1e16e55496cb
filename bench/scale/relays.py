"""Many relays in one process: their real signal code, presence, reads of the log and rings, each with one socket.

Started by `bench.scale`, with SIGNAL and what goes with it in the environment. Speaks in lines: says `ready` when all
follow their logs, and at each line it gets answers with what arrived since: the latencies in milliseconds, from the
commit, on Postgres' clock, to the write to the socket, as a JSON list. At the line `broadcasts`, it answers with those
of broadcasts, from the call, whose time is in their data.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import socket
import sys
import time

from userrealtime_core.wire.frames import payloads
from userrealtime_relay.config import Config
from userrealtime_relay.delivery.presence import Presence
from userrealtime_relay.delivery.tail import Tail
from userrealtime_relay.metrics import Metrics
from userrealtime_relay.notify import broker as brokers
from userrealtime_relay.notify.choice import choose

SINK = bytearray(1 << 20)
"""The buffer into which the clients' ends read. Its content is not used."""
STARTING = 20
"""The number of relays that connect at the same time."""
START_TIMEOUT_S = 300


class Relay:
    """A relay of one user without ports: it writes new events of its ring to a socket."""

    def __init__(self, user: str, ring: int, latencies: list[float], broadcast_latencies: list[float]) -> None:
        config = Config.from_environment(
            {**os.environ, "USER_ID": user, "TOKEN_KEY": "k" * 32, "RING_EVENTS": str(ring)}
        )
        self._config = config
        self._metrics = Metrics()
        self.tail = Tail(config, choose(config), self._metrics)
        self._latencies = latencies
        self._broadcast_latencies = broadcast_latencies
        self._near, self._far = socket.socketpair()
        self._near.setblocking(False)
        self._far.setblocking(False)
        self._cursor = 0
        self._broadcast_cursor = 0

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_broker())
            tasks.create_task(self.tail.run())
            tasks.create_task(Presence(self.tail, "pod", lambda: 1).run())

    async def _follow_broker(self) -> None:
        config, channel = self._config, await self.tail.broadcast_channel()
        if config.broker_url is not None and channel is not None:
            await brokers.follow(
                brokers.load(config.signal),
                config.broker_url,
                config.user_id,
                self.tail.on_signal,
                self._metrics,
                (channel, self.tail.on_broadcast),
            )

    @property
    def follows(self) -> bool:
        """Whether the relay has read the log and receives the messages of the broker."""
        heard = self._config.broker_url is None or self._metrics.broker_connected._value.get() == 1
        return self.tail.not_ready_reason is None and heard

    def begin(self) -> None:
        """Write all events from now on."""
        self._cursor = self.tail.ring.head
        self.tail.call_once(self._write)

    def _write(self) -> None:
        self.tail.call_once(self._write)
        ring = self.tail.ring
        while (batch := ring.read(self._cursor, 1 << 20)) is not None and batch.cursor > self._cursor:
            self._near.send(batch.frames)
            now = time.time()
            self._latencies += [
                (now - ring.time(number)) * 1000 for number in range(self._cursor + 1, batch.cursor + 1)
            ]
            self._far.recv_into(SINK)
            self._cursor = batch.cursor
        broadcasts = self.tail.broadcasts
        while self._broadcast_cursor < broadcasts.head:
            found = broadcasts.read(self._broadcast_cursor, 1 << 20)
            self._near.send(found.frames)
            now = time.time()
            self._broadcast_latencies += [
                (now - json.loads(bytes(text))["data"]["at"]) * 1000 for text in payloads(found.frames)
            ]
            self._far.recv_into(SINK)
            self._broadcast_cursor = found.cursor


async def main(count: int) -> None:
    latencies: list[float] = []
    broadcast_latencies: list[float] = []
    ring = max(256, 40_000 // count)  # more events than arrive between two polls
    relays = [Relay(f"user-{number}", ring, latencies, broadcast_latencies) for number in range(count)]
    tasks = []
    async with asyncio.timeout(START_TIMEOUT_S):
        for begin in range(0, count, STARTING):
            some = relays[begin : begin + STARTING]
            tasks += [asyncio.create_task(relay.run()) for relay in some]
            for relay in some:
                while not relay.follows:  # noqa: ASYNC110 (there is no event for it)
                    await asyncio.sleep(0.01)
    for relay in relays:
        relay.begin()
    # A relay in a separate process collects garbage less often, and traverses only its own objects. Simulate that.
    gc.collect()
    gc.freeze()
    gc.set_threshold(gc.get_threshold()[0] * count, *gc.get_threshold()[1:])
    print("ready", flush=True)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        taken = broadcast_latencies if line == b"broadcasts\n" else latencies
        print(json.dumps([round(value, 3) for value in taken]), flush=True)
        taken.clear()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
