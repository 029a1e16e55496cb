"""Parameters of database URLs: libpq's parameters work, are removed, or are rejected with advice."""

from __future__ import annotations

import pytest

from testing.database import Database as OwnDatabase
from testing.relay.harness import config
from userrealtime_core.database_url import supported_url, validate_database_url
from userrealtime_core.environment import ConfigError
from userrealtime_core.secret import Secret
from userrealtime_operator.config import ConfigError as OperatorConfigError
from userrealtime_operator.config import parse_config
from userrealtime_operator.postgres.database import Database
from userrealtime_operator.postgres.migrate import MigrationError, migrate
from userrealtime_relay.log.log import Log

URL = "postgresql://alice:hunter2@db.example.com:5432,db2.example.com/app"

ACCEPTED = (
    "application_name=x",
    "channel_binding=prefer",
    "client_encoding=UTF8",
    "connect_timeout=5",
    "fallback_application_name=x",
    "gssencmode=disable",
    "keepalives=1&keepalives_idle=30&keepalives_interval=10&keepalives_count=3",
    "load_balance_hosts=random",
    "options=-c%20statement_timeout=30s",
    "replication=false",
    "sslcompression=0",
    "sslmode=prefer&channel_binding=prefer&sslsni=1&sslcertmode=allow",
    "statement_timeout=30s",
    "target_session_attrs=read-write",
    "tcp_user_timeout=10000",
)

REJECTED = (
    ("channel_binding=require", "channel_binding .* sslmode=verify-full"),
    ("hostaddr=127.0.0.1", "hostaddr .* in the place of the host"),
    ("requiressl=1", "requiressl .* sslmode=require"),
    ("gssencmode=require", "gssencmode .* with this value"),
    ("require_auth=scram-sha-256", "require_auth"),
    ("requirepeer=postgres", "requirepeer"),
    ("replication=database", "replication"),
    ("sslcrldir=/crl", "sslcrldir"),
    ("schema=public", "schema .* Prisma"),
    ("connect_timeout=5&pgbouncer=true", "pgbouncer .* Prisma"),
    ("ssl=true", "ssl .* JDBC"),
)


@pytest.mark.parametrize("query", ACCEPTED)
async def test_parameters_of_libpq_work_everywhere(migrated: OwnDatabase, query: str) -> None:
    url = f"{migrated.url}?{query}"
    assert await migrate(url) == []
    async with Database(url) as database:
        await database.ping()
    await (await Log.connect(config(url).database_url, "alice")).close()


@pytest.mark.parametrize(("query", "advice"), REJECTED)
async def test_what_cannot_be_honoured_is_rejected_at_the_start(query: str, advice: str) -> None:
    url = f"{URL}?{query}"
    for error, use in (
        (ConfigError, lambda: config(url)),
        (OperatorConfigError, lambda: parse_config("", {"DATABASE_URL": url})),
    ):
        with pytest.raises(error, match=f"DATABASE_URL: the parameter {advice}") as caught:
            use()
        assert "hunter2" not in str(caught.value)
    with pytest.raises(MigrationError, match=f"the parameter {advice}") as failed:
        await migrate(url)
    assert "hunter2" not in str(failed.value)
    with pytest.raises(Exception, match=f"the parameter {advice}"):
        await Log.connect(Secret(url), "alice")


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("", ""),
        ("?", "?"),
        ("?sslmode=prefer&options=-c%20a%3Db", "?sslmode=prefer&options=-c%20a%3Db"),
        ("?connect_timeout=5", ""),
        ("?connect_timeout=5&options=-c%20a%3Db&keepalives=1", "?options=-c%20a%3Db"),
        ("?channel_binding=PREFER&x=", "?x="),
    ],
)
def test_the_rest_of_the_url_is_unchanged(given: str, used: str) -> None:
    assert supported_url(URL + given) == URL + used


def test_a_url_that_cannot_be_parsed_is_left_to_others() -> None:
    assert validate_database_url("postgresql://a:b[c@d/e?connect_timeout=5") is None
    assert supported_url("postgresql://a:b[c@d/e?connect_timeout=5") == "postgresql://a:b[c@d/e?connect_timeout=5"
