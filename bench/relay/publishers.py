"""How the servers that do not read the log get their events: over HTTP, from the application, after its commit."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager

import aiohttp

from .dialects import APP, KEY, STREAM

BATCH = 1000
SMALL_BATCH = 100
"""For servers that disconnect a client with more than a few hundred waiting messages."""

Publish = Callable[[list[int]], Awaitable[None]]
"""Publishes the events of these numbers."""
Publisher = Callable[[int], AbstractAsyncContextManager[Publish]]
"""Returns a function that publishes to the server at a port of this machine."""


@contextlib.asynccontextmanager
async def _posting(
    url: str,
    body: Callable[[list[int]], object],
    *,
    batch: int = BATCH,
    query: Callable[[bytes], str] = lambda _: "",
    creates: bool = False,
    api_key: str = "",
) -> AsyncIterator[Publish]:
    """Yield a function that posts events.

    Args:
        url: the address.
        body: returns the body of a request, which is sent as JSON.
        batch: the events of a request.
        query: returns the query of the address for the bytes of a body.
        creates: whether the address is created first, by PUT.
        api_key: the header `X-API-Key` of each request.
    """
    async with aiohttp.ClientSession(headers={"Content-Type": "application/json", "X-API-Key": api_key}) as session:

        async def request(method: str, data: bytes) -> None:
            async with session.request(method, url + query(data), data=data) as answer:
                if answer.status >= 300:
                    raise RuntimeError(f"{url} answers {answer.status}: {await answer.text()}")

        async def publish(numbers: list[int]) -> None:
            for start in range(0, len(numbers), batch):
                await request("POST", json.dumps(body(numbers[start : start + batch])).encode())

        if creates:
            await request("PUT", b"")
        yield publish


def _data(number: int) -> dict[str, object]:
    return {"n": number, "tag": "@@@"}


def _event(number: int) -> dict[str, object]:
    return {
        "type": "event",
        "id": number,
        "event": "bench",
        "at": "2026-01-01T00:00:00.000000+00:00",
        "data": _data(number),
    }


def centrifugo(port: int) -> AbstractAsyncContextManager[Publish]:
    def body(numbers: list[int]) -> object:
        return {"commands": [{"publish": {"channel": STREAM, "data": _event(number)}} for number in numbers]}

    return _posting(f"http://127.0.0.1:{port}/api/batch", body, api_key=KEY)


def anycable(port: int) -> AbstractAsyncContextManager[Publish]:
    def body(numbers: list[int]) -> object:
        return [{"stream": STREAM, "data": json.dumps(_event(number))} for number in numbers]

    return _posting(f"http://127.0.0.1:{port}/_broadcast", body, batch=SMALL_BATCH)


def sockudo(port: int) -> AbstractAsyncContextManager[Publish]:
    path = f"/apps/{APP}/batch_events"

    def body(numbers: list[int]) -> object:
        channel = f"private-{STREAM}"
        return {"batch": [{"channel": channel, "name": "bench", "data": json.dumps(_data(n))} for n in numbers]}

    def query(data: bytes) -> str:
        return f"?{pusher_query(KEY, 'POST', path, APP, int(time.time()), data)}"

    return _posting(f"http://127.0.0.1:{port}{path}", body, batch=SMALL_BATCH, query=query)


def durable_streams(port: int) -> AbstractAsyncContextManager[Publish]:
    def body(numbers: list[int]) -> object:
        return [_event(number) for number in numbers]

    return _posting(f"http://127.0.0.1:{port}/streams/{STREAM}", body, creates=True)


def pusher_query(secret: str, method: str, path: str, key: str, unix_s: int, body: bytes) -> str:
    """Return the signed query of a request to the HTTP API of Pusher."""
    digest = hashlib.md5(body, usedforsecurity=False).hexdigest()
    query = f"auth_key={key}&auth_timestamp={unix_s}&auth_version=1.0&body_md5={digest}"
    signature = hmac.new(secret.encode(), f"{method}\n{path}\n{query}".encode(), hashlib.sha256)
    return f"{query}&auth_signature={signature.hexdigest()}"
