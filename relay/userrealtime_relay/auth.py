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
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import jwt

from .config import Config

if TYPE_CHECKING:
    from .jwks import Jwks

MAX_TOKEN_BYTES: Final = 8192
ASYMMETRIC: Final = ("RS256", "ES256", "EdDSA")
TYPES: Final = (None, "jwt", "at+jwt")
"""Of tokens: not said, any, or an access token (RFC 9068). Others, as of a log-out, are not to let somebody in."""

_logger = logging.getLogger(__name__)


class Unauthorized(Exception):
    """A token that is not accepted. Says which rule it broke; never contains the token or what it claims."""


class KeysWanted(Exception):
    """Whether a token is good cannot be told without the keys that JWKS_URL has now: `refresh`, and verify it again. If
    this comes again, they cannot be had."""


class TokenVerifier:
    """Accepts this user's tokens, until they expire.

    Args:
        jwks: the key set at JWKS_URL, where it is shared by the verifiers of several users.
    """

    def __init__(self, config: Config, jwks: Jwks | None = None) -> None:
        self._config = config
        self._jws = jwt.PyJWS(options={"verify_signature": True, "enforce_minimum_key_length": True})
        self._jwks = jwks
        if jwks is None and config.jwks_url is not None:
            from .jwks import Jwks  # late: a relay without it does not pay for it

            self._jwks = Jwks(config.jwks_url)

    def __call__(self, token: str) -> float:
        """How many seconds the token is still good for, the leeway included.

        Raises:
            Unauthorized: the token is malformed, too early or too late, or of another key, issuer, audience or user.
            KeysWanted: that cannot be told yet.
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
        secrets = self._config.token_keys()
        if algorithm == "HS256" and secrets:
            return "HS256", secrets
        if algorithm in ASYMMETRIC and self._jwks is not None:
            return algorithm, self._jwks.find(header.get("kid"), algorithm)
        raise Unauthorized("of another algorithm")

    def _judge(self, claims: dict[str, Any], now: float) -> float:
        config = self._config
        expiry = _time(claims, "exp")
        if expiry is None:
            raise Unauthorized("without exp")
        # Never a sum with what it claims: JSON has integers that no float holds.
        if expiry <= now - config.token_leeway:
            raise Unauthorized("expired")
        if expiry > now + config.token_max_lifetime + config.token_leeway:
            raise Unauthorized("valid for longer than TOKEN_MAX_LIFETIME")
        for name in ("nbf", "iat"):
            begin = _time(claims, name)
            if begin is not None and begin > now + config.token_leeway:
                raise Unauthorized(f"before its {name}")
            if name == "iat" and begin is not None and begin < expiry - config.token_max_lifetime:
                raise Unauthorized("issued for longer than TOKEN_MAX_LIFETIME")
        if config.token_issuer is not None and claims.get("iss") != config.token_issuer:
            raise Unauthorized("of another issuer")
        if config.token_audience is not None:
            audience = claims.get("aud")
            if config.token_audience not in (audience if isinstance(audience, list) else [audience]):
                raise Unauthorized("for another audience")
        if claims.get(config.token_user_claim) != config.user_id:
            raise Unauthorized("of another user")
        return expiry - now + config.token_leeway


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
