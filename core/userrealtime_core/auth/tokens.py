"""Tokens: JWTs of this user, signed with a key that this relay was told of, by an algorithm that the key is for.

The algorithm of a token only says where to look for its key: HS256 among the user's own keys, which are secrets; RS256,
ES256 and EdDSA in the key set at JWKS_URL, where each key has one algorithm. So neither `none` nor a public key passed
off as a secret is accepted. Keys that a token brings along or points to (`jwk`, `jku`, `x5u`) are not looked at.

PyJWT checks signatures. Claims are read here, by rules of a line each, stricter than its own: a time is a number,
and no claim comes twice, so that no two readers of a token can disagree.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import jwt

from .errors import Unauthorized
from .settings import AuthSettings

MAX_TOKEN_BYTES: Final = 8192
ASYMMETRIC: Final = ("RS256", "ES256", "EdDSA")
TYPES: Final = (None, "jwt", "at+jwt")
"""Of tokens: not said, any, or an access token (RFC 9068). Others, as of a log-out, are not to let somebody in."""

_logger = logging.getLogger(__name__)


class KeySet(Protocol):
    """The public keys of an identity provider. `Jwks` is one."""

    def find(self, kid: Any, algorithm: str, /) -> Sequence[jwt.PyJWK]:
        """Return the keys that a token may be signed with. Raises KeySetStale or Unauthorized."""

    async def refresh(self) -> None:
        """Fetch the keys, unless that was done a moment ago."""


class TokenVerifier:
    """Accepts this user's tokens, until they expire.

    Args:
        keys: the HS256 keys of the user.
        jwks: the key set at JWKS_URL. The verifiers of several users may share it.
    """

    def __init__(
        self, settings: AuthSettings, user_id: str, keys: Callable[[], Sequence[str]], jwks: KeySet | None = None
    ) -> None:
        self._settings = settings
        self._user_id = user_id
        self._secrets = keys
        self._jws = jwt.PyJWS(options={"verify_signature": True, "enforce_minimum_key_length": True})
        self._jwks = jwks

    def __call__(self, token: str) -> float:
        """How many seconds the token is still good for, the leeway included.

        Raises:
            Unauthorized: the token is malformed, too early or too late, or of another key, issuer, audience or user.
            KeySetStale: that cannot be told yet.
        """
        try:
            return self._judge(_claims(self._open(token)), time.time())
        except Unauthorized as error:
            why = str(error)
        except (jwt.PyJWTError, ValueError, RecursionError) as error:
            why = type(error).__name__
        _logger.info("token refused", extra={"fields": {"why": why}})
        raise Unauthorized(why) from None

    def check_claims(self, token: str) -> None:
        """Check what a token claims, without its signature: so an attacker can cause no work with any other token.

        Raises:
            Unauthorized: it would not be accepted whoever signed it.
        """
        try:
            if len(token) > MAX_TOKEN_BYTES:
                raise Unauthorized("too long")
            content = self._jws.decode(token, options={"verify_signature": False})
            self._judge(_claims(content), time.time())
        except (jwt.PyJWTError, ValueError, RecursionError) as error:
            raise Unauthorized(type(error).__name__) from None

    async def refresh(self) -> None:
        """Ask for the keys at JWKS_URL, unless that was done a moment ago. Takes a few seconds at most; never fails."""
        if self._jwks is not None:
            await self._jwks.refresh()

    def _open(self, token: str) -> bytes:
        """What is signed."""
        if len(token) > MAX_TOKEN_BYTES:
            raise Unauthorized("too long")
        header = self._jws.get_unverified_header(token)
        if "crit" in header:
            raise Unauthorized("with extensions that it says must be understood")
        kind = header.get("typ")
        if (kind.lower().removeprefix("application/") if isinstance(kind, str) else kind) not in TYPES:
            raise Unauthorized("of another type")
        algorithm, keys = self._keys(header)
        for key in keys:
            try:
                content: bytes = self._jws.decode(token, key, algorithms=[algorithm])
            except jwt.InvalidSignatureError:
                continue
            return content
        raise Unauthorized("of another key")

    def _keys(self, header: dict[str, Any]) -> tuple[str, Sequence[str | jwt.PyJWK]]:
        algorithm = header.get("alg")
        secrets = self._secrets()
        if algorithm == "HS256" and secrets:
            return "HS256", secrets
        if algorithm in ASYMMETRIC and self._jwks is not None:
            return algorithm, self._jwks.find(header.get("kid"), algorithm)
        raise Unauthorized("of another algorithm")

    def _judge(self, claims: dict[str, Any], now: float) -> float:
        settings = self._settings
        expiry = _time(claims, "exp")
        if expiry is None:
            raise Unauthorized("without exp")
        # Never a sum with what it claims: JSON has integers that no float holds.
        if expiry <= now - settings.token_leeway:
            raise Unauthorized("expired")
        if expiry > now + settings.token_max_lifetime + settings.token_leeway:
            raise Unauthorized("valid for longer than TOKEN_MAX_LIFETIME")
        for name in ("nbf", "iat"):
            begin = _time(claims, name)
            if begin is not None and begin > now + settings.token_leeway:
                raise Unauthorized(f"before its {name}")
            if name == "iat" and begin is not None and begin < expiry - settings.token_max_lifetime:
                raise Unauthorized("issued for longer than TOKEN_MAX_LIFETIME")
        if settings.token_issuer is not None and claims.get("iss") != settings.token_issuer:
            raise Unauthorized("of another issuer")
        if settings.token_audience is not None:
            audience = claims.get("aud")
            if settings.token_audience not in (audience if isinstance(audience, list) else [audience]):
                raise Unauthorized("for another audience")
        if claims.get(settings.token_user_claim) != self._user_id:
            raise Unauthorized("of another user")
        return expiry - now + settings.token_leeway


def _claims(content: bytes) -> dict[str, Any]:
    # As text: of bytes, json would guess the encoding.
    claims = json.loads(content.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    if not isinstance(claims, dict):
        raise Unauthorized("without claims")
    return claims


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise Unauthorized("with a claim twice")
    return fields


def _refuse_constant(_: str) -> None:
    raise Unauthorized("not JSON")  # NaN and the infinities, which Python reads


def _time(claims: dict[str, Any], name: str) -> int | float | None:
    """A claim in seconds since 1970, if it is there."""
    if name not in claims:
        return None
    value = claims[name]
    if type(value) is int or (type(value) is float and math.isfinite(value)):
        return value
    raise Unauthorized(f"with an {name} that is no time")
