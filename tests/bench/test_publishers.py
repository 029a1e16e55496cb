"""The requests with which the application publishes to other servers."""

from __future__ import annotations

import json

from aiohttp import web

from bench.relay import publishers
from testing.local.ports import free_port


def test_the_signature_of_pusher() -> None:
    """The example of Pusher's documentation."""
    body = b'{"name":"foo","channels":["project-3"],"data":"{\\"some\\":\\"data\\"}"}'
    key, secret = "278d425bdf160c739803", "7ad3773142a6692b25b8"
    assert publishers.pusher_query(secret, "POST", "/apps/3/events", key, 1353088179, body) == (
        f"auth_key={key}&auth_timestamp=1353088179&auth_version=1.0&body_md5=ec365a775a4cd0599faeb73354201b6f"
        "&auth_signature=da454824c97ba181a32ccc17a72625ba02771f50b50e1e7430e47a1f3f457e6c"
    )


async def test_events_are_published_in_batches_after_the_stream_was_created() -> None:
    requests = []

    async def answer(request: web.Request) -> web.Response:
        text = await request.text()
        requests.append((request.method, [event["id"] for event in json.loads(text or "[]")]))
        return web.Response(status=204)

    application, port = web.Application(), free_port()
    application.router.add_route("*", "/streams/log", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        async with publishers.durable_streams(port) as publish:
            await publish(list(range(1, 1502)))
    finally:
        await runner.cleanup()
    assert requests == [("PUT", []), ("POST", list(range(1, 1001))), ("POST", list(range(1001, 1502)))]
