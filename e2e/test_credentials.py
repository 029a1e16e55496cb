"""The rights of a stolen Secret of a pod, and the replacement of its contents without an interruption."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from urllib.parse import urlsplit

import asyncpg

from testing.client import ResumingClient
from testing.operator.attacks import REFUSED
from testing.patience import PATIENCE_S
from testing.system import System
from testing.waiting import eventually
from userrealtime_operator.model.naming import CREDENTIALS_SUFFIX

from .test_faults import assert_all_arrived, publishing

MakeUser = Callable[..., str]
# Tables that replace public.orders and public.numbers of the statements, which may exist on a given cluster.
TABLE, SEQUENCE = "public.attacked", "public.attacked_numbers"


def secret_url(system: System, user: str) -> str:
    """Return the database URL of a user's pod."""
    secret = system.get("secret", system.get("urt", user)["status"]["name"] + CREDENTIALS_SUFFIX)
    return base64.b64decode(secret["data"]["DATABASE_URL"]).decode()


async def connect_as(system: System, user: str, database_url: str) -> asyncpg.Connection:
    """Connect with the credentials in a user's Secret, at the database's address on this machine."""
    theirs, ours = urlsplit(secret_url(system, user)), urlsplit(database_url)
    netloc = f"{theirs.username}:{theirs.password}@{ours.hostname}:{ours.port}"
    return await asyncpg.connect(theirs._replace(netloc=netloc).geturl(), timeout=PATIENCE_S)


async def test_a_stolen_secret_opens_one_users_log_alone(
    system: System, users: MakeUser, database: asyncpg.Connection, database_url: str
) -> None:
    alice, bob = users("alice"), users("bob")
    assert urlsplit(secret_url(system, alice)).username != urlsplit(system.database.url).username
    await database.execute(f"create table {TABLE} (id int); create sequence {SEQUENCE}")
    await database.execute(
        "select userrealtime.publish(u, 'of ' || u), userrealtime.submit(u, 'ref', 'x') from unnest($1::text[]) u",
        [alice, bob],
    )
    thief = await connect_as(system, alice, database_url)
    try:
        bobs = urlsplit(secret_url(system, bob)).username
        await thief.execute("select set_config('test.bob', $1, false)", bobs)
        for table in ("event", "log"):
            seen = {row[0] for row in await thief.fetch(f"select user_id from userrealtime.{table}")}
            assert seen == {alice}, table
        allowed = []
        for statement in REFUSED:
            # The statements contain the users alice and bob.
            theirs = statement.replace("'alice'", f"'{alice}'").replace("'bob'", f"'{bob}'")
            theirs = theirs.replace("public.orders", TABLE).replace("public.numbers", SEQUENCE)
            try:
                await thief.execute(theirs)
            except asyncpg.InsufficientPrivilegeError:
                continue
            except asyncpg.PostgresError as error:
                allowed.append(f"{theirs}: {error!r}")
            else:
                allowed.append(theirs)
            finally:
                await thief.execute("rollback")
        assert allowed == []
    finally:
        await thief.close(timeout=PATIENCE_S)
        await database.execute(f"drop table {TABLE}; drop sequence {SEQUENCE}")


async def test_a_database_password_is_replaced_under_a_connected_client(
    system: System, users: MakeUser, database_url: str
) -> None:
    alice = users("alice")
    before = secret_url(system, alice)
    async with ResumingClient(system.websocket_url(alice), system.token(alice)) as client:
        async with publishing(database_url, alice) as publisher:
            await client.wait_for_more(50)
            request = "userrealtime.dev/rotate-database-password=now"
            await asyncio.to_thread(system.kubectl, "annotate", "urt", alice, request)
            await client.wait_for_connections(2, timeout=PATIENCE_S)
            await asyncio.to_thread(system.wait_ready, alice)
            await client.wait_for_more(50)
        await assert_all_arrived(client, publisher, database_url, alice)
    assert secret_url(system, alice) != before
    assert client.connections == 2
    connection = await connect_as(system, alice, database_url)
    assert await connection.fetchval("select count(*) from userrealtime.log") == 1
    await connection.close(timeout=PATIENCE_S)


async def test_a_damaged_password_is_replaced_by_one_that_works(
    system: System, users: MakeUser, database: asyncpg.Connection
) -> None:
    alice = users("alice")
    name = system.get("urt", alice)["status"]["name"] + CREDENTIALS_SUFFIX
    patch = json.dumps({"data": {"DATABASE_URL": base64.b64encode(b"nonsense").decode()}})
    await asyncio.to_thread(system.kubectl, "patch", "secret", name, "--type=merge", "-p", patch)
    await asyncio.to_thread(
        eventually, lambda: secret_url(system, alice).startswith("postgresql://"), "another database URL"
    )
    await asyncio.to_thread(system.wait_ready, alice)
    async with ResumingClient(system.websocket_url(alice), system.token(alice)) as client:
        await database.execute("select userrealtime.publish($1, 'x')", alice)
        await client.wait_for_events(1)
