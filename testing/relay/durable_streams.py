"""A writable server of Durable Streams whose reads are those of relays, for the conformance tests of that protocol.

The tests create streams and append to them over HTTP, which a relay does not offer. This server takes the writes as the
application would: it registers a user for each stream, starts a relay for it, and publishes. It forwards all reads to
the relay with their query, and returns its status and its headers unchanged, except for two:

- The messages are the data of the events, because the tests compare them with what they have appended.
- A stream of another content type than JSON has its bytes in the data of the events, and gets its content type back.

A long poll without data is answered after `POLL_S`, so the tests need not wait.
"""

from __future__ import annotations

import base64
import json
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
import asyncpg
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from testing.relay.harness import NEVER, USER, running, token
from userrealtime_relay.server import Relay

JSON: Final = "application/json"
KEPT: Final = 8
"""The newest streams, whose relays run. A test uses no more."""
POLL_S: Final = 1
_HOP_BY_HOP: Final = ("connection", "transfer-encoding", "content-length")


class _Stream:
    """A user, with the relay that serves the log."""

    def __init__(self, user: str, relay: Relay, content_type: str, stack: AsyncExitStack) -> None:
        self.user = user
        self.relay = relay
        self.content_type = content_type
        self.stack = stack

    @property
    def is_json(self) -> bool:
        return self.content_type.partition(";")[0].strip().lower() == JSON

    def split(self, body: bytes) -> list[Any]:
        """Return the data of the events for an appended body. Raises ValueError if it is not JSON but has to be."""
        if not self.is_json:
            return [{"bytes": base64.b64encode(body).decode()}] if body else []
        value = json.loads(body) if body else []
        return value if isinstance(value, list) else [value]

    def join(self, messages: bytes) -> bytes:
        """Return the body for the messages that the relay has sent."""
        data = [event["data"] for event in json.loads(messages)]
        if self.is_json:
            return json.dumps([value["value"] for value in data], separators=(",", ":")).encode()
        return b"".join(base64.b64decode(value["value"]["bytes"]) for value in data)


class DurableStreamsServer:
    """The server. A context manager: at its end, it stops all relays."""

    def __init__(self, database_url: str) -> None:
        self._database_url = database_url
        self._streams: OrderedDict[str, _Stream] = OrderedDict()
        self._stack = AsyncExitStack()
        self.url = ""

    async def __aenter__(self) -> Self:
        enter = self._stack.enter_async_context
        self._writer = await enter(asyncpg.create_pool(self._database_url, min_size=1, max_size=4))
        self._session = await enter(aiohttp.ClientSession(auto_decompress=False))
        # It answers for streams that do not exist.
        self._other = await enter(self._relay(USER))
        application = web.Application(client_max_size=32 << 20)
        application.router.add_route("*", "/v1/stream/{name:.+}", self._serve)
        # A stream ends when the test disconnects.
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=1, handler_cancellation=True)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in self._streams.values():
            await stream.stack.aclose()
        await self._stack.aclose()

    @asynccontextmanager
    async def _relay(self, user: str) -> AsyncIterator[Relay]:
        await self._writer.execute("insert into userrealtime.log (user_id) values ($1)", user)
        changes: dict[str, Any] = {
            "USER_ID": user,
            "PROTOCOLS": "durable-streams",
            "ALLOWED_ORIGINS": "*",
            "POLL_INTERVAL": NEVER,
        }
        async with running(self._database_url, **changes) as relay:
            yield relay

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if request.method == "PUT":
            return await self._create(name, request)
        stream = self._streams.get(name)
        if request.method == "POST" and stream is not None:
            return await self._append(stream, request)
        return await self._forward(stream, request)

    async def _create(self, name: str, request: web.Request) -> web.Response:
        stream, status = self._streams.get(name), 200
        if stream is None:
            stack, status = AsyncExitStack(), 201
            relay = await stack.enter_async_context(self._relay(name))
            content_type = request.headers.get("Content-Type", "application/octet-stream")
            stream = self._streams[name] = _Stream(name, relay, content_type, stack)
            await self._publish(stream, await request.read())
        while len(self._streams) > KEPT:
            await self._streams.popitem(last=False)[1].stack.aclose()
        headers = {"Location": str(request.url), "Content-Type": stream.content_type, **await self._tail(stream)}
        return web.Response(status=status, headers=headers)

    async def _append(self, stream: _Stream, request: web.Request) -> web.Response:
        await self._publish(stream, await request.read())
        return web.Response(status=204, headers=await self._tail(stream))

    async def _publish(self, stream: _Stream, body: bytes) -> None:
        async with self._writer.acquire() as connection, connection.transaction():
            for value in stream.split(body):
                text = json.dumps({"value": value})
                await connection.execute("select userrealtime.publish($1, 'append', $2::jsonb)", stream.user, text)

    async def _tail(self, stream: _Stream) -> dict[str, str]:
        url, headers = self._target(stream)
        async with self._session.head(url, headers=headers) as answer:
            return {"Stream-Next-Offset": answer.headers["Stream-Next-Offset"]}

    def _target(self, stream: _Stream | None) -> tuple[str, dict[str, str]]:
        relay = self._other if stream is None else stream.relay
        path = "/streams/other" if stream is None else "/streams/log"
        user = USER if stream is None else stream.user
        return f"http://127.0.0.1:{relay.ws_port}{path}", {"Authorization": f"Bearer {token(sub=user)}"}

    async def _forward(self, stream: _Stream | None, request: web.Request) -> web.StreamResponse:
        """Forward a read, and its response."""
        url, headers = self._target(stream)
        for name in ("Accept", "If-None-Match", "Origin"):
            if name in request.headers:
                headers[name] = request.headers[name]
        headers |= {name: value for name, value in request.headers.items() if name.startswith("Access-Control-")}
        query = request.rel_url.raw_query_string
        if "live=long-poll" in query:
            query += f"&timeout={POLL_S}"
        target = URL(f"{url}?{query}" if query else url, encoded=True)
        async with self._session.request(request.method, target, headers=headers) as answer:
            kept = [(name, value) for name, value in answer.headers.items() if name.lower() not in _HOP_BY_HOP]
            received = CIMultiDict(kept)
            if answer.headers.get("Content-Type") == "text/event-stream" and stream is not None:
                return await self._pass_stream(stream, request, answer, received)
            body = await answer.read()
            if stream is not None and answer.ok and answer.headers.get("Content-Type") == JSON:
                received["Content-Type"] = stream.content_type
                body = stream.join(body) if body else body
            return web.Response(status=answer.status, headers=received, body=body)

    async def _pass_stream(
        self, stream: _Stream, request: web.Request, answer: aiohttp.ClientResponse, received: CIMultiDict[str]
    ) -> web.StreamResponse:
        response = web.StreamResponse(status=answer.status, headers=received)
        await response.prepare(request)
        rest = b""
        async for chunk in answer.content.iter_any():
            *blocks, rest = (rest + chunk).split(b"\n\n")
            for block in blocks:
                begin, separator, messages = block.partition(b"event: data\ndata:")
                if separator:
                    lines = stream.join(messages).splitlines() or [b""]
                    block = begin + b"event: data\n" + b"\n".join(b"data:" + line for line in lines)
                await response.write(block + b"\n\n")
        await response.write_eof()
        return response
