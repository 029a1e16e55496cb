"""The ready-made trigger: what becomes of rows of the application's own tables."""

from __future__ import annotations

import json

import asyncpg
import pytest

TABLE = """
create table orders (id int primary key, owner text, total numeric);
create trigger publish_orders after insert or update or delete on orders
    for each row execute function userrealtime.capture('owner', 'order');
"""


@pytest.fixture
async def orders(connection: asyncpg.Connection) -> asyncpg.Connection:
    await connection.execute(TABLE)
    return connection


async def published(connection: asyncpg.Connection) -> list[tuple[str, str, object]]:
    rows = await connection.fetch("select user_id, event, data from userrealtime.event order by at, user_id, id")
    return [(row["user_id"], row["event"], json.loads(row["data"])) for row in rows]


async def test_insert_update_and_delete(orders: asyncpg.Connection) -> None:
    await orders.execute("insert into orders values (1, 'alice', 9.90)")
    await orders.execute("update orders set total = 10 where id = 1")
    await orders.execute("delete from orders")
    assert await published(orders) == [
        ("alice", "order.insert", {"id": 1, "owner": "alice", "total": 9.9}),
        ("alice", "order.update", {"id": 1, "owner": "alice", "total": 10}),
        ("alice", "order.delete", {"id": 1, "owner": "alice", "total": 10}),
    ]


async def test_a_row_that_changes_hands_leaves_one_user_and_reaches_the_other(orders: asyncpg.Connection) -> None:
    await orders.execute("insert into orders values (1, 'alice', 1)")
    await orders.execute("update orders set owner = 'bob'")
    assert sorted(await published(orders), key=str)[:3] == [
        ("alice", "order.delete", {"id": 1, "owner": "alice", "total": 1}),
        ("alice", "order.insert", {"id": 1, "owner": "alice", "total": 1}),
        ("bob", "order.insert", {"id": 1, "owner": "bob", "total": 1}),
    ]


async def test_a_row_without_a_user_is_nobodys(orders: asyncpg.Connection) -> None:
    await orders.execute("insert into orders values (1, null, 1)")
    assert await published(orders) == []
    await orders.execute("update orders set owner = 'alice'")
    await orders.execute("update orders set owner = null")
    assert [(user, event) for user, event, _ in await published(orders)] == [
        ("alice", "order.insert"),
        ("alice", "order.delete"),
    ]


async def test_bulk_copy_keeps_every_row(orders: asyncpg.Connection) -> None:
    rows = [(number, f"user-{number % 7}", number) for number in range(2_000)]
    await orders.copy_records_to_table("orders", records=rows)
    assert await orders.fetchval("select count(*) from userrealtime.event") == 2_000
    assert await orders.fetchval("select sum(head) from userrealtime.log") == 2_000


async def test_partitioned_tables(connection: asyncpg.Connection) -> None:
    await connection.execute(
        """
        create table readings (day date, owner text, value int) partition by range (day);
        create table readings_old partition of readings for values from ('2020-01-01') to ('2021-01-01');
        create table readings_new partition of readings for values from ('2021-01-01') to ('2022-01-01');
        create trigger publish_readings after insert or update or delete on readings
            for each row execute function userrealtime.capture('owner');
        """
    )
    await connection.execute("insert into readings values ('2020-05-05', 'alice', 1), ('2021-05-05', 'alice', 2)")
    # Without a prefix of its own, the event is named after the table that holds the row.
    assert [event for _, event, _ in await published(connection)] == ["readings_old.insert", "readings_new.insert"]


async def test_a_column_that_does_not_exist_is_named(connection: asyncpg.Connection) -> None:
    await connection.execute(TABLE.replace("'owner'", "'user'"))
    with pytest.raises(asyncpg.UndefinedColumnError, match=r'public\.orders has no column "user"'):
        await connection.execute("insert into orders values (1, 'alice', 1)")
