"""Tokens: JSON Web Tokens that are signed with the key of a user (HS256), as relays accept them."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import jwt

CURRENT: Final = "TOKEN_KEY"
OTHERS: Final = ("TOKEN_KEY_NEXT", "TOKEN_KEY_PREVIOUS")
TTL_S: Final = 900.0
LEEWAY_S: Final = 5.0


class InvalidToken(Exception):
    """The token is not a valid token of this user. The message contains the reason, and nothing of the token."""


@dataclass(frozen=True, slots=True)
class TokenKeys:
    """The keys in the Secret that `status.tokenSecret` of a UserRealtime names."""

    current: str = field(repr=False)
    """The key that signs."""
    others: Sequence[str] = field(default=(), repr=False)
    """The keys that are also accepted, while a key is being replaced."""

    @classmethod
    def from_secret(cls, data: Mapping[str, str]) -> TokenKeys:
        """The keys in the `data` of a Secret, in base64, as the API server returns it.

        Raises:
            ValueError: the Secret has no token key.
        """
        return cls._of({name: base64.b64decode(value).decode() for name, value in data.items()}, "the Secret")

    @classmethod
    def from_directory(cls, path: str | Path) -> TokenKeys:
        """The keys in a directory where the Secret is mounted. Read them again regularly: keys are replaced.

        Raises:
            ValueError: the directory has no token key.
        """
        names = (CURRENT, *OTHERS)
        files = {name: file for name in names if (file := Path(path) / name).is_file()}
        return cls._of({name: file.read_text().strip() for name, file in files.items()}, str(path))

    @classmethod
    def _of(cls, values: Mapping[str, str], source: str) -> TokenKeys:
        if not values.get(CURRENT):
            raise ValueError(f"{source} has no {CURRENT}: use the Secret that status.tokenSecret of the user names")
        return cls(values[CURRENT], tuple(values[name] for name in OTHERS if values.get(name)))


def sign(keys: TokenKeys, user_id: str, *, ttl_s: float = TTL_S, claims: Mapping[str, Any] | None = None) -> str:
    """Return a token of the user that is valid for `ttl_s` seconds.

    Args:
        claims: further claims, such as `iss` and `aud` where the installation requires them.
    """
    now = int(time.time())
    return jwt.encode({**(claims or {}), "sub": user_id, "iat": now, "exp": now + int(ttl_s)}, keys.current, "HS256")


def verify(keys: TokenKeys, token: str, user_id: str, *, audience: str | None = None) -> dict[str, Any]:
    """Return the claims of a token, if it is a valid token of the user.

    Raises:
        InvalidToken: it is not.
    """
    reason = "the signature is not that of a key of the user"
    for key in (keys.current, *keys.others):
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                ["HS256"],
                audience=audience,
                leeway=LEEWAY_S,
                options={"require": ["exp", "sub"], "verify_aud": audience is not None},
            )
        except jwt.InvalidSignatureError:
            continue
        except jwt.PyJWTError as error:
            raise InvalidToken(str(error)) from None
        if claims["sub"] != user_id:
            raise InvalidToken("it is a token of another user")
        return claims
    raise InvalidToken(reason)
