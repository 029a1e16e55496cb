"""Checks tokens with the relay's code and settings, and with the keys of the user.

A user's keys are read from the user's Secret when a token needs them, and cached for a minute. A token that they do
not verify causes another read, at most every few seconds, so new keys are found. The claims of a token are checked
before a Secret is read: a token that no key could make valid causes no request. A revoked key can still wake its user
for a minute, but the pod rejects its token.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from userrealtime_core import registration
from userrealtime_core.audit import RejectedTokens
from userrealtime_core.auth.errors import KeySetStale, Unauthorized
from userrealtime_core.auth.keys import CURRENT, NEXT, PREVIOUS, TokenKeys, validate_key
from userrealtime_core.auth.settings import AuthSettings
from userrealtime_core.auth.tokens import KeySet, TokenVerifier

from .routes import Route

LIFETIME_S: Final = 60.0
COOLDOWN_S: Final = 5.0
MAX_USERS: Final = 5000
"""The number of users whose keys are cached; the least recently used are dropped."""
MAX_READS: Final = 20
"""The number of Secrets that are read at the same time."""

Secret = Mapping[str, Any]


class _Known(NamedTuple):
    keys: TokenKeys
    verifier: TokenVerifier
    read_at: float


def keys_in(secret: Secret | None) -> TokenKeys:
    """Return the keys of a user's Secret that a relay would use."""
    data = (secret or {}).get("data") or {}
    found = []
    for name in (CURRENT, NEXT, PREVIOUS):
        try:
            key = base64.b64decode(data.get(name) or "", validate=True).decode().rstrip("\r\n")
        except (ValueError, binascii.Error):
            continue
        if validate_key(key) is None:
            found.append(key)
    return TokenKeys(*found)


class Tokens:
    """Checks the tokens of all users.

    Args:
        settings: the settings that all relays share.
        read: returns a user's Secret, None if there is none; raises OSError if it cannot be read. If `read` is None,
            users' own keys are not used, and only tokens of the identity provider are valid.
    """

    def __init__(self, settings: AuthSettings, read: Callable[[Route], Awaitable[Secret | None]] | None) -> None:
        self._settings = settings
        self._read = read
        self._rejected = RejectedTokens()
        self._jwks: KeySet | None = None
        if settings.jwks_url is not None:
            from userrealtime_core.auth.jwks import Jwks  # late: it needs what HS256 has no use for

            self._jwks = Jwks(settings.jwks_url)
        self._known: OrderedDict[Route, _Known] = OrderedDict()
        self._reading: dict[Route, asyncio.Task[_Known]] = {}
        self._reads = asyncio.Semaphore(MAX_READS)

    async def check(self, route: Route, token: str) -> None:
        """Return if the token is valid for the user.

        Raises:
            Unauthorized: the token is invalid.
            KeySetStale: the keys cannot be read at the moment.
        """
        try:
            await self._check(route, token)
        except Unauthorized as error:
            self._record(route, token, error)
            raise

    async def check_signature(self, route: Route, content: str, signature: str) -> None:
        """Return if a signature of a text, in place of a token, is of one of the user's keys.

        Raises:
            Unauthorized: it is not.
            KeySetStale: the keys cannot be read at the moment.
        """
        if self._read is None:
            raise Unauthorized("unsupported algorithm")
        known = self._known.get(route)
        if known is None or time.monotonic() > known.read_at + LIFETIME_S:
            known = await self._load(route)
        try:
            known.verifier.check_signature(content, signature)
        except Unauthorized:
            if time.monotonic() < known.read_at + COOLDOWN_S:
                raise
            (await self._load(route)).verifier.check_signature(content, signature)

    def cached_keys(self, route: Route) -> Sequence[str]:
        """Return the keys of a user that were used for the last check."""
        known = self._known.get(route)
        return () if known is None else known.keys()

    def verify(self, route: Route, token: str) -> float:
        """Return for how many seconds a token is valid for the user, by the cached keys.

        Raises:
            Unauthorized: the token is invalid.
            KeySetStale: call `refresh` first.
        """
        try:
            return self._verify_cached(route, token)
        except Unauthorized as error:
            self._record(route, token, error)
            raise

    def _record(self, route: Route, token: str, error: Unauthorized) -> None:
        claims = self._verifier(route, TokenKeys()).claimed(token)
        namespace, name = route.user
        self._rejected.record(str(error), claims, user=route.user_id, namespace=namespace, resource=name)

    def _verify_cached(self, route: Route, token: str) -> float:
        known = self._known.get(route)
        (self._verifier(route, TokenKeys()) if known is None else known.verifier).check_claims(token)
        if known is None or time.monotonic() > known.read_at + LIFETIME_S:
            raise KeySetStale
        try:
            return known.verifier(token)
        except Unauthorized:
            if self._read is None or time.monotonic() < known.read_at + COOLDOWN_S:
                raise
            raise KeySetStale from None

    async def refresh(self, route: Route) -> None:
        """Read the keys of the user again. Never fails: `verify` then raises KeySetStale again."""
        with contextlib.suppress(KeySetStale):
            known = await self._load(route)
            await known.verifier.refresh()

    async def _check(self, route: Route, token: str) -> None:
        known = self._known.get(route)
        (self._verifier(route, TokenKeys()) if known is None else known.verifier).check_claims(token)
        if known is None or time.monotonic() > known.read_at + LIFETIME_S:
            known = await self._load(route)
        else:
            self._known.move_to_end(route)
        try:
            await self._verify(known.verifier, token)
        except Unauthorized:
            if self._read is None or time.monotonic() < known.read_at + COOLDOWN_S:
                raise
            await self._verify((await self._load(route)).verifier, token)

    def verify_registration(self, route: Route, token: str) -> str:
        """Return the address in an announcement. It is verified by cached keys: a client's token has caused their read.

        Raises:
            BadRegistration: the announcement is not from the user's pod.
        """
        known = self._known.get(route)
        return registration.read(token, known.keys() if known is not None else ())

    async def _verify(self, verifier: TokenVerifier, token: str) -> None:
        try:
            verifier(token)
        except KeySetStale:
            await verifier.refresh()
            verifier(token)

    async def _load(self, route: Route) -> _Known:
        task = self._reading.get(route)
        if task is None:
            task = self._reading[route] = asyncio.create_task(self._read_keys(route))
            task.add_done_callback(lambda _: self._reading.pop(route))
        try:
            return await asyncio.shield(task)
        except OSError:
            raise KeySetStale from None

    async def _read_keys(self, route: Route) -> _Known:
        keys = TokenKeys()
        if self._read is not None:
            async with self._reads:
                keys = keys_in(await self._read(route))
        known = self._known[route] = _Known(keys, self._verifier(route, keys), time.monotonic())
        self._known.move_to_end(route)
        if len(self._known) > MAX_USERS:
            self._known.popitem(last=False)
        return known

    def _verifier(self, route: Route, keys: TokenKeys) -> TokenVerifier:
        return TokenVerifier(self._settings, route.user_id, keys, self._jwks)
