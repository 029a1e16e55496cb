"""Whether a token is good, by the relay's own code and settings, with the keys of whichever user it is for.

A user's keys are read from the user's Secret when a token needs them, and kept for a minute. A token that they refuse
has them read again, at most every few seconds: so a new key is found. Before any Secret is read, the claims of the
token are checked: a token that could not be accepted with any key causes no request. A key that was revoked may wake a
user for that minute; the pod refuses it all the same.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple

from userrealtime_core import registration
from userrealtime_core.auth.errors import KeySetStale, Unauthorized
from userrealtime_core.auth.keys import CURRENT, NEXT, PREVIOUS, TokenKeys, validate_key
from userrealtime_core.auth.settings import AuthSettings
from userrealtime_core.auth.tokens import KeySet, TokenVerifier

from .routes import Route

LIFETIME_S: Final = 60.0
COOLDOWN_S: Final = 5.0
MAX_USERS: Final = 5000
"""Whose keys are kept, the ones used last."""
MAX_READS: Final = 20
"""Secrets that are read at once."""

Secret = Mapping[str, Any]


class _Known(NamedTuple):
    keys: TokenKeys
    verifier: TokenVerifier
    read_at: float


def keys_in(secret: Secret | None) -> TokenKeys:
    """The keys that a user's Secret holds and that a relay would use."""
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
        settings: those of all relays.
        read: gives a user's Secret, None where there is none; raises OSError if it cannot be had. None: users' own
            keys are not looked at, and only tokens of the identity provider are good.
    """

    def __init__(self, settings: AuthSettings, read: Callable[[Route], Awaitable[Secret | None]] | None) -> None:
        self._settings = settings
        self._read = read
        self._jwks: KeySet | None = None
        if settings.jwks_url is not None:
            from userrealtime_core.auth.jwks import Jwks  # late: it needs what HS256 has no use for

            self._jwks = Jwks(settings.jwks_url)
        self._known: OrderedDict[Route, _Known] = OrderedDict()
        self._reading: dict[Route, asyncio.Task[_Known]] = {}
        self._reads = asyncio.Semaphore(MAX_READS)

    async def check(self, route: Route, token: str) -> None:
        """Returns if the token is one of the user's and good.

        Raises:
            Unauthorized: it is not.
            KeySetStale: that cannot be told, since the keys cannot be had now.
        """
        known = self._known.get(route)
        (self._verifier(route, TokenKeys()) if known is None else known.verifier).check_claims(token)
        if known is None or time.monotonic() > known.read_at + LIFETIME_S:
            known = await self._learn(route)
        else:
            self._known.move_to_end(route)
        try:
            await self._judge(known.verifier, token)
        except Unauthorized:
            if self._read is None or time.monotonic() < known.read_at + COOLDOWN_S:
                raise
            await self._judge((await self._learn(route)).verifier, token)

    def announced(self, route: Route, token: str) -> str:
        """The address that a user's pod announces. By keys that are known: whoever waits for it has brought a token.

        Raises:
            BadAnnouncement: it is not the user's pod that does.
        """
        known = self._known.get(route)
        return registration.read(token, known.keys() if known is not None else ())

    async def _judge(self, verifier: TokenVerifier, token: str) -> None:
        try:
            verifier(token)
        except KeySetStale:
            await verifier.refresh()
            verifier(token)

    async def _learn(self, route: Route) -> _Known:
        task = self._reading.get(route)
        if task is None:
            task = self._reading[route] = asyncio.create_task(self._ask(route))
            task.add_done_callback(lambda _: self._reading.pop(route))
        try:
            return await asyncio.shield(task)
        except OSError:
            raise KeySetStale from None

    async def _ask(self, route: Route) -> _Known:
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
