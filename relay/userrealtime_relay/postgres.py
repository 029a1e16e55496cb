"""A connection to Postgres by its URL, or why there is none, said without the URL: it holds a password."""

from __future__ import annotations

from typing import Any, Final

import asyncpg

_UNPARSABLE: Final = "DATABASE_URL cannot be parsed: percent-encode what is special in its user and password"
_NO_AUTHORITIES: Final = (
    "sslmode in DATABASE_URL asks for a server of a trusted authority, and none is trusted: "
    "name a file of certificates in PGSSLROOTCERT (the chart's value trust does)"
)
_SSLMODE: Final = "sslmode in DATABASE_URL must be disable, allow, prefer, require, verify-ca or verify-full"


class UnusableUrl(asyncpg.InterfaceError):
    """The URL cannot be used as it is; the message says what to do."""


async def connect(*arguments: Any, **options: Any) -> asyncpg.Connection:
    """As `asyncpg.connect`.

    Raises:
        UnusableUrl: the URL is at fault.
        OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError: the server is away, or refuses.
    """
    try:
        return await asyncpg.connect(*arguments, **options)
    except OSError:
        raise  # a certificate that is not to be trusted is a ValueError as well
    except ValueError as error:  # which may quote the URL
        said = str(error)
        if isinstance(error, asyncpg.ClientConfigurationError) and said.startswith("root certificate"):
            raise UnusableUrl(_NO_AUTHORITIES) from None
        if isinstance(error, asyncpg.ClientConfigurationError) and said.startswith("`sslmode`"):
            raise UnusableUrl(_SSLMODE) from None
        raise UnusableUrl(_UNPARSABLE) from None
