"""HTTP clients for a relay, over sockets: requests, and event streams that are parsed like an EventSource."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from testing.relay.harness import PATIENCE_S, token
from userrealtime_relay.server import Relay


@dataclass
class Answer:
    """The head of a response, and the received `body`."""

    status: int
    headers: dict[str, str]
    body: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Stream:
    """The response to a request, being read. `last_id`, `last_name` and `retry_ms` are values of the events so far."""

    reader: asyncio.StreamReader
    answer: Answer
    write: Callable[[bytes], None]
    abort: Callable[[], None]
    last_id: str = ""
    last_name: str = ""
    retry_ms: int = 0
    comments: int = 0
    _rest: bytes = field(default=b"", repr=False)

    async def chunk(self) -> bytes:
        """Return the next piece of the body, empty at its regular end."""
        async with asyncio.timeout(PATIENCE_S):
            line = await self.reader.readline()
            if not line:
                raise EOFError("the stream was cut")
            size = int(line, 16)
            data = await self.reader.readexactly(size + 2)
        return data[:-2]

    async def event(self) -> dict[str, Any] | None:
        """Return the next message, None at the regular end of the stream."""
        while True:
            while b"\n\n" not in self._rest:
                chunk = await self.chunk()
                if not chunk:
                    assert not self._rest
                    return None
                self._rest += chunk
            block, _, self._rest = self._rest.partition(b"\n\n")
            data: list[str] = []
            for line in block.decode().split("\n"):
                name, _, value = line.partition(": ")
                if name == "data":
                    data.append(value)
                elif name == "id":
                    self.last_id = value
                elif name == "event":
                    self.last_name = value
                elif name == "retry":
                    self.retry_ms = int(value)
                else:
                    assert line == ":", line
                    self.comments += 1
            if data:
                message: dict[str, Any] = json.loads("\n".join(data))
                return message

    async def ids(self, last: int) -> list[int]:
        """Return the ids of the events up to `last`. No other message may arrive."""
        ids: list[int] = []
        while not ids or ids[-1] != last:
            message = await self.event()
            assert message is not None
            assert message["type"] == "event", message
            assert self.last_id.partition(":")[0] == str(message["id"])
            ids.append(message["id"])
        return ids


@asynccontextmanager
async def exchange(
    port: int,
    path: str,
    bearer: str | None,
    method: str,
    headers: dict[str, str],
    body: bytes,
    host: str = "127.0.0.1",
) -> AsyncIterator[Stream]:
    """Send a request on a new connection, and read the head of its response."""
    reader, writer = await asyncio.open_connection(host, port, limit=4 << 20)
    try:
        head = {"Host": "relay", **headers}
        if bearer is not None:
            head["Authorization"] = f"Bearer {bearer or token()}"
        if body:
            head.setdefault("Content-Length", str(len(body)))
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items())]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        async with asyncio.timeout(PATIENCE_S):
            first, *rest = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        answered = (line.partition(": ") for line in rest)
        answer = Answer(int(first.split()[1]), {name.lower(): value for name, _, value in answered})
        yield Stream(reader, answer, writer.write, writer.transport.abort)
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _port(relay: Relay | int) -> int:
    return relay if isinstance(relay, int) else relay.ws_port


@asynccontextmanager
async def stream(
    relay: Relay | int, bearer: str | None = "", *, path: str = "/sse", headers: dict[str, str] | None = None
) -> AsyncIterator[Stream]:
    """Open an event stream, by default with a valid token in the Authorization header."""
    async with exchange(_port(relay), path, bearer, "GET", headers or {}, b"") as opened:
        assert opened.answer.status == 200, opened.answer
        yield opened


async def request(
    relay: Relay | int,
    path: str,
    bearer: str | None = "",
    *,
    method: str = "GET",
    headers: dict[str, str] | None = None,
    body: bytes = b"",
    host: str = "127.0.0.1",
) -> Answer:
    """Send a request on a new connection, and return the whole response."""
    async with exchange(_port(relay), path, bearer, method, headers or {}, body, host) as opened:
        answer = opened.answer
        async with asyncio.timeout(PATIENCE_S):
            size = 0 if method == "HEAD" else int(answer.headers.get("content-length", "0"))
            answer.body = await opened.reader.readexactly(size)
        return answer


async def poll(relay: Relay | int, **parameters: object) -> Any:
    """Return the response to a poll with a valid token. It must be successful."""
    query = "&".join(f"{name}={value}" for name, value in parameters.items())
    answer = await request(relay, f"/poll?{query}")
    assert answer.status == 200, answer
    return answer.json
