"""A network with controlled faults: a TCP proxy on loopback, and a filter of the messages of Postgres.

To *hold* a direction is a half-open connection: both ends believe in it, nothing arrives. What was sent is not lost
but late, as with TCP's retransmissions: it arrives on `release`, if the connection still exists. New connections are
taken while held, and stay silent. To *strand* does so for good to the connections there are, and to no later one, as a
firewall does that has forgotten them. To *cut* ends every connection with a reset.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from types import TracebackType
from typing import Final, Literal, Self

CHUNK: Final = 64 << 10
_NOTIFICATION: Final = b"A"
_READY_FOR_QUERY: Final = b"Z"

Filter = Callable[[bytes], bytes]
Mode = Literal["pass", "drop", "double", "late"]


class Notifications:
    """What Postgres says on one connection without TLS, with its notifications dropped, doubled or late.

    `late` ones come after the next answer to a query: for a relay that listens, up to a poll interval later.
    """

    def __init__(self, mode: Callable[[], Mode]) -> None:
        self._mode = mode
        self._partial = b""
        self._late: list[bytes] = []

    def __call__(self, data: bytes) -> bytes:
        """Process received data and return the data to forward. An incomplete message waits for its rest."""
        self._partial += data
        passed: list[bytes] = []
        while len(self._partial) >= 5:
            # PostgreSQL's protocol 3.0: a byte for the type, then the length of the rest, including itself.
            end = 1 + int(struct.unpack_from("!I", self._partial, 1)[0])
            if len(self._partial) < end:
                break
            message, self._partial = self._partial[:end], self._partial[end:]
            passed += self._pass(message)
        return b"".join(passed)

    def _pass(self, message: bytes) -> list[bytes]:
        if message[:1] == _NOTIFICATION:
            mode = self._mode()
            if mode == "late":
                self._late.append(message)
            return {"pass": [message], "double": [message, message]}.get(mode, [])
        if message[:1] == _READY_FOR_QUERY:
            late, self._late = self._late, []
            return [message, *late]
        return [message]


class Link:
    """Takes connections on `port` and carries each to `target`, a port of loopback. A context manager.

    "Up" is from the client to the target, "down" the way back. `filtering` makes a filter of what goes down for
    each connection.
    """

    def __init__(self, target: int, filtering: Callable[[], Filter] | None = None) -> None:
        self.target = target
        self.port = 0
        self.refusing = False
        """While set, new connections are closed immediately."""
        self._filtering = filtering
        self._flows = _flows()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def connections(self) -> int:
        """The number of connections."""
        return len(self._tasks)

    def hold(self, *, up: bool, down: bool) -> None:
        """Forward nothing in these directions until `release`."""
        for way, held in (("up", up), ("down", down)):
            if held:
                self._flows[way].clear()

    def release(self) -> None:
        """Forward everything again, including the held data."""
        for flow in self._flows.values():
            flow.set()

    def strand(self) -> None:
        """Drop all further data of the open connections; forward new connections."""
        for flow in self._flows.values():
            flow.clear()
        self._flows = _flows()

    def cut(self) -> None:
        """End every connection, at both ends."""
        for writer in self._writers:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            if not self.refusing:
                await self._carry(reader, writer)
        except asyncio.CancelledError:
            pass  # by `__aexit__`; asyncio.start_server would report it as a failure
        finally:
            writer.transport.abort()
            self._writers.discard(writer)
            self._tasks.discard(task)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            target_reader, target_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            return
        self._writers.add(target_writer)
        filtered = self._filtering() if self._filtering is not None else bytes
        pumps = [
            asyncio.create_task(self._pump(self._flows["up"], reader, target_writer, bytes)),
            asyncio.create_task(self._pump(self._flows["down"], target_reader, writer, filtered)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for end in (writer, target_writer):
                end.close()  # it flushes the written data, which `abort` would drop
                await end.wait_closed()
        except OSError:
            pass
        finally:
            # before the first await, because `__aexit__` may cancel this
            target_writer.transport.abort()
            self._writers.discard(target_writer)
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(
        self, flow: asyncio.Event, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passing: Filter
    ) -> None:
        """Forward one direction until its sender has ended it, or one of the connections is lost."""
        try:
            while data := await reader.read(CHUNK):
                await flow.wait()
                writer.write(passing(data))
                await writer.drain()
            await flow.wait()
        except OSError:
            pass


def _flows() -> dict[str, asyncio.Event]:
    flows = {"up": asyncio.Event(), "down": asyncio.Event()}
    for flow in flows.values():
        flow.set()
    return flows
