"""The ready-made trigger: the events of rows of the application's tables."""

from __future__ import annotations

import json

import asyncpg
import pytest

from testing.skipping import require_postgres

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


async def test_a_changed_user_id_is_a_delete_and_an_insert(orders: asyncpg.Connection) -> None:
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
    # Without a prefix, the event is named after the table of the row.
    assert [event for _, event, _ in await published(connection)] == ["readings_old.insert", "readings_new.insert"]


async def test_a_column_that_does_not_exist_is_named(connection: asyncpg.Connection) -> None:
    await connection.execute(TABLE.replace("'owner'", "'user'"))
    with pytest.raises(asyncpg.UndefinedColumnError, match=r'public\.orders has no column "user"'):
        await connection.execute("insert into orders values (1, 'alice', 1)")


def trigger(table: str, arguments: str, when: str = "after insert or update or delete", each: str = "row") -> str:
    return (
        f"create trigger publish_{table}_{when.split()[1]} {when} on {table} for each {each} "
        f"execute function userrealtime.capture({arguments})"
    )


PEOPLE = "create table people (id int primary key, owner text, email text, name text, search tsvector);"


@pytest.mark.parametrize(
    ("option", "data"),
    [
        ("columns=id,name", {"id": 1, "name": "Alice"}),
        ("columns= id , name ", {"id": 1, "name": "Alice"}),
        (
            "columns=id,owner,email,name,search",
            {"id": 1, "owner": "alice", "email": "a@b", "name": "Alice", "search": "'a'"},
        ),
        ("except=email,search", {"id": 1, "owner": "alice", "name": "Alice"}),
        ("except=owner", {"id": 1, "email": "a@b", "name": "Alice", "search": "'a'"}),
    ],
)
async def test_the_published_columns_can_be_chosen(
    connection: asyncpg.Connection, option: str, data: dict[str, object]
) -> None:
    await connection.execute(PEOPLE + trigger("people", f"'owner', 'person', '{option}'"))
    await connection.execute("insert into people values (1, 'alice', 'a@b', 'Alice', 'a')")
    await connection.execute("update people set id = 2")
    await connection.execute("delete from people")
    events = await published(connection)
    assert [event for _, event, _ in events] == ["person.insert", "person.update", "person.delete"]
    assert [content for _, _, content in events] == [data, *({**data, "id": 2} for _ in range(2))]


async def test_a_name_with_a_comma_is_quoted(connection: asyncpg.Connection) -> None:
    await connection.execute('create table odd (owner text, "a,b" int, "C d" int, "null" int);')
    await connection.execute(trigger("odd", """'owner', 'odd', 'columns="a,b",C d,"null"'"""))
    await connection.execute("insert into odd values ('alice', 1, 2, 3)")
    assert await published(connection) == [("alice", "odd.insert", {"a,b": 1, "C d": 2, "null": 3})]


async def test_an_update_of_other_columns_is_not_published(connection: asyncpg.Connection) -> None:
    await connection.execute(PEOPLE + trigger("people", "'owner', 'person', 'columns=id,name'"))
    await connection.execute("insert into people values (1, 'alice', 'a@b', 'Alice')")
    await connection.execute("update people set email = 'b@c'")
    assert [event for _, event, _ in await published(connection)] == ["person.insert"]
    await connection.execute("update people set owner = 'bob'")
    assert sorted((user, event) for user, event, _ in await published(connection)) == [
        ("alice", "person.delete"),
        ("alice", "person.insert"),
        ("bob", "person.insert"),
    ]


async def test_an_update_can_publish_only_what_changed(connection: asyncpg.Connection) -> None:
    await connection.execute(PEOPLE + trigger("people", "'owner', 'person', 'except=search', 'update=changed'"))
    await connection.execute("insert into people values (1, 'alice', 'a@b', 'Alice', 'a')")
    await connection.execute("update people set email = null, search = 'b'")
    await connection.execute("update people set search = 'c'")
    await connection.execute("update people set email = null")
    await connection.execute("update people set id = 2, name = 'Al'")
    assert await published(connection) == [
        ("alice", "person.insert", {"id": 1, "owner": "alice", "email": "a@b", "name": "Alice"}),
        ("alice", "person.update", {"id": 1, "email": None}),
        # Clients see a row whose key changes as a different row.
        ("alice", "person.delete", {"id": 1, "owner": "alice", "email": None, "name": "Alice"}),
        ("alice", "person.insert", {"id": 2, "owner": "alice", "email": None, "name": "Al"}),
    ]


async def test_an_update_can_publish_the_old_row_as_well(connection: asyncpg.Connection) -> None:
    await connection.execute(PEOPLE + trigger("people", "'owner', 'person', 'columns=id,name', 'update=both'"))
    await connection.execute("insert into people values (1, 'alice', 'a@b', 'Alice')")
    await connection.execute("update people set name = 'Al'")
    await connection.execute("delete from people")
    assert await published(connection) == [
        ("alice", "person.insert", {"id": 1, "name": "Alice"}),
        ("alice", "person.update", {"old": {"id": 1, "name": "Alice"}, "new": {"id": 1, "name": "Al"}}),
        ("alice", "person.delete", {"id": 1, "name": "Al"}),
    ]


async def test_only_the_changes_need_a_primary_key(connection: asyncpg.Connection) -> None:
    await connection.execute("create table notes (owner text, text text);")
    await connection.execute(trigger("notes", "'owner', 'note', 'update=changed'"))
    await connection.execute("insert into notes values ('alice', 'a')")
    with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError, match=r"public\.notes has no primary key"):
        await connection.execute("update notes set text = 'b'")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "names no column"),
        ("'owner', 'x', 'colums=id'", 'unknown option "colums=id"'),
        ("'owner', 'x', 'update=old'", 'unknown option "update=old"'),
        ("'owner', 'x', ''", 'unknown option ""'),
        ("'owner', 'x', 'columns='", "needs a list of names"),
        ("'owner', 'x', 'except=id,null'", "needs a list of names"),
        ("'owner', 'x', 'columns=id', 'except=name'", "needs a list of names"),
        ("'owner', 'x', 'except=id,e-mail'", 'has no column "e-mail"'),
        ("'owner', 'x', 'columns=id,ID'", 'has no column "ID"'),
    ],
)
async def test_a_wrong_option_is_an_error(connection: asyncpg.Connection, arguments: str, message: str) -> None:
    await connection.execute(PEOPLE + trigger("people", arguments))
    with pytest.raises(asyncpg.PostgresError, match=message):
        await connection.execute("insert into people values (1, 'alice')")


@pytest.mark.parametrize(
    ("when", "each"),
    [("before insert", "row"), ("after insert", "statement"), ("after truncate", "statement")],
)
async def test_a_trigger_that_would_lose_changes_is_an_error(
    connection: asyncpg.Connection, when: str, each: str
) -> None:
    await connection.execute(PEOPLE + trigger("people", "'owner'", when, each))
    with pytest.raises(asyncpg.InvalidParameterValueError) as caught:
        await connection.execute("insert into people values (1, 'alice'); truncate people")
    assert str(caught.value.hint).startswith("Use: create trigger")


async def test_truncate_is_published_to_each_user_that_has_rows(connection: asyncpg.Connection) -> None:
    await connection.execute(
        PEOPLE + trigger("people", "'owner', 'person', 'columns=id'", "before truncate", "statement")
    )
    await connection.execute("insert into people values (1, 'alice'), (2, 'alice'), (3, 'bob'), (4, null)")
    await connection.execute("truncate people")
    assert await published(connection) == [("alice", "person.truncate", {}), ("bob", "person.truncate", {})]
    assert await connection.fetchval("select count(*) from people") == 0


async def test_truncate_by_a_role_that_cannot_see_all_rows_is_an_error(connection: asyncpg.Connection) -> None:
    role = f"truncates_{await connection.fetchval('select pg_backend_pid()')}"
    await connection.execute(PEOPLE + trigger("people", "'owner', 'person'", "before truncate", "statement"))
    await connection.execute(f"create role {role}; grant truncate, select on people to {role}")
    await connection.execute(f"grant usage on schema userrealtime to {role}")
    await connection.execute(f"grant execute on function userrealtime.publish to {role}")
    try:
        await connection.execute("insert into people values (1, 'alice'); alter table people enable row level security")
        await connection.execute(f"set role {role}")
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
            await connection.execute("truncate people")
        assert await connection.fetchval("show row_security") == "on"
        await connection.execute("reset role; alter table people disable row level security")
        await connection.execute(f"set role {role}")
        await connection.execute("truncate people")
        assert await connection.fetchval("show row_security") == "on"
    finally:
        await connection.execute(f"reset role; drop owned by {role}; drop role {role}")
    assert [event for _, event, _ in await published(connection)] == ["person.truncate"]


async def test_virtual_generated_columns_have_their_values(connection: asyncpg.Connection) -> None:
    require_postgres(18, "virtual generated columns")
    await connection.execute(
        """
        create table lines (id int primary key, customer text, price int, qty int,
            total int generated always as (price * qty), stored int generated always as (price * qty) stored,
            "Who" text generated always as (lower(customer)), place oid generated always as (tableoid));
        """
        + trigger("lines", "'Who', 'line', 'columns=id,total,stored,Who,place', 'update=changed'")
    )
    await connection.execute("insert into lines values (1, 'Alice', 2, 3)")
    await connection.execute("update lines set qty = 4")
    await connection.execute("delete from lines")
    place = str(await connection.fetchval("select 'lines'::regclass::oid"))
    assert await published(connection) == [
        ("alice", "line.insert", {"id": 1, "total": 6, "stored": 6, "Who": "alice", "place": place}),
        ("alice", "line.update", {"id": 1, "total": 8, "stored": 8}),
        ("alice", "line.delete", {"id": 1, "total": 8, "stored": 8, "Who": "alice", "place": place}),
    ]


async def test_a_move_between_partitions_is_a_delete_and_an_insert(connection: asyncpg.Connection) -> None:
    await connection.execute(
        """
        create table readings (day date, owner text) partition by range (day);
        create table readings_old partition of readings for values from ('2020-01-01') to ('2021-01-01');
        create table readings_new partition of readings for values from ('2021-01-01') to ('2022-01-01');
        """
        + trigger("readings", "'owner', 'reading'")
    )
    await connection.execute("insert into readings values ('2020-05-05', 'alice')")
    await connection.execute("update readings set day = '2021-05-05'")
    assert await published(connection) == [
        ("alice", "reading.insert", {"day": "2020-05-05", "owner": "alice"}),
        ("alice", "reading.delete", {"day": "2020-05-05", "owner": "alice"}),
        ("alice", "reading.insert", {"day": "2021-05-05", "owner": "alice"}),
    ]


async def test_an_always_trigger_publishes_what_replication_writes(orders: asyncpg.Connection) -> None:
    await orders.execute("set session_replication_role = replica; insert into orders values (1, 'alice', 1)")
    assert await published(orders) == []
    await orders.execute("alter table orders enable always trigger publish_orders")
    await orders.execute("insert into orders values (2, 'alice', 1)")
    assert [event for _, event, _ in await published(orders)] == ["order.insert"]
    assert await orders.fetchval("select count(*) from userrealtime.pending") == 0


async def test_the_padding_of_a_char_column_is_not_part_of_the_user_id(connection: asyncpg.Connection) -> None:
    await connection.execute("create table tickets (id int, owner char(10));" + trigger("tickets", "'owner', 'ticket'"))
    await connection.execute(trigger("tickets", "'owner', 'ticket'", "before truncate", "statement"))
    await connection.execute("insert into tickets values (1, 'bob')")
    await connection.execute("update tickets set owner = 'alice-long'")
    await connection.execute("update tickets set owner = 'bob'")
    await connection.execute("truncate tickets")
    assert [(user, event) for user, event, _ in await published(connection) if user != "alice-long"] == [
        ("bob", "ticket.insert"),
        ("bob", "ticket.delete"),
        ("bob", "ticket.insert"),
        ("bob", "ticket.truncate"),
    ]


async def test_the_spaces_of_a_text_column_are_part_of_the_user_id(connection: asyncpg.Connection) -> None:
    await connection.execute(PEOPLE + trigger("people", "'owner', 'person'"))
    await connection.execute("insert into people values (1, 'bob ')")
    assert [user for user, _, _ in await published(connection)] == ["bob "]
