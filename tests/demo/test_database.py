from __future__ import annotations

import asyncio
import json
from typing import Any

import asyncpg
import pytest

from examples.demo.database import KEPT_MESSAGES, LONGEST_TEXT, Database, DatabaseError, reply, take_messages
from testing.demo import ROLE
from testing.patience import PATIENCE_S

EVENTS = "select user_id, id, event, data from userrealtime.event order by user_id, id"
SUBMIT = "select userrealtime.submit($1, $2, 'note', $3::text::jsonb)"


async def events(connection: asyncpg.Connection) -> list[tuple[Any, ...]]:
    rows = await connection.fetch(EVENTS)
    return [(row["user_id"], row["id"], row["event"], json.loads(row["data"])) for row in rows]


async def test_a_message_and_its_event_have_the_same_content(
    database: Database, connection: asyncpg.Connection
) -> None:
    await database.send("alice", "bob", "é")
    await database.send("bob", "alice", "two")
    await database.send("alice", "alice", "three")
    found = json.loads(await database.state("alice"))
    messages = found["state"]["messages"]
    assert [(message["from"], message["text"]) for message in messages] == [("bob", "é"), ("alice", "three")]
    published = [(id, event, data) for user, id, event, data in await events(connection) if user == "alice"]
    assert published == [(1, "note", messages[0]), (2, "note", messages[1])]


async def test_the_state_has_the_position_of_its_snapshot(database: Database, connection: asyncpg.Connection) -> None:
    empty = json.loads(await database.state("alice"))
    assert empty["state"] == {"messages": [], "ticks": 0}
    assert empty["position"].startswith("0:")
    await database.tick("alice")
    await database.tick("alice")
    await database.tick("bob")
    found = json.loads(await database.state("alice"))
    assert found["state"] == {"messages": [], "ticks": 2}
    assert found["position"] == empty["position"].replace("0:", "2:", 1)
    assert [(user, data) for user, _, _, data in await events(connection)] == [
        ("alice", {"number": 1}),
        ("alice", {"number": 2}),
        ("bob", {"number": 1}),
    ]


async def test_only_the_newest_messages_are_kept(database: Database, connection: asyncpg.Connection) -> None:
    await database.send("bob", "alice", "of another user")
    for number in range(KEPT_MESSAGES + 3):
        await database.send("alice", "bob", str(number))
    messages = json.loads(await database.state("alice"))["state"]["messages"]
    assert [message["text"] for message in messages] == [str(number) for number in range(3, KEPT_MESSAGES + 3)]
    counts = await connection.fetch("select recipient, count(*) from userrealtime_demo.message group by 1 order by 1")
    assert [tuple(row) for row in counts] == [("alice", KEPT_MESSAGES), ("bob", 1)]


async def test_a_message_that_cannot_be_published_is_not_stored(
    database: Database, connection: asyncpg.Connection
) -> None:
    await connection.execute("alter table userrealtime.event add constraint none check (event <> 'note')")
    with pytest.raises(DatabaseError):
        await database.send("alice", "bob", "lost")
    assert json.loads(await database.state("alice"))["state"]["messages"] == []


async def test_presence_is_of_both_users_and_nobody_else(database: Database, connection: asyncpg.Connection) -> None:
    for user, clients in (("alice", 2), ("carol", 1)):
        await connection.execute("select userrealtime.present($1, 'pod', $2)", user, clients)
    presence = await database.presence()
    assert {user: found["clients"] for user, found in presence.users.items()} == {"alice": 2, "bob": 0}
    assert presence.users["bob"]["since"] is None
    assert presence.users["alice"]["since"].startswith(presence.now.isoformat()[:4])


async def test_messages_are_answered_once_and_in_order(demo_url: str, connection: asyncpg.Connection) -> None:
    for user, ref, data in (
        ("alice", "1", {"text": "one"}),
        ("bob", "1", {"text": "two"}),
        ("carol", "1", {"text": "of somebody else"}),
        ("alice", "2", {"text": "three"}),
    ):
        await connection.execute(SUBMIT, user, ref, json.dumps(data))
    worker = await asyncpg.connect(demo_url)
    try:
        assert await take_messages(worker) == 3
        assert await take_messages(worker) == 0
    finally:
        await worker.close()
    assert await events(connection) == [
        ("alice", 1, "echo", {"inbox": 1, "text": "one"}),
        ("alice", 2, "echo", {"inbox": 4, "text": "three"}),
        ("bob", 1, "echo", {"inbox": 2, "text": "two"}),
    ]
    waiting = await connection.fetch("select user_id from userrealtime.inbox where done is null")
    assert [row["user_id"] for row in waiting] == ["carol"]


async def test_the_inbox_is_served_as_messages_come(database: Database, connection: asyncpg.Connection) -> None:
    serving = asyncio.create_task(database.serve_inbox())
    try:
        for number in range(3):
            await connection.execute(SUBMIT, "alice", str(number), json.dumps({"text": str(number)}))
            async with asyncio.timeout(PATIENCE_S):
                while len(await events(connection)) <= number:
                    await asyncio.sleep(0.01)
    finally:
        serving.cancel()
        await asyncio.wait([serving])
    assert [data["text"] for *_, data in await events(connection)] == ["0", "1", "2"]


async def test_the_inbox_is_served_again_after_its_connection_was_ended(
    database: Database, connection: asyncpg.Connection
) -> None:
    theirs = "from pg_stat_activity where usename = $1 and datname = current_database() and state = 'idle'"
    serving = asyncio.create_task(database.serve_inbox())
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not await connection.fetch(f"select pg_terminate_backend(pid) {theirs}", ROLE):
                await asyncio.sleep(0.01)
        await connection.execute(SUBMIT, "alice", "1", json.dumps({"text": "afterwards"}))
        async with asyncio.timeout(PATIENCE_S):
            while not await events(connection):
                await asyncio.sleep(0.01)
    finally:
        serving.cancel()
        await asyncio.wait([serving])


@pytest.mark.parametrize("data", [None, [], "text", {}, {"text": 1}, {"text": ""}, {"text": "x" * (LONGEST_TEXT + 1)}])
def test_what_a_client_sends_is_looked_at(data: Any) -> None:
    assert reply(7, data) == {"inbox": 7, "error": f"text must have 1 to {LONGEST_TEXT} characters"}


def test_what_a_client_sends_is_given_back() -> None:
    assert reply(7, {"text": "x" * LONGEST_TEXT, "more": 1}) == {"inbox": 7, "text": "x" * LONGEST_TEXT}


async def test_a_database_that_is_away_is_told(demo_url: str) -> None:
    async with Database.connect(demo_url.rpartition("/")[0] + "/nowhere") as nowhere:
        with pytest.raises(DatabaseError, match="nowhere"):
            await nowhere.send("alice", "bob", "text")
        with pytest.raises(DatabaseError, match="nowhere"):
            await nowhere.state("alice")
        with pytest.raises(DatabaseError):
            await nowhere.presence()
