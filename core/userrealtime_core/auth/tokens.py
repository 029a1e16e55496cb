"""Tokens: JWTs of one user, signed with a known key by the algorithm of that key.

The algorithm of a token only selects where its key is searched: HS256 among the keys of the user, which are secrets;
RS256, ES256 and EdDSA in the key set at JWKS_URL, where each key has one algorithm. So neither `none` nor a public key
used as a secret is accepted. Keys that a token contains or refers to (`jwk`, `jku`, `x5u`) are ignored.

PyJWT checks signatures. Claims are checked here, more strictly than PyJWT does: a time is a number, and no claim occurs
twice, since two parsers could read such a token differently.
"""

from __future__ import annotations

import hmac
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import jwt

from .errors import Unauthorized
from .settings import AuthSettings

MAX_TOKEN_BYTES: Final = 8192
ASYMMETRIC: Final = ("RS256", "ES256", "EdDSA")
TYPES: Final = (None, "jwt", "at+jwt")
"""The accepted values of `typ`: none, any JWT, or an access token (RFC 9068). A log-out token, for example, is not."""


_JWS: Final = jwt.PyJWS(options={"verify_signature": True, "enforce_minimum_key_length": True})


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
        rejected: called with the reason and the claimed identity of each token that is not accepted.
    """

    def __init__(
        self,
        settings: AuthSettings,
        user_id: str,
        keys: Callable[[], Sequence[str]],
        jwks: KeySet | None = None,
        rejected: Callable[[str, Mapping[str, Any]], None] = lambda _reason, _claims: None,
    ) -> None:
        self._settings = settings
        self._user_id = user_id
        self._secrets = keys
        self._jwks = jwks
        self._rejected = rejected

    def __call__(self, token: str) -> float:
        """Return for how many seconds the token is still valid, including the leeway.

        Raises:
            Unauthorized: the token is malformed, expired, not valid yet, or for another key, issuer, audience or user.
            KeySetStale: the keys must be fetched first.
        """
        try:
            return self._judge(_claims(self._open(token)), time.time())
        except Unauthorized as error:
            why = str(error)
        except (jwt.PyJWTError, ValueError, RecursionError) as error:
            why = type(error).__name__
        self._rejected(why, self.claimed(token))
        raise Unauthorized(why) from None

    def claimed(self, token: str) -> Mapping[str, Any]:
        """Return the subject and the key id that a token claims to have, for the audit log. Both may be forged."""
        if len(token) > MAX_TOKEN_BYTES:
            return {}
        try:
            header = _JWS.get_unverified_header(token)
            claims = json.loads(_JWS.decode(token, options={"verify_signature": False}))
        except (jwt.PyJWTError, ValueError, RecursionError):
            return {}
        subject = claims.get(self._settings.token_user_claim) if isinstance(claims, dict) else None
        return {"subject": subject, "key_id": header.get("kid")}

    def check_signature(self, content: str, signature: str) -> None:
        """Check an HMAC-SHA256 of a text with one of the user's keys. The signature is in hexadecimal, in lower case.

        A text must contain a character that no token contains before its signature, such as `:`. Otherwise, the
        signature of a text could be the one of a token.

        Raises:
            Unauthorized: the signature is wrong, or the user's keys are not accepted.
        """
        keys = self._secrets() if self._settings.allow_user_keys else ()
        text = content.encode(errors="surrogatepass")
        for key in keys:
            if hmac.compare_digest(hmac.digest(key.encode(), text, "sha256").hex().encode(), signature.encode()):
                return
        why = "unknown signing key" if keys else "unsupported algorithm"
        self._rejected(why, {})
        raise Unauthorized(why)

    def check_claims(self, token: str) -> None:
        """Check the claims of a token without its signature, before any work that an attacker could cause.

        Raises:
            Unauthorized: the token is not accepted, whatever its signature.
        """
        try:
            if len(token) > MAX_TOKEN_BYTES:
                raise Unauthorized("too long")
            content = _JWS.decode(token, options={"verify_signature": False})
            self._judge(_claims(content), time.time())
        except (jwt.PyJWTError, ValueError, RecursionError) as error:
            raise Unauthorized(type(error).__name__) from None

    async def refresh(self) -> None:
        """Fetch the keys at JWKS_URL, unless that was done a moment ago. Takes a few seconds at most; never fails."""
        if self._jwks is not None:
            await self._jwks.refresh()

    def _open(self, token: str) -> bytes:
        """Check the signature; return the signed content."""
        if len(token) > MAX_TOKEN_BYTES:
            raise Unauthorized("too long")
        header = _JWS.get_unverified_header(token)
        if "crit" in header:
            raise Unauthorized("unsupported critical extension")
        kind = header.get("typ")
        if (kind.lower().removeprefix("application/") if isinstance(kind, str) else kind) not in TYPES:
            raise Unauthorized("unsupported typ")
        algorithm, keys = self._keys(header)
        for key in keys:
            try:
                content: bytes = _JWS.decode(token, key, algorithms=[algorithm])
            except jwt.InvalidSignatureError:
                continue
            return content
        raise Unauthorized("unknown signing key")

    def _keys(self, header: dict[str, Any]) -> tuple[str, Sequence[str | jwt.PyJWK]]:
        algorithm = header.get("alg")
        secrets = self._secrets() if self._settings.allow_user_keys else ()
        if algorithm == "HS256" and secrets:
            return "HS256", secrets
        if algorithm in ASYMMETRIC and self._jwks is not None:
            return algorithm, self._jwks.find(header.get("kid"), algorithm)
        raise Unauthorized("unsupported algorithm")

    def _judge(self, claims: dict[str, Any], now: float) -> float:
        settings = self._settings
        expiry = _time(claims, "exp")
        if expiry is None:
            raise Unauthorized("no exp")
        # Compared without arithmetic on the claim: JSON has integers that exceed a float.
        if expiry <= now - settings.token_leeway:
            raise Unauthorized("expired")
        if expiry > now + settings.token_max_lifetime + settings.token_leeway:
            raise Unauthorized("valid for longer than TOKEN_MAX_LIFETIME")
        for name in ("nbf", "iat"):
            begin = _time(claims, name)
            if begin is not None and begin > now + settings.token_leeway:
                raise Unauthorized(f"{name} is in the future")
            if name == "iat" and begin is not None and begin < expiry - settings.token_max_lifetime:
                raise Unauthorized("issued for longer than TOKEN_MAX_LIFETIME")
        if settings.token_issuer is not None and claims.get("iss") != settings.token_issuer:
            raise Unauthorized("wrong issuer")
        if settings.token_audience is not None:
            audience = claims.get("aud")
            if settings.token_audience not in (audience if isinstance(audience, list) else [audience]):
                raise Unauthorized("wrong audience")
        if claims.get(settings.token_user_claim) != self._user_id:
            raise Unauthorized("wrong user")
        return expiry - now + settings.token_leeway


def _claims(content: bytes) -> dict[str, Any]:
    # Decoded here: json would guess the encoding of bytes.
    claims = json.loads(content.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    if not isinstance(claims, dict):
        raise Unauthorized("claims are not an object")
    return claims


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise Unauthorized("duplicate claim")
    return fields


def _refuse_constant(_: str) -> None:
    raise Unauthorized("not JSON")  # NaN and infinities, which Python accepts


def _time(claims: dict[str, Any], name: str) -> int | float | None:
    """Return a claim in seconds since 1970, if it is present."""
    if name not in claims:
        return None
    value = claims[name]
    if type(value) is int or (type(value) is float and math.isfinite(value)):
        return value
    raise Unauthorized(f"{name} is not a number")
