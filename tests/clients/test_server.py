"""`userrealtime.server`: tokens. Its SQL is tested with each driver by tests/clients/test_shop.py."""

from __future__ import annotations

import base64
import time
from pathlib import Path

import asyncpg
import jwt
import pytest

from testing.database import Database
from testing.relay.harness import KEY, client, receive, running
from userrealtime.server import InvalidToken, TokenKeys, aposition, apublish, atake, position, sign, verify

KEYS = TokenKeys(KEY, ("another key of this user that is long enough",))


async def test_a_relay_accepts_what_is_signed(migrated: Database) -> None:
    async with running(migrated.url) as relay, client(relay, sign(KEYS, "alice", ttl_s=60)) as alice:
        assert (await receive(alice))["type"] == "connected"


def test_a_token_is_verified() -> None:
    assert verify(KEYS, sign(KEYS, "alice", claims={"role": "x"}), "alice")["role"] == "x"
    assert verify(KEYS, sign(TokenKeys(KEYS.others[0]), "alice"), "alice")["sub"] == "alice"


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        (sign(KEYS, "bob"), "another user"),
        (sign(KEYS, "alice", ttl_s=-60), "expired"),
        (sign(TokenKeys("a key of somebody else that is long enough"), "alice"), "not that of a key"),
        (jwt.encode({"sub": "alice"}, KEY), "exp"),
        (jwt.encode({"sub": "alice", "exp": int(time.time()) + 60}, KEY * 2, "HS512"), "alg"),
        ("nonsense", "segments"),
    ],
    ids=["user", "expired", "key", "no exp", "algorithm", "nonsense"],
)
def test_a_token_that_is_not_good_is_rejected(token: str, reason: str) -> None:
    with pytest.raises(InvalidToken, match=reason):
        verify(KEYS, token, "alice")


def test_keys_come_from_a_secret_or_from_its_files(tmp_path: Path) -> None:
    values = {"TOKEN_KEY": "one", "TOKEN_KEY_NEXT": "two", "DATABASE_PASSWORD": "x"}
    for name, value in values.items():
        (tmp_path / name).write_text(f"{value}\n")
    of_secret = TokenKeys.from_secret(
        {name: base64.b64encode(value.encode()).decode() for name, value in values.items()}
    )
    assert of_secret == TokenKeys.from_directory(tmp_path) == TokenKeys("one", ("two",))
    assert "one" not in repr(of_secret)
    with pytest.raises(ValueError, match="has no TOKEN_KEY"):
        TokenKeys.from_secret({})


async def test_asyncpg(connection: asyncpg.Connection) -> None:
    async with connection.transaction():
        await apublish(connection, "alice", "note", {"text": "ü"})
    await connection.execute(
        "select userrealtime.submit('alice', r, 'typed', to_jsonb(r)) from unnest('{a,b,c}'::text[]) r"
    )
    assert (await aposition(connection, "alice")).startswith("1:")
    transaction = connection.transaction()
    await transaction.start()
    assert [message.data for message in await atake(connection, 2)] == ["a", "b"]
    await transaction.rollback()
    assert [(message.user_id, message.ref, message.event) for message in await atake(connection)] == [
        ("alice", ref, "typed") for ref in "abc"
    ]


def test_a_connection_that_is_none_is_explained() -> None:
    with pytest.raises(TypeError, match="object is no connection of psycopg, Django or SQLAlchemy"):
        position(object(), "alice")
