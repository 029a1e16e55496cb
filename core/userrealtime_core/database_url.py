"""Checks a database URL, and removes the parameters that libpq knows and asyncpg does not.

asyncpg sends a parameter that it does not know to the server as a setting. The server then rejects the connection, and
a process that retries never reports that its URL is at fault.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qsl, urlsplit

_ANY: Final = None

_WITHOUT_EFFECT: Final[Mapping[str, tuple[str, ...] | None]] = {
    "channel_binding": ("disable", "prefer"),
    "client_encoding": ("auto", "utf8", "utf-8", "unicode"),
    "connect_timeout": _ANY,
    "fallback_application_name": _ANY,
    "gssdelegation": ("0",),
    "gssencmode": ("disable", "prefer"),
    "keepalives": _ANY,
    "keepalives_count": _ANY,
    "keepalives_idle": _ANY,
    "keepalives_interval": _ANY,
    "load_balance_hosts": _ANY,
    "max_protocol_version": _ANY,
    "min_protocol_version": ("3.0",),
    "replication": ("false", "off", "no", "0"),
    "requiressl": ("0",),
    "sslcertmode": ("allow", "disable"),
    "sslcompression": _ANY,
    "sslsni": ("1",),
    "tcp_user_timeout": _ANY,
}
"""Parameters of libpq that are removed, each with the values for which a connection is the same without it."""

_UNSUPPORTED: Final[Mapping[str, str]] = {
    "channel_binding": "use prefer, and sslmode=verify-full, which authenticates the server as well",
    "hostaddr": "name the address in the place of the host",
    "requiressl": "use sslmode=require",
    # Of Prisma, SQLAlchemy and JDBC:
    "connection_limit": "it is a parameter of Prisma: remove it",
    "pgbouncer": "it is a parameter of Prisma: remove it",
    "pool_timeout": "it is a parameter of Prisma: remove it",
    "schema": "it is a parameter of Prisma: remove it; the tables are in the schema userrealtime",
    "socket_timeout": "it is a parameter of Prisma: remove it",
    "sslaccept": "it is a parameter of Prisma: use sslmode=verify-full instead of sslaccept=strict",
    "sslidentity": "it is a parameter of Prisma: use sslcert and sslkey",
    "prepared_statement_cache_size": "it is a parameter of SQLAlchemy: remove it",
    "currentSchema": "it is a parameter of JDBC: remove it",
    "ssl": "it is a parameter of JDBC: use sslmode=require",
}
"""Further parameters that other programs accept, with advice."""

_LIBPQ: Final = frozenset(
    {
        "gssencmode",
        "gssdelegation",
        "min_protocol_version",
        "oauth_client_id",
        "oauth_client_secret",
        "oauth_issuer",
        "oauth_scope",
        "replication",
        "require_auth",
        "requirepeer",
        "scram_client_key",
        "scram_server_key",
        "servicefile",
        "sslcertmode",
        "sslcrldir",
        "sslkeylogfile",
        "sslsni",
        "client_encoding",
    }
)


def validate_database_url(url: str) -> str | None:
    """Return the problem of the parameters of a URL, without its password; None if there is none or it is no URL."""
    for name, value in _parameters(url):
        if _is_without_effect(name, value):
            continue
        if name in _UNSUPPORTED:
            return f"the parameter {name} in DATABASE_URL is not supported: {_UNSUPPORTED[name]}"
        if name in _LIBPQ:
            return f"the parameter {name} in DATABASE_URL is not supported with this value: remove it"
    return None


def supported_url(url: str) -> str:
    """The URL without the parameters that have no effect here. The rest of its text is unchanged."""
    base, mark, query = url.partition("?")
    if not mark or not any(_is_without_effect(*parameter) for parameter in _parameters(url)):
        return url
    query, hash_sign, fragment = query.partition("#")
    kept = [part for part in query.split("&") if not any(_is_without_effect(*each) for each in _parsed(part))]
    return "".join((base, "?" if kept else "", "&".join(kept), hash_sign, fragment))


def _is_without_effect(name: str, value: str) -> bool:
    values = _WITHOUT_EFFECT.get(name, ())
    return values is None or value.lower() in values


def _parameters(url: str) -> list[tuple[str, str]]:
    try:
        return _parsed(urlsplit(url).query)
    except ValueError:
        return []


def _parsed(query: str) -> list[tuple[str, str]]:
    return parse_qsl(query, keep_blank_values=True)
