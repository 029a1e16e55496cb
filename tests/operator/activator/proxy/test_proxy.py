"""The activator before a real relay: what a client of a sleeping user sees."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Coroutine
from typing import Any
from urllib.parse import urlencode

import asyncpg
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import InvalidStatus

from testing.database import Database
from testing.operator.activator import SERVICE, gate
from testing.relay.harness import PATIENCE_S, client, closed, publish, receive, receive_ids, token, until
from testing.relay.http_client import request, stream

STRANGER = "a key of a stranger's that is long enough"


async def test_a_websocket_gets_what_came_while_asleep(migrated: Database, connection: asyncpg.Connection) -> None:
    await publish(connection, 3)
    async with gate(migrated.url) as (opened, cluster, _), client(opened.port, last_event_id="1") as alice:
        assert (await receive(alice))["type"] == "connected"
        assert await receive_ids(alice, 3) == [2, 3]
        await publish(connection)
        assert await receive_ids(alice, 4) == [4]
        await alice.send(json.dumps({"type": "publish", "ref": "1", "event": "x", "data": {}}))
        assert (await receive(alice))["type"] == "ack"
        assert cluster.wakes == 1


async def test_large_cookies_are_accepted(migrated: Database) -> None:
    headers = {"Cookie": f"a={'x' * 12_000}"}
    async with gate(migrated.url) as (opened, _, _):
        async with client(opened.port, None, headers=headers) as alice:
            await alice.send(json.dumps({"type": "auth", "token": token()}))
            assert (await receive(alice))["type"] == "connected"
        async with client(opened.port, headers=headers) as alice:
            assert (await receive(alice))["type"] == "connected"


@pytest.mark.parametrize("early", [False, True])
async def test_a_first_message_with_the_token(migrated: Database, connection: asyncpg.Connection, early: bool) -> None:
    await publish(connection, 2)
    async with gate(migrated.url) as (opened, cluster, _), client(opened.port, None) as alice:
        assert alice.response is not None
        assert "Sec-WebSocket-Extensions" not in alice.response.headers
        await alice.send(json.dumps({"type": "auth", "token": token()}))
        if early:  # before the pod is there
            await alice.send(json.dumps({"type": "resume", "lastEventId": 0}))
        assert (await receive(alice))["type"] == "connected"
        if not early:
            await alice.send(json.dumps({"type": "resume", "lastEventId": 0}))
        messages = [await receive(alice)]
        while messages[-1].get("id") != 2:
            messages.append(await receive(alice))
        assert [message["id"] for message in messages if message["type"] == "event"] == [1, 2]
        assert cluster.wakes == 1


async def test_the_token_as_a_subprotocol(migrated: Database) -> None:
    subprotocols = ["userrealtime.v1", f"bearer.{token()}"]
    async with gate(migrated.url) as (opened, _, _), client(opened.port, None, subprotocols=subprotocols) as alice:
        assert alice.subprotocol == "userrealtime.v1"
        assert (await receive(alice))["type"] == "connected"


async def test_a_stream_gets_what_came_while_asleep(migrated: Database, connection: asyncpg.Connection) -> None:
    await publish(connection, 3)
    headers = {**SERVICE, "Last-Event-ID": "1"}
    async with gate(migrated.url) as (opened, cluster, _), stream(opened.port, headers=headers) as events:
        greeting = await events.event()
        assert greeting is not None
        assert greeting["type"] == "connected"
        assert await events.ids(3) == [2, 3]
        await publish(connection)
        assert await events.ids(4) == [4]
        assert cluster.wakes == 1


async def test_a_poll_gets_what_came_while_asleep(migrated: Database, connection: asyncpg.Connection) -> None:
    await publish(connection, 3)
    async with gate(migrated.url) as (opened, cluster, _):
        answer = await request(opened.port, "/poll?" + urlencode({"last_event_id": 1}), headers=SERVICE)
        assert answer.status == 200
        assert answer.headers["connection"] == "close"
        assert [event["id"] for event in answer.json["events"]] == [2, 3]
        assert cluster.wakes == 1


async def test_a_publish_arrives_whole(migrated: Database, connection: asyncpg.Connection) -> None:
    body = json.dumps({"ref": "1", "event": "x", "data": {"text": "y" * 20_000}}).encode()
    headers = {**SERVICE, "Content-Type": "application/json"}
    async with gate(migrated.url) as (opened, _, _):
        answer = await request(opened.port, "/publish", method="POST", headers=headers, body=body)
        assert answer.status < 300, answer
        assert await connection.fetchval("select count(*) from userrealtime.inbox") == 1


async def test_a_hundred_clients_cost_one_wake(migrated: Database) -> None:
    async with gate(migrated.url) as (opened, cluster, _):

        async def visit() -> str:
            async with client(opened.port) as alice:
                kind: str = (await receive(alice))["type"]
                return kind

        async with asyncio.timeout(PATIENCE_S):
            assert await asyncio.gather(*(visit() for _ in range(100))) == ["connected"] * 100
        assert cluster.wakes == 1


async def test_a_wrong_token_wakes_nobody(migrated: Database) -> None:
    wrong = token(key=STRANGER)
    async with gate(migrated.url) as (opened, cluster, metrics):
        for path in ("/sse", "/poll"):
            assert (await request(opened.port, path, wrong, headers=SERVICE)).status == 401
            assert (await request(opened.port, path, None, headers=SERVICE)).status == 401
        async with client(opened.port, wrong) as alice:
            assert await closed(alice) == (1008, "Unauthorized")
        async with client(opened.port, None) as alice:
            await alice.send(json.dumps({"type": "auth", "token": wrong}))
            assert await closed(alice) == (1008, "Unauthorized")
        async with client(opened.port, token(sub="bob")) as alice:
            assert await closed(alice) == (1008, "Unauthorized")
        assert cluster.wakes == 0
        assert metrics.value("outcomes_total", outcome="unauthorized") == 7


async def test_strangers_and_other_paths_wake_nobody(migrated: Database) -> None:
    async with gate(migrated.url) as (opened, cluster, _):
        assert (await request(opened.port, "/sse", headers={"Host": "urt-bob"})).status == 404
        assert (await request(opened.port, "/other", headers=SERVICE)).status == 404
        assert (await request(opened.port, "/sse", method="POST", headers=SERVICE)).status == 405
        assert cluster.wakes == 0


async def test_a_pod_that_does_not_come_is_an_error_in_time(migrated: Database) -> None:
    async with gate(migrated.url, comes=False, timeout_s=0.2) as (opened, cluster, _):
        answer = await request(opened.port, "/sse", headers=SERVICE)
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) > 0
        async with client(opened.port) as alice:
            assert (await closed(alice))[0] == 1013
        assert cluster.wakes == 2


async def test_only_so_many_connections_of_one_user(migrated: Database) -> None:
    async with gate(migrated.url, comes=False, user_connections=1) as (opened, cluster, metrics):
        waiting = asyncio.create_task(request(opened.port, "/poll", headers=SERVICE))
        await until(lambda: cluster.wakes == 1)
        assert (await request(opened.port, "/sse", headers=SERVICE)).status == 503
        assert metrics.value("outcomes_total", outcome="overloaded") == 1
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


async def test_only_so_many_connections_in_all(migrated: Database) -> None:
    async with gate(migrated.url, connections=0) as (opened, cluster, metrics):
        assert (await request(opened.port, "/poll", headers=SERVICE)).status == 503
        assert metrics.value("outcomes_total", outcome="overloaded") == 1
        assert cluster.wakes == 0


async def test_what_says_nothing_is_cut(migrated: Database) -> None:
    async with gate(migrated.url, request_s=0.1) as (opened, _, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", opened.port)
        async with asyncio.timeout(PATIENCE_S):
            assert await reader.read() == b""
        writer.close()
        async with client(opened.port, None) as alice:
            assert await closed(alice) == (1008, "Unauthorized")


async def test_a_second_request_on_the_connection_reaches_nobody(migrated: Database) -> None:
    poll = f"GET /poll?last_event_id=0 HTTP/1.1\r\nHost: {SERVICE['Host']}\r\nAuthorization: Bearer {token()}\r\n\r\n"
    async with gate(migrated.url) as (opened, _, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", opened.port)
        writer.write(f"GET /other HTTP/1.1\r\nHost: {SERVICE['Host']}\r\n\r\n".encode() + poll.encode())
        async with asyncio.timeout(PATIENCE_S):
            answer = (await reader.readuntil(b"}")).decode()
            assert answer.startswith("HTTP/1.1 404 ")
            writer.write_eof()
            assert await reader.read() == b""
        writer.close()


@pytest.mark.parametrize("ghosts", [1, 2])
async def test_a_pod_that_ends_before_it_answers_is_not_the_last_word(migrated: Database, ghosts: int) -> None:
    async with gate(migrated.url, ghosts=ghosts) as (opened, _, _), client(opened.port) as alice:
        assert (await receive(alice))["type"] == "connected"


async def test_what_is_published_is_not_published_again(migrated: Database) -> None:
    body = json.dumps({"ref": "1", "event": "x", "data": {}}).encode()
    headers = {**SERVICE, "Content-Type": "application/json"}
    async with gate(migrated.url, ghosts=1) as (opened, _, _):
        answer = await request(opened.port, "/publish", method="POST", headers=headers, body=body)
        assert answer.status == 503


async def test_a_page_of_another_site_is_answered_as_the_relay_answers(migrated: Database) -> None:
    page = {**SERVICE, "Origin": "https://app.example.com"}
    asks = {**page, "Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}
    relay = {"ALLOWED_ORIGINS": "https://app.example.com"}
    async with gate(migrated.url, relay=relay) as (opened, cluster, metrics):
        asleep = [
            await request(opened.port, "/sse", None, method="OPTIONS", headers=asks),
            await request(opened.port, "/sse", None, method="OPTIONS", headers={**asks, "Origin": "https://evil.test"}),
            await request(opened.port, "/sse", "wrong", headers=page),
        ]
        with pytest.raises(InvalidStatus) as refused:
            async with client(opened.port, headers={"Origin": "https://evil.test"}):
                pass
        assert refused.value.response.status_code == 403
        assert cluster.wakes == 0
        assert metrics.value("outcomes_total", outcome="preflight") == 1
        port = (await cluster.start()).ws_port
        awake = [
            await request(port, "/sse", None, method="OPTIONS", headers=asks),
            await request(port, "/sse", None, method="OPTIONS", headers={**asks, "Origin": "https://evil.test"}),
            await request(port, "/sse", "wrong", headers=page),
        ]
        told = ("access-control-allow-origin", "access-control-max-age", "access-control-expose-headers")
        for here, there in zip(asleep, awake, strict=True):
            assert here.status == there.status
            if there.status != 400:  # a page that is not allowed receives more from the relay than a browser reads
                assert [here.headers.get(name) for name in told[:2]] == [there.headers.get(name) for name in told[:2]]
        assert asleep[0].headers["access-control-allow-methods"] == awake[0].headers["access-control-allow-methods"]
        assert "Authorization" in asleep[0].headers["access-control-allow-headers"]


async def test_one_who_is_awake_is_not_asked_to_wake(migrated: Database) -> None:
    async with gate(migrated.url) as (opened, cluster, metrics):
        relay = await cluster.start()
        cluster.ready(relay.ws_port)
        async with client(opened.port) as alice:
            assert (await receive(alice))["type"] == "connected"
        assert cluster.wakes == 0
        assert metrics.value("wake_seconds_count") == 0


async def test_a_drain_closes_a_tunnel_between_two_frames(migrated: Database, connection: asyncpg.Connection) -> None:
    async with gate(migrated.url) as (opened, _, metrics):
        narrow = socket.socket()
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        narrow.connect(("127.0.0.1", opened.port))
        async with client(opened.port, max_size=None, sock=narrow) as alice:
            await receive(alice)
            # More than all buffers hold, so the drain begins while a frame is half forwarded.
            await publish(connection, 60, size=400_000)
            await until(lambda: metrics.value("forwarded_bytes_total", to="client") > 5_000_000)
            before = -1.0
            while (carried := metrics.value("forwarded_bytes_total", to="client")) != before:
                before = carried
                await asyncio.sleep(0.3)
            assert await receive_some(alice, opened.drain(0)) == (1012, "Restarting")
        await until(lambda: opened.connections == 0)
        assert metrics.value("outcomes_total", outcome="drained") == 1


async def test_a_draining_activator_tells_those_who_wait_to_come_again(migrated: Database) -> None:
    async with (
        gate(migrated.url, comes=False) as (opened, cluster, _),
        client(opened.port, None) as alice,
        asyncio.TaskGroup() as group,
    ):
        await alice.send(json.dumps({"type": "auth", "token": token()}))
        poll = group.create_task(request(opened.port, "/poll", headers=SERVICE))
        early = group.create_task(_close_code(opened.port))
        await until(lambda: opened.connections == 3 and cluster.wakes == 1)
        await opened.drain(0)
        assert await closed(alice) == (1012, "Restarting")
        assert await early == 1012
        assert (await poll).status == 503
        assert int((await poll).headers["retry-after"]) > 0


async def test_who_has_an_answer_gets_no_other_one_while_draining(
    migrated: Database, caplog: pytest.LogCaptureFixture
) -> None:
    async with gate(migrated.url) as (opened, _, _), client(opened.port, token(key=STRANGER)) as alice:
        reader, writer = await asyncio.open_connection("127.0.0.1", opened.port)
        writer.write(b"GET /sse HTTP/1.1\r\nHost: nobody\r\n\r\n")
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 404 ")
        await opened.drain(0)
        async with asyncio.timeout(PATIENCE_S):
            rest = await reader.read()
        writer.close()
        assert b"HTTP/1.1" not in rest
        assert await closed(alice) == (1008, "Unauthorized")
        assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_draining_activator_cuts_a_stream(migrated: Database) -> None:
    async with gate(migrated.url) as (opened, _, _), stream(opened.port, headers=SERVICE) as events:
        assert (await events.event() or {})["type"] == "connected"
        await opened.drain(0)
        await until(lambda: opened.connections == 0)


async def _close_code(port: int) -> int:
    async with client(port) as connection:
        return (await closed(connection))[0]


async def receive_some(connection: ClientConnection, meanwhile: Coroutine[Any, Any, None]) -> tuple[int, str]:
    """The close that a client gets while something goes on, all messages before it whole."""
    task = asyncio.create_task(meanwhile)
    result = await closed(connection)
    await task
    return result
