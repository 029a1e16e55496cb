"""The examples in examples/clients: clients of other systems from npm, as processes, with the demo as their server."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final, Self

from .application import EventApplication
from .fixture import ROOT
from .javascript import install_packages

SOURCE: Final = ROOT / "examples" / "clients"
EXAMPLES: Final = tuple(
    path.relative_to(SOURCE).as_posix() for path in sorted(SOURCE.glob("*/*.mjs")) if "node_modules" not in path.parts
)


class Example(EventApplication):
    """A process of an example."""

    async def connected(self) -> None:
        await self.has("connected")

    @property
    def resets(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if "reset" in line]

    @classmethod
    @asynccontextmanager
    async def each(cls, folder: Path, demo_url: str) -> AsyncIterator[dict[str, Self]]:
        """Run all examples, and yield them by their names when each is connected."""
        async with AsyncExitStack() as stack:
            found: dict[str, Self] = {}
            for name in EXAMPLES:
                example, _, script = name.partition("/")
                running = cls.running(folder / example, script, environment={"DEMO_URL": demo_url})
                found[name] = await stack.enter_async_context(running)
            await asyncio.gather(*(example.connected() for example in found.values()))
            yield found


def install_examples(folder: Path) -> Path:
    """Copy the examples to a new folder, install the packages of each, and return the folder."""
    shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("node_modules"))
    folders = [path.parent for path in sorted(folder.glob("*/package.json"))]
    with ThreadPoolExecutor() as threads:
        list(threads.map(install_packages, folders))
    return folder
