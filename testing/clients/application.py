"""A process of an application in JavaScript, which reports what its client does as lines of JSON."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Self

from testing.patience import PATIENCE_S

from .javascript import program

LONGEST_LINE: Final = 4 << 20


class Application:
    """The process. A test may derive a class with what its script reports."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.lines: list[dict[str, Any]] = []
        """What has been read, in order."""

    @classmethod
    @asynccontextmanager
    async def running(
        cls,
        folder: Path,
        script: str,
        options: dict[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> AsyncIterator[Self]:
        """Run a script, which gets the options as JSON, and `environment` in addition to the variables of the test."""
        process = await asyncio.create_subprocess_exec(
            program("node", "nodejs"),
            script,
            *([] if options is None else [json.dumps(options)]),
            cwd=folder,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            limit=LONGEST_LINE,
        )
        try:
            yield cls(process)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.communicate()

    async def until(self, condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """Read until the first line that meets the condition, and return it."""
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        try:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    text = await self._process.stdout.readline()
                    assert text, (await self._process.stderr.read()).decode()
                    self.lines.append(json.loads(text))
                    if condition(self.lines[-1]):
                        return self.lines[-1]
        except TimeoutError:
            raise AssertionError(f"the last lines after {PATIENCE_S:.0f} s: {self.lines[-20:]}") from None

    async def has(self, name: str) -> dict[str, Any]:
        """Read until the next line with this member, and return it."""
        return await self.until(lambda line: name in line)

    def send(self, **line: Any) -> None:
        """Write an object to the application, in a line."""
        self.write(line)

    def write(self, line: object) -> None:
        """Write a line to the application."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(line).encode() + b"\n")


class EventApplication(Application):
    """An application that reports each event as a line with its name, `event`, and its `data`."""

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events, in order."""
        return [line for line in self.lines if "event" in line]

    @property
    def numbers(self) -> list[int]:
        """The numbers of the test's events, in order."""
        return [line["data"]["n"] for line in self.events if line["event"] == "test.event"]

    async def event(self, number: int) -> None:
        """Read until the event with this number."""
        if number not in self.numbers:
            await self.until(lambda line: (line.get("data") or {}).get("n") == number)
