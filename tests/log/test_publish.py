"""The guarantees of the log, on real PostgreSQL: gapless numbers per user, in commit order, at the publisher's pace."""

from __future__ import annotations

import asyncio
import json
import random
from collections import defaultdict
from collections.abc import AsyncIterator

import asyncpg
import pytest

from testing.database import Database
from testing.patience import PATIENCE_S

WRITERS = 8
TRANSACTIONS_PER_WRITER = 60
USERS = [f"user-{number}" for number in range(12)]


async def events_of(connection: asyncpg.Connection, user_id: str) -> list[asyncpg.Record]:
    return await connection.fetch("select * from userrealtime.event where user_id = $1 order by id", user_id)


class Notifications:
    """Yield the notifications on one user's channel while no announcer runs."""

    def __init__(self) -> None:
        self.payloads: asyncio.Queue[str] = asyncio.Queue()

    def __call__(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        self.payloads.put_nowait(str(payload))

    async def next(self) -> str:
        return await asyncio.wait_for(self.payloads.get(), timeout=PATIENCE_S)


@pytest.fixture
async def alice(migrated: Database) -> AsyncIterator[Notifications]:
    listener = await asyncpg.connect(migrated.url)
    notifications = Notifications()
    await listener.execute("select userrealtime.attend('alice', 'relay', true)")
    channel = await listener.fetchval("select channel from userrealtime.open('alice')")
    await listener.add_listener(channel, notifications)
    yield notifications
    await listener.close()


async def test_numbers_start_at_one_and_follow_the_order_of_publishing(connection: asyncpg.Connection) -> None:
    async with connection.transaction():
        for number in range(5):
            await connection.execute("select userrealtime.publish('alice', $1, $2)", f"event-{number}", "{}")
            await connection.execute("select userrealtime.publish('bob', 'other')")
    assert [(row["id"], row["event"]) for row in await events_of(connection, "alice")] == [
        (number + 1, f"event-{number}") for number in range(5)
    ]
    assert [row["id"] for row in await events_of(connection, "bob")] == [1, 2, 3, 4, 5]


async def test_a_rollback_leaves_neither_event_nor_gap(connection: asyncpg.Connection) -> None:
    await connection.execute("select userrealtime.publish('alice', 'first')")
    with pytest.raises(asyncpg.DivisionByZeroError):  # the script is one transaction
        await connection.execute("select userrealtime.publish('alice', 'never'); select 1/0")
    await connection.execute("select userrealtime.publish('alice', 'second')")
    assert [(row["id"], row["event"]) for row in await events_of(connection, "alice")] == [(1, "first"), (2, "second")]


async def test_a_rolled_back_savepoint_takes_only_its_own_events(connection: asyncpg.Connection) -> None:
    async with connection.transaction():
        savepoint = connection.transaction()
        await savepoint.start()
        await connection.execute("select userrealtime.publish('alice', 'never')")
        await savepoint.rollback()
        await connection.execute("select userrealtime.publish('alice', 'kept')")
    assert [(row["id"], row["event"]) for row in await events_of(connection, "alice")] == [(1, "kept")]


async def test_numbering_can_be_forced_before_the_commit(connection: asyncpg.Connection) -> None:
    async with connection.transaction():
        await connection.execute("select userrealtime.publish('alice', 'early')")
        await connection.execute("set constraints all immediate")
        await connection.execute("set constraints all deferred")
        await connection.execute("select userrealtime.publish('alice', 'late')")
    assert [(row["id"], row["event"]) for row in await events_of(connection, "alice")] == [(1, "early"), (2, "late")]


@pytest.mark.parametrize("seed", range(30))
async def test_any_transaction_of_events_savepoints_and_forced_numbering(
    connection: asyncpg.Connection, seed: int
) -> None:
    """The committed events are stored in the order of publishing, whichever event is the first of its transaction."""
    choose = random.Random(seed)  # noqa: S311
    expected: list[tuple[str, str]] = []
    for _ in range(8):
        kept: list[tuple[str, str]] = []
        savepoints: list[int] = []
        await connection.execute("begin")
        for _ in range(choose.randrange(12)):
            match choose.choice(["publish"] * 6 + ["savepoint"] * 3 + ["rollback", "rollback", "release", "number"]):
                case "publish":
                    user, event = choose.choice(USERS[:3]), f"{choose.random()}"
                    await connection.execute("select userrealtime.publish($1, $2)", user, event)
                    kept.append((user, event))
                case "savepoint":
                    await connection.execute(f"savepoint s{len(savepoints)}")
                    savepoints.append(len(kept))
                case "rollback" if savepoints:
                    del kept[savepoints.pop() :]
                    await connection.execute(f"rollback to s{len(savepoints)}; release s{len(savepoints)}")
                case "release" if savepoints:
                    savepoints.pop()
                    await connection.execute(f"release s{len(savepoints)}")
                case "number":
                    await connection.execute("set constraints all immediate; set constraints all deferred")
        ended = choose.choice(["commit", "commit", "rollback"])
        await connection.execute(ended)
        if ended == "commit":
            expected += kept
    for user in USERS[:3]:
        mine = [event for owner, event in expected if owner == user]
        rows = await events_of(connection, user)
        assert [(row["id"], row["event"]) for row in rows] == [(n + 1, event) for n, event in enumerate(mine)]
    for table in ("staged", "pending"):
        assert await connection.fetchval(f"select count(*) from userrealtime.{table}") == 0


async def test_eight_writers_cause_no_gap_and_no_deadlock(migrated: Database, connection: asyncpg.Connection) -> None:
    """Every transaction takes a ticket right after its commit. Of two transactions of which one ended before the
    other began, the earlier must have the lower numbers."""
    clock = iter(range(10**9))
    committed: dict[str, list[tuple[int, int, str]]] = defaultdict(list)  # user -> (began, ended, label)
    expected: dict[str, int] = defaultdict(int)

    async def write(writer: int) -> None:
        choose = random.Random(writer)  # noqa: S311
        mine = await asyncpg.connect(migrated.url)
        try:
            for number in range(TRANSACTIONS_PER_WRITER):
                label = f"{writer}.{number}"
                users = choose.sample(USERS, 8)  # random order, overlapping with every other writer
                roll_back = choose.random() < 0.2
                transaction = mine.transaction()
                began = next(clock)
                await transaction.start()
                for user in users:
                    await mine.execute("select userrealtime.publish($1, $2)", user, label)
                if roll_back:
                    await transaction.rollback()
                    continue
                await transaction.commit()
                ended = next(clock)
                for user in users:
                    committed[user].append((began, ended, label))
                    expected[user] += 1
        finally:
            await mine.close()

    await asyncio.wait_for(asyncio.gather(*(write(writer) for writer in range(WRITERS))), timeout=PATIENCE_S)

    for user in USERS:
        rows = await events_of(connection, user)
        assert [row["id"] for row in rows] == list(range(1, expected[user] + 1))
        position = {row["event"]: row["id"] for row in rows}
        assert set(position) == {label for _, _, label in committed[user]}
        # Walking back from the last to begin: whatever ended before a transaction began has a lower number.
        for began, _, label in committed[user]:
            earlier = [position[other] for _, ended, other in committed[user] if ended < began]
            assert all(number < position[label] for number in earlier)
    assert await connection.fetchval("select count(*) from userrealtime.staged") == 0
    assert await connection.fetchval("select count(*) from userrealtime.pending") == 0


async def test_a_reader_never_sees_a_number_before_those_below_it(migrated: Database) -> None:
    """The basis of the cursor: a reader of all events up to n will never find another event at or below n."""
    done = asyncio.Event()

    async def write(writer: int) -> None:
        choose = random.Random(writer)  # noqa: S311
        mine = await asyncpg.connect(migrated.url)
        try:
            for _ in range(80):
                async with mine.transaction():
                    await mine.execute("select userrealtime.publish('alice', 'x')")
                    await asyncio.sleep(choose.random() / 200)
        finally:
            await mine.close()

    async def read() -> list[int]:
        mine = await asyncpg.connect(migrated.url)
        seen: list[int] = []
        try:
            while True:
                last_round = done.is_set()
                rows = await mine.fetch(
                    "select id from userrealtime.event where user_id = 'alice' and id > $1 order by id",
                    seen[-1] if seen else 0,
                )
                seen += [row["id"] for row in rows]
                if last_round:
                    return seen
        finally:
            await mine.close()

    reader = asyncio.create_task(read())
    await asyncio.wait_for(asyncio.gather(*(write(writer) for writer in range(6))), timeout=PATIENCE_S)
    done.set()
    assert await asyncio.wait_for(reader, timeout=PATIENCE_S) == list(range(1, 6 * 80 + 1))


@pytest.mark.parametrize("users", [1, 1_000, 20_000])
async def test_twenty_thousand_events_in_one_transaction(connection: asyncpg.Connection, users: int) -> None:
    """The commit may take two seconds; after that, PostgreSQL ends the transaction."""
    async with connection.transaction():
        await connection.execute(
            "select userrealtime.publish('user-' || number % $1, 'bulk', jsonb_build_object('number', number)) "
            "from generate_series(1, 20000) number",
            users,
        )
        # The deferred work is part of COMMIT; it is forced here because the server's limit then applies to it.
        await connection.execute("set local statement_timeout = '2s'")
        await connection.execute("set constraints all immediate")
    assert await connection.fetchval("select count(*) from userrealtime.event") == 20_000
    assert await connection.fetchval("select count(*) from userrealtime.log") == users
    assert await connection.fetchval("select max(head) from userrealtime.log") == 20_000 // users
    in_order = await connection.fetchval(
        "select bool_and(ok) from (select (data->>'number')::int > "
        "coalesce(lag((data->>'number')::int) over (partition by user_id order by id), 0) as ok "
        "from userrealtime.event) numbered"
    )
    assert in_order


async def test_a_payload_of_100_kb_passes_and_the_signal_is_empty(
    connection: asyncpg.Connection, alice: Notifications
) -> None:
    payload = json.dumps({"text": "x" * 100_000})
    await connection.execute("select userrealtime.publish('alice', 'large', $1)", payload)
    assert await alice.next() == ""
    assert json.loads((await events_of(connection, "alice"))[0]["data"]) == json.loads(payload)


async def test_one_signal_a_transaction_and_none_for_others(
    connection: asyncpg.Connection, alice: Notifications
) -> None:
    await connection.execute("select userrealtime.publish('bob', 'x')")
    async with connection.transaction():
        for _ in range(3):
            await connection.execute("select userrealtime.publish('alice', 'x')")
    await connection.execute("select userrealtime.publish('alice', 'y')")
    await connection.execute("select pg_notify(userrealtime.channel('alice'), 'last')")
    assert [await alice.next() for _ in range(3)] == ["", "", "last"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("", "x", "{}"), "user_id must be"),
        ((None, "x", "{}"), "user_id must be"),
        (("u" * 254, "x", "{}"), "user_id must be"),
        (("a\nb", "x", "{}"), "user_id must be"),
        (("alice", "", "{}"), "event must be"),
        (("alice", None, "{}"), "event must be"),
        (("alice", "x" * 254, "{}"), "event must be"),
        (("alice", "x", None), "data must not be null"),
        (("alice", "x", json.dumps("x" * 1_000_001)), "the limit is 1000000"),
    ],
)
async def test_bad_input_is_refused_with_its_reason(
    connection: asyncpg.Connection, arguments: tuple[str | None, ...], complaint: str
) -> None:
    with pytest.raises(asyncpg.PostgresError, match=complaint):
        await connection.execute("select userrealtime.publish($1, $2, $3)", *arguments)


@pytest.mark.parametrize("user_id", ["Alice@Example.com", "ü" * 253, "'; drop table userrealtime.event --", "a b"])
async def test_user_ids_of_any_shape(connection: asyncpg.Connection, user_id: str) -> None:
    await connection.execute("select userrealtime.publish($1, 'x')", user_id)
    opened = await connection.fetchrow("select * from userrealtime.open($1)", user_id)
    assert opened is not None
    assert (opened["head"], opened["earliest"]) == (1, 1)
    assert len(opened["channel"]) < 64


async def test_opening_a_log_that_does_not_exist_writes_nothing(connection: asyncpg.Connection) -> None:
    opened = await connection.fetchrow("select * from userrealtime.open('nobody')")
    assert opened is not None
    assert (opened["head"], opened["earliest"]) == (0, 1)
    assert await connection.fetchval("select count(*) from userrealtime.log") == 0
    await connection.execute("select userrealtime.publish('nobody', 'x')")
    assert opened["epoch"] == await connection.fetchval("select epoch from userrealtime.log")


async def test_opening_tells_head_earliest_and_epoch(connection: asyncpg.Connection) -> None:
    await connection.execute("select userrealtime.publish('alice', 'x') from generate_series(1, 10)")
    first = await connection.fetchrow("select * from userrealtime.open('alice')")
    await connection.execute("delete from userrealtime.event where user_id = 'alice' and id <= 4")
    second = await connection.fetchrow("select * from userrealtime.open('alice')")
    await connection.execute("delete from userrealtime.event where user_id = 'alice'")
    third = await connection.fetchrow("select * from userrealtime.open('alice')")
    assert first is not None
    assert second is not None
    assert third is not None
    assert [(row["head"], row["earliest"]) for row in (first, second, third)] == [(10, 1), (10, 5), (10, 11)]
    assert first["epoch"] == third["epoch"] is not None


async def test_a_role_needs_the_grant_and_nothing_more(migrated: Database, connection: asyncpg.Connection) -> None:
    role = f"app_{migrated.name}"
    await connection.execute(f"create role {role} login")
    try:
        application = await asyncpg.connect(migrated.url.replace("postgres@", f"{role}@"))
        try:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await application.execute("select userrealtime.publish('alice', 'x')")
            await connection.execute(f"grant usage on schema userrealtime to {role}")
            await connection.execute(f"grant execute on function userrealtime.publish to {role}")
            await application.execute("select userrealtime.publish('alice', 'x')")
            for statement in (
                "select * from userrealtime.event",
                "insert into userrealtime.staged (user_id, event, data) values ('alice', 'x', '{}')",
                "select * from userrealtime.open('alice')",
                "update userrealtime.log set head = 9",
            ):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await application.execute(statement)
        finally:
            await application.close()
    finally:
        await connection.execute(f"drop owned by {role}")
        await connection.execute(f"drop role {role}")
    assert len(await events_of(connection, "alice")) == 1
