"""The public keys of the identity provider that signs tokens, from JWKS_URL (RFC 7517).

They are fetched when a token needs them: the first time, when they are older than `LIFETIME`, and for an unknown key;
but never within `COOLDOWN` of the last request, which limits the requests that forged tokens can cause. A key that has
been published for `COOLDOWN` is always found. While the endpoint is unreachable, the last keys remain in use.

A key is used for one algorithm: RSA for RS256, P-256 for ES256, Ed25519 for EdDSA. Other keys of the set, and all
private or secret parts, are ignored. The request has limits of time and size, and follows no redirect. Only this module
needs `cryptography`, which PyJWT imports if it is installed: see `__main__` of the relay.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import h11
import jwt

from userrealtime_core.trust import client_context

from .errors import KeySetStale, Unauthorized

LIFETIME: Final = 300.0
COOLDOWN: Final = 5.0
FETCH_TIMEOUT: Final = 5.0
"""Seconds, as those above."""
MAX_SET_BYTES: Final = 256 << 10
MAX_KEYS: Final = 100
_MAX_FIELD: Final = 1400
"""Characters of a number in a key: an RSA key of 8,192 bits."""
_READ_BYTES: Final = 64 << 10

_logger = logging.getLogger(__name__)


class JwksError(Exception):
    """The key set could not be fetched or is invalid. The message has the reason."""


class Key(NamedTuple):
    kid: str | None
    algorithm: str
    key: jwt.PyJWK


class Jwks:
    """The key set at one URL."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._keys: Sequence[Key] = ()
        self._fetched: float | None = None
        self._next_request = 0.0  # of the monotonic clock
        self._away = False
        self._request: asyncio.Task[None] | None = None

    def find(self, kid: Any, algorithm: str) -> Sequence[jwt.PyJWK]:
        """The one key that a token names or, if it names none, the only key for its algorithm.

        Raises:
            KeySetStale: the keys must be fetched first or, after a fetch, could not be.
            Unauthorized: there is no such key.
        """
        now = time.monotonic()
        may_ask = now >= self._next_request
        if may_ask and (self._fetched is None or now >= self._fetched + LIFETIME):
            raise KeySetStale
        found = [key.key for key in self._keys if key.algorithm == algorithm and kid in (None, key.kid)]
        if len(found) == 1:
            return found
        if may_ask or self._away:
            raise KeySetStale
        raise Unauthorized("unknown signing key")

    async def refresh(self) -> None:
        """Fetch the keys, unless that was done within the last `COOLDOWN`. Concurrent calls share one request."""
        if self._request is None:
            if time.monotonic() < self._next_request:
                return
            self._request = asyncio.create_task(self._fetch())
        # A caller that is cancelled does not cancel the request of the others.
        await asyncio.shield(self._request)

    async def _fetch(self) -> None:
        try:
            self._keys = parse(await fetch(self._url))
            self._fetched = time.monotonic()
            self._away = False
            _logger.info("fetched the signing keys", extra={"fields": {"keys": len(self._keys)}})
        except (OSError, TimeoutError, ValueError, JwksError, h11.ProtocolError) as error:
            self._away = True
            _logger.warning(
                "could not fetch the signing keys from JWKS_URL; the last ones remain in use",
                extra={"fields": {"error": f"{type(error).__name__}: {str(error) or 'timed out'}"}},
            )
        finally:
            self._next_request = time.monotonic() + COOLDOWN
            self._request = None


async def fetch(url: str) -> bytes:
    """Return the body of the response to a GET of `url`, within `FETCH_TIMEOUT`.

    Raises:
        OSError, TimeoutError, ValueError, JwksError, h11.ProtocolError: the request failed.
    """
    parts = urlsplit(url)
    # A new one for each request: the trusted certificates may have changed.
    context = client_context() if parts.scheme == "https" else None
    port = parts.port or (443 if context is not None else 80)
    async with asyncio.timeout(FETCH_TIMEOUT):
        reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=context, limit=_READ_BYTES)
        try:
            connection = h11.Connection(h11.CLIENT)
            request = h11.Request(
                method="GET",
                target=(parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
                headers=[("Host", parts.netloc), ("Accept", "application/json"), ("Connection", "close")],
            )
            writer.write((connection.send(request) or b"") + (connection.send(h11.EndOfMessage()) or b""))
            return await _body(connection, reader)
        finally:
            writer.transport.abort()


async def _body(connection: h11.Connection, reader: asyncio.StreamReader) -> bytes:
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(_READ_BYTES))
        elif isinstance(event, h11.Response) and event.status_code != 200:
            raise JwksError(f"answered with status {event.status_code}; redirects are not followed")
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > MAX_SET_BYTES:
                raise JwksError(f"has more than {MAX_SET_BYTES} bytes")
        elif isinstance(event, h11.EndOfMessage):
            return bytes(body)
        elif isinstance(event, h11.ConnectionClosed):
            raise JwksError("ended without an answer")


def parse(body: bytes) -> Sequence[Key]:
    """Return the usable keys of a set.

    Raises:
        JwksError: this is not a key set.
    """
    try:
        entries = json.loads(body)["keys"]
    except (ValueError, RecursionError, TypeError, KeyError):
        entries = None
    if not isinstance(entries, list):
        raise JwksError('is no key set: a JSON object with "keys"')
    keys = [_key(entry) for entry in entries[:MAX_KEYS] if isinstance(entry, dict)]
    return [key for key in keys if key is not None]


_KINDS: Final[dict[tuple[Any, Any], tuple[str, tuple[str, ...]]]] = {
    ("RSA", None): ("RS256", ("n", "e")),
    ("EC", "P-256"): ("ES256", ("x", "y")),
    ("OKP", "Ed25519"): ("EdDSA", ("x",)),
}


def _key(entry: dict[str, Any]) -> Key | None:
    kind = {name: entry[name] for name in ("kty", "crv") if isinstance(entry.get(name), str)}
    algorithm, numbers = _KINDS.get((kind.get("kty"), kind.get("crv")), ("", ()))
    kid, operations = entry.get("kid"), entry.get("key_ops", ["verify"])
    usable = (
        algorithm
        and entry.get("alg", algorithm) == algorithm
        and entry.get("use", "sig") == "sig"
        and isinstance(operations, list)
        and "verify" in operations
        and (kid is None or isinstance(kid, str))
        and all(isinstance(entry.get(name), str) and len(entry[name]) <= _MAX_FIELD for name in numbers)
        and len(entry.get("e", "")) <= 8  # a long one makes each check slow
    )
    if not usable:
        return None
    try:
        # Only the public numbers: with the private ones it would be a key to sign with.
        return Key(kid, algorithm, jwt.PyJWK({**kind, **{name: entry[name] for name in numbers}}, algorithm))
    except (jwt.PyJWTError, ValueError):
        return None
