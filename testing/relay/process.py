"""A relay as a process."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from testing.relay.harness import PATIENCE_S, environment, get


class Process:
    """A relay as a process; `lines` is its log so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.lines: list[str] = []
        self.ws_port = self.health_port = 0

    async def wait_for(self, message: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            while True:
                line = (await self._process.stdout.readline()).decode()
                assert line, self.lines
                self.lines.append(line)
                fields: dict[str, Any] = json.loads(line)
                if fields["message"] == message:
                    return fields

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def end(self) -> int:
        """Wait until the process ends, and return its exit status."""
        async with asyncio.timeout(PATIENCE_S):
            rest, _ = await self._process.communicate()
            self.lines += rest.decode().splitlines(keepends=True)
            return await self._process.wait()


@asynccontextmanager
async def process(url: str, **changes: str) -> AsyncIterator[Process]:
    """Start a relay; return it when it listens."""
    started = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "userrealtime_relay",
        env={**os.environ, **environment(url, **changes)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    relay = Process(started)
    try:
        listening = await relay.wait_for("listening")
        relay.ws_port, relay.health_port = listening["ws_port"], listening["health_port"]
        yield relay
    finally:
        if started.returncode is None:
            started.kill()
        await started.communicate()


def resident(pid: int) -> int:
    """Return the memory of a process, in bytes."""
    [pages] = re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(pages) * 1024


async def value(port: int, name: str) -> float:
    """Return a metric of a relay that is a process."""
    _, body = await get(port, "/metrics")
    [found] = re.findall(rf"^userrealtime_relay_{re.escape(name)} (\S+)$", body, re.MULTILINE)
    return float(found)
