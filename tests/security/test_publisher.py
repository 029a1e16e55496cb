"""An attacker with the right to publish, who wants the rights of the owner of the functions."""

from __future__ import annotations

import asyncpg
import pytest

from testing.installation import installation
from userrealtime_operator.secrets.database_passwords import Credentials

SHOP = Credentials("shop", "of the application")
_APPLICATION = f"""
create role {SHOP.role} login password '{SHOP.password}';
grant usage on schema userrealtime to {SHOP.role};
grant execute on function userrealtime.publish to {SHOP.role};
create schema hostile authorization {SHOP.role};
grant usage on schema hostile to public
"""
_OPERATORS = (
    ("=", "xid8", "xid8", "boolean"),
    ("=", "text", "text", "boolean"),
    ("=", "boolean", "boolean", "boolean"),
    ("<>", "boolean", "boolean", "boolean"),
    ("+", "bigint", "integer", "bigint"),
    ("+", "bigint", "bigint", "bigint"),
    ("-", "bigint", "bigint", "bigint"),
    (">=", "bigint", "integer", "boolean"),
    ("<=", "bigint", "integer", "boolean"),
)
_FUNCTIONS = (
    "clock_timestamp() returns timestamptz",
    "pg_current_xact_id() returns xid8",
    "pg_sequence_last_value(regclass) returns bigint",
    "pg_notify(text, text) returns void",
    "unnest(text[]) returns setof text",
    "length(text) returns integer",
    "octet_length(text) returns integer",
)
_BODY = "language plpgsql as $$ begin raise exception 'a function of the attacker runs'; end $$"


def _hostile() -> str:
    """Return the statements that create a function, an operator or a type for each name in the SQL of publishing."""
    statements = [f"create function hostile.{function} {_BODY}" for function in _FUNCTIONS]
    for number, (operator, left, right, result) in enumerate(_OPERATORS):
        statements += [
            f"create function hostile.operator_{number}({left}, {right}) returns {result} {_BODY}",
            f"create operator hostile.{operator} (leftarg = {left}, rightarg = {right}, "
            f"function = hostile.operator_{number})",
        ]
    types = [f"create domain hostile.{name} as pg_catalog.{name} check (false)" for name in ("text", "int8", "bool")]
    return ";\n".join(statements + types)


@pytest.mark.parametrize("signals", ["nothing listens", "an announcer polls", "the doorbell is armed"])
async def test_publishing_looks_up_no_name_in_the_search_path_of_the_caller(signals: str) -> None:
    """The functions of publishing run as their owner, and set no search path."""
    async with installation() as site:
        admin = await asyncpg.connect(site.admin_url)
        await admin.execute(_APPLICATION)
        attacker = await asyncpg.connect(SHOP.url(site.operator_url))
        await attacker.execute(_hostile())
        await attacker.execute("set search_path = hostile, pg_catalog")
        with pytest.raises(asyncpg.RaiseError, match="a function of the attacker runs"):
            await attacker.execute("select 1::pg_catalog.int8 + 1")
        if signals == "the doorbell is armed":
            await admin.execute("select userrealtime.arm_doorbell()")
        publish = "select userrealtime.publish('alice', 'test', '{}')"
        for statements in (
            publish,
            publish,
            f"begin; {publish}; {publish}; {publish}; commit",
            f"begin; set constraints all immediate; {publish}; {publish}; commit",
        ):
            if signals == "an announcer polls":
                assert await admin.fetchval("select userrealtime.renew_lease(1, 5000)")
            await attacker.execute(statements)
        assert await admin.fetchval("select array_agg(id order by id) from userrealtime.event") == [*range(1, 8)]
        queued = await admin.fetchval("select count(*) from userrealtime.signal_queue")
        assert (queued > 0) == (signals == "an announcer polls")
        await attacker.close()
        await admin.close()
