"""From a row in an application's table to the right user's client, through the ingress."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable

import asyncpg
import pytest
from websockets.exceptions import ConnectionClosed

from testing.client import ResumingClient, http_get, open_connection, receive
from testing.patience import PATIENCE_S
from testing.system import System

MakeUser = Callable[..., str]


async def test_a_row_reaches_its_user_and_nobody_else(
    system: System, users: MakeUser, database: asyncpg.Connection
) -> None:
    alice, bob = await asyncio.gather(*(asyncio.to_thread(users, name) for name in ("alice", "bob")))
    await database.execute(
        """
        create temporary table notes (id int, owner text, body text);
        create trigger publish_notes after insert or update or delete on notes
            for each row execute function userrealtime.capture('owner', 'note');
        """
    )
    async with (
        ResumingClient(system.websocket_url(alice), system.token(alice)) as alices,
        ResumingClient(system.websocket_url(bob), system.token(bob)) as bobs,
    ):
        await database.execute("insert into notes values (1, $1, 'for alice'), (2, $2, 'for bob')", alice, bob)
        await database.execute("update notes set body = 'for alice again' where id = 1")
        await alices.wait_for_events(2)
        await bobs.wait_for_events(1)
        # Bob's event is the last one: a misdirected event of alice would have arrived before.
        await database.execute("select userrealtime.publish($1, 'end')", bob)
        await bobs.wait_for_events(2)
    assert [(event["id"], event["event"], event["data"]) for event in alices.events] == [
        (1, "note.insert", {"id": 1, "owner": alice, "body": "for alice"}),
        (2, "note.update", {"id": 1, "owner": alice, "body": "for alice again"}),
    ]
    assert [(event["id"], event["event"]) for event in bobs.events] == [(1, "note.insert"), (2, "end")]
    assert bobs.events[0]["data"]["owner"] == bob


async def test_tokens(system: System, users: MakeUser) -> None:
    alice, bob = await asyncio.gather(*(asyncio.to_thread(users, name) for name in ("alice", "bob")))
    url = system.websocket_url(alice)
    good = system.token(alice)
    silent = await open_connection(url, None)
    refused = {
        "bob's": system.token(bob),
        "alice's, signed for bob": system.token(alice, sub=bob),
        "bob's, claiming to be alice's": system.token(bob, sub=alice),
        "expired": system.token(alice, exp=int(time.time()) - 60),
        "without an end": good.rsplit(".", 1)[0] + ".",
        "no token at all": "x",
    }
    for what, token in refused.items():
        connection = await open_connection(url, token)
        with pytest.raises(ConnectionClosed):
            await receive(connection)
        assert (connection.close_code, connection.close_reason) == (1008, "Unauthorized"), what

    with pytest.raises(ConnectionClosed):
        await receive(silent)
    assert (silent.close_code, silent.close_reason) == (1008, "Unauthorized")

    accepted = await open_connection(url, good)
    greeting = await receive(accepted)
    await accepted.close()
    assert (greeting["type"], greeting["userId"]) == ("connected", alice)


async def test_a_client_that_was_away_gets_what_it_missed(
    system: System, users: MakeUser, database: asyncpg.Connection
) -> None:
    alice = await asyncio.to_thread(users, "alice")
    await database.execute("select userrealtime.publish($1, 'x') from generate_series(1, 3000)", alice)
    async with asyncio.timeout(PATIENCE_S):
        connection = await open_connection(system.websocket_url(alice), system.token(alice), last_event_id=0)
        assert (await receive(connection))["type"] == "connected"
        ids = [(await receive(connection))["id"] for _ in range(3000)]
        await connection.close()
    assert ids == list(range(1, 3001))


async def test_streams_and_polls_come_through_the_ingress_as_well(
    system: System, users: MakeUser, database: asyncpg.Connection
) -> None:
    alice = await asyncio.to_thread(users, "alice")
    base = system.get("urt", alice)["status"]["url"]
    headers = {"Authorization": f"Bearer {system.token(alice)}"}
    await database.execute("select userrealtime.publish($1, 'x') from generate_series(1, 3)", alice)

    def poll() -> list[int]:
        with http_get(f"{base}/poll?cursor=0", headers) as got:
            return [event["id"] for event in json.load(got)["events"]]

    def stream() -> list[int]:
        resume = {**headers, "Last-Event-ID": "1"}
        ids: list[int] = []
        with http_get(f"{base}/sse", resume) as got:
            while len(ids) < 2:
                line = got.readline().decode()
                message = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
                ids += [message["id"]] if message.get("type") == "event" else []
        return ids

    assert await asyncio.to_thread(poll) == [1, 2, 3]
    assert await asyncio.to_thread(stream) == [2, 3]
