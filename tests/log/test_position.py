"""position() joins the state of an application and the user's log without a gap during concurrent writes."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg
import pytest

from testing.database import Database
from testing.local.postgres import LocalPostgres
from testing.patience import PATIENCE_S
from testing.relay.harness import NEVER, USER, client, publish, receive, running
from testing.relay.http_client import poll, stream

POSITION = "select userrealtime.position($1)"
STATE = "select coalesce(array_agg(label), '{}') from applied where user_id = $1"
USERS = ("alice", "bob", "carol")
WRITERS = 6
READERS = 4
TRANSACTIONS = 60


@dataclass(frozen=True)
class Snapshot:
    """The labels in the state of a reader, and the position from which it resumes."""

    user_id: str
    labels: frozenset[str]
    position: str

    @property
    def number(self) -> int:
        return int(self.position.partition(":")[0])

    @property
    def epoch(self) -> str:
        return self.position.partition(":")[2]


@asynccontextmanager
async def connected(database: Database) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database.url)
    try:
        yield connection
    finally:
        await connection.close()


async def write(database: Database, writer: int) -> None:
    """Change the state and publish the change, in transactions of which some are rolled back in whole or in part."""
    choose = random.Random(writer)  # noqa: S311
    async with connected(database) as connection:
        for number in range(TRANSACTIONS):
            await connection.execute("begin")
            for part in range(choose.randint(1, 3)):
                user_id, label = choose.choice(USERS), f"{writer}/{number}/{part}"
                await connection.execute("savepoint part")
                await connection.execute("insert into applied values ($1, $2)", user_id, label)
                data = json.dumps({"label": label})
                await connection.execute("select userrealtime.publish($1, 'applied', $2)", user_id, data)
                await connection.execute(choose.choice(["rollback to part", "release part", "release part"]))
                await asyncio.sleep(choose.random() / 200)
            if choose.random() < 0.2:
                await connection.execute("set constraints all immediate")
                await asyncio.sleep(choose.random() / 200)
            await connection.execute(choose.choice(["rollback", "commit", "commit"]))


async def read(database: Database, mode: str, seed: int, ended: asyncio.Event) -> list[Snapshot]:
    """Read state and position repeatedly until the writers have ended."""
    choose = random.Random(seed)  # noqa: S311
    found = []
    async with connected(database) as connection:
        while not ended.is_set():
            user_id = choose.choice(USERS)
            if mode == "one statement":
                row = await connection.fetchrow(
                    f"select userrealtime.position($1), pg_sleep($2), ({STATE})", user_id, choose.random() / 100
                )
                assert row is not None
                position, _, labels = row
            else:
                await connection.execute(f"begin isolation level {mode}")
                first, then = POSITION, STATE
                if mode != "read committed" and choose.random() < 0.5:
                    first, then = then, first
                answers = {first: await connection.fetchval(first, user_id)}
                await asyncio.sleep(choose.random() / 100)
                answers[then] = await connection.fetchval(then, user_id)
                await connection.execute("commit")
                position, labels = answers[POSITION], answers[STATE]
            found.append(Snapshot(user_id, frozenset(labels), position))
    return found


async def snapshots(database: Database, mode: str) -> tuple[list[Snapshot], dict[str, dict[str, int]], dict[str, str]]:
    """Return the snapshots of readers during writes, the number of each label by user, and the epochs."""
    async with connected(database) as connection:
        await connection.execute("create table applied (user_id text, label text)")
        ended = asyncio.Event()
        async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
            readers = [group.create_task(read(database, mode, seed, ended)) for seed in range(READERS)]
            writers = [group.create_task(write(database, writer)) for writer in range(WRITERS)]
            await asyncio.wait(writers)
            ended.set()
        found = [snapshot for reader in readers for snapshot in reader.result()]
        numbers: dict[str, dict[str, int]] = {user_id: {} for user_id in USERS}
        for user_id, number, label in await connection.fetch(
            "select user_id, id, data->>'label' from userrealtime.event"
        ):
            numbers[user_id][label] = number
        rows = await connection.fetch("select user_id, epoch from userrealtime.log")
        epochs = {row["user_id"]: row["epoch"] for row in rows}
    assert len(found) > 50
    assert len({snapshot.position for snapshot in found}) > 10
    return found, numbers, epochs


@pytest.mark.parametrize("mode", ["repeatable read", "repeatable read read only", "serializable", "one statement"])
async def test_a_position_of_the_same_snapshot_is_exact(migrated: Database, mode: str) -> None:
    """The state has precisely the changes whose events are at or before the position."""
    found, numbers, epochs = await snapshots(migrated, mode)
    for snapshot in found:
        mine = numbers[snapshot.user_id]
        assert snapshot.labels == {label for label, number in mine.items() if number <= snapshot.number}
        assert snapshot.epoch == epochs[snapshot.user_id]


async def test_a_position_read_before_the_state_is_never_too_late(migrated: Database) -> None:
    """In READ COMMITTED, a change may be in the state and also arrive as an event. No change is missing."""
    found, numbers, epochs = await snapshots(migrated, "read committed")
    for snapshot in found:
        mine = numbers[snapshot.user_id]
        assert snapshot.labels >= {label for label, number in mine.items() if number <= snapshot.number}
        assert snapshot.epoch == epochs[snapshot.user_id]


async def test_in_read_committed_a_change_can_come_twice(connection: asyncpg.Connection, migrated: Database) -> None:
    await connection.execute("create table note (id int)")
    async with connection.transaction(), connected(migrated) as other:
        position = await connection.fetchval(POSITION, USER)
        async with other.transaction():
            await other.execute("insert into note values (1)")
            await publish(other)
        assert await connection.fetchval("select count(*) from note") == 1
    assert position.startswith("0:")


@pytest.mark.parametrize("first", ["log", "no log"])
async def test_an_open_transaction_with_a_position_delays_no_publisher(
    connection: asyncpg.Connection, migrated: Database, first: str
) -> None:
    if first == "log":
        await publish(connection)
    async with connected(migrated) as other:
        transaction = connection.transaction(isolation="repeatable_read")
        await transaction.start()
        position = await connection.fetchval(POSITION, USER)
        await other.execute("set lock_timeout = 1")
        await publish(other, 2)
        assert await other.fetchval("select count(*) from userrealtime.log") == 1
        assert await connection.fetchval(POSITION, USER) == position
        await transaction.commit()
        before = int(position.partition(":")[0])
        assert await connection.fetchval(POSITION, USER) == position.replace(f"{before}:", f"{before + 2}:")


async def test_a_publisher_delays_no_position(connection: asyncpg.Connection, migrated: Database) -> None:
    async with connected(migrated) as other:
        for number in (0, 1):
            await other.execute("begin")
            await publish(other)
            await other.execute("set constraints all immediate")
            await connection.execute("set lock_timeout = 1")
            assert (await connection.fetchval(POSITION, USER)).startswith(f"{number}:")
            await other.execute("commit")


async def test_a_position_is_read_without_writing(connection: asyncpg.Connection) -> None:
    async with connection.transaction(readonly=True):
        position = await connection.fetchval(POSITION, USER)
    assert await connection.fetchval("select count(*) from userrealtime.log") == 0
    await publish(connection)
    assert position == "0:" + await connection.fetchval("select epoch from userrealtime.log")


@pytest.mark.parametrize("users", [("alice",), ("alice", "bob", "bob")])
async def test_a_log_has_the_epoch_of_the_position_however_it_is_created(
    connection: asyncpg.Connection, users: tuple[str, ...]
) -> None:
    positions = {user_id: await connection.fetchval(POSITION, user_id) for user_id in users}
    assert len(set(positions.values())) == len(positions)
    await connection.execute("select userrealtime.publish(u, 'x') from unnest($1::text[]) u", users)
    rows = await connection.fetch("select user_id, epoch from userrealtime.log")
    assert {user_id: f"0:{epoch}" for user_id, epoch in rows} == positions


@pytest.mark.parametrize(
    "removal",
    [
        "delete from userrealtime.log where user_id = 'alice'",
        "truncate userrealtime.log",
        "set session_replication_role = replica; delete from userrealtime.log; reset session_replication_role",
    ],
)
async def test_a_log_that_returns_has_another_epoch(connection: asyncpg.Connection, removal: str) -> None:
    epochs = [await connection.fetchval(POSITION, USER)]
    for _ in range(2):
        await publish(connection)
        epochs.append(await connection.fetchval("select epoch from userrealtime.log"))
        await connection.execute(f"{removal}; delete from userrealtime.event")
    assert epochs[0] == f"0:{epochs[1]}"
    assert len({*epochs[1:], (await connection.fetchval(POSITION, USER)).partition(":")[2]}) == 3


async def test_new_epochs_are_those_of_all_logs_also_of_those_to_come(connection: asyncpg.Connection) -> None:
    await publish(connection)
    before = [await connection.fetchval(POSITION, user_id) for user_id in ("alice", "nobody")]
    assert await connection.fetchval("select userrealtime.renew_epochs()") == 1
    after = [await connection.fetchval(POSITION, user_id) for user_id in ("alice", "nobody")]
    assert [position.partition(":")[0] for position in after] == ["1", "0"]
    assert not {*before} & {*after}


@pytest.mark.parametrize("user_id", ["", "a\nb", "x" * 254, None])
async def test_a_position_of_no_user_is_an_error(connection: asyncpg.Connection, user_id: str | None) -> None:
    with pytest.raises(asyncpg.InvalidParameterValueError, match=r"userrealtime\.position: user_id must be 1 to 253"):
        await connection.fetchval(POSITION, user_id)


async def test_a_role_needs_the_grant(migrated: Database, connection: asyncpg.Connection) -> None:
    role = f"app_{migrated.name}"
    await connection.execute(f"create role {role} login")
    try:
        application = await asyncpg.connect(migrated.url.replace("postgres@", f"{role}@"))
        try:
            await connection.execute(f"grant usage on schema userrealtime to {role}")
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await application.fetchval(POSITION, USER)
            await connection.execute(f"grant execute on function userrealtime.position to {role}")
            assert (await application.fetchval(POSITION, USER)).startswith("0:")
        finally:
            await application.close()
    finally:
        await connection.execute(f"drop owned by {role}; drop role {role}")


async def test_a_position_on_a_replica_is_exact(own_server: Database) -> None:
    """State and position are read on a hot standby, and the relay of the primary sends the events that follow."""
    with LocalPostgres(primary=own_server.server) as server:
        replica = Database(server, own_server.name)
        async with connected(own_server) as connection, connected(replica) as there, connected(replica) as latest:
            await connection.execute("create table note (id int)")
            await publish(connection)

            async def replayed(user_id: str = USER) -> None:
                async with asyncio.timeout(PATIENCE_S):
                    expected = await connection.fetchval(POSITION, user_id)
                    while await latest.fetchval(POSITION, user_id) != expected:
                        await asyncio.sleep(0.02)

            await replayed()
            await replayed("nobody")
            async with there.transaction(isolation="repeatable_read", readonly=True):
                position = await there.fetchval(POSITION, USER)
                async with connection.transaction():
                    await connection.execute("insert into note values (1)")
                    await publish(connection)
                await replayed()
                assert await there.fetchval(POSITION, USER) == position
                assert await there.fetchval("select count(*) from note") == 0
            row = await there.fetchrow("select userrealtime.position($1), (select count(*) from note)", USER)
            assert row is not None
            assert tuple(row) == (position.replace("1:", "2:", 1), 1)
            async with running(own_server.url) as relay, client(relay, last_event_id=position) as socket:
                assert (await receive(socket))["cursor"] == 1
                assert (await receive(socket))["id"] == 2
            with pytest.raises(asyncpg.FeatureNotSupportedError, match="hot standby"):
                await there.execute("begin isolation level serializable; select 1")
            await connection.execute("delete from userrealtime.log; delete from userrealtime.event")
            await replayed()
            assert (await latest.fetchval(POSITION, USER)).startswith("0:")


async def test_every_transport_resumes_from_a_position(migrated: Database, connection: asyncpg.Connection) -> None:
    async with running(migrated.url, POLL_INTERVAL=NEVER) as relay:
        before = await connection.fetchval(POSITION, USER)
        await publish(connection, 3)
        position = await connection.fetchval(POSITION, USER)
        await publish(connection, 2)
        for text, first in ((before, 1), (position, 4)):
            async with client(relay, last_event_id=text) as socket:
                assert (await receive(socket))["cursor"] == first - 1
                assert [(await receive(socket))["id"] for _ in range(first, 6)] == [*range(first, 6)]
            async with stream(relay, headers={"Last-Event-ID": text}) as events:
                assert [(await events.event() or {}).get("id") for _ in range(first - 1, 6)] == [None, *range(first, 6)]
            answer = await poll(relay, cursor=text, timeout=0)
            assert [event["id"] for event in answer["events"]] == [*range(first, 6)]
    await connection.execute("delete from userrealtime.log; delete from userrealtime.event")
    await publish(connection, 6)
    async with running(migrated.url) as relay, client(relay, last_event_id=before) as socket:
        await receive(socket)
        assert (await receive(socket))["reason"] == "epoch"
