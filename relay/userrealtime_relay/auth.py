"""Tokens: HS256 with this user's own key, and nothing else.

The algorithm is pinned here, never taken from the token, so that neither `none` nor a public key passed off as a
secret is accepted.
"""

from __future__ import annotations

import logging
import time
from typing import Final

import jwt

from .config import Secret

LEEWAY: Final = 5
"""Seconds that the clock of who signs may differ from ours."""
_FOREVER: Final = 10 * 365 * 86400

_logger = logging.getLogger(__name__)


class Unauthorized(Exception):
    """A token that is not accepted. Says which rule it broke; never contains the token or what it claims."""


class TokenVerifier:
    """Accepts tokens whose `sub` is the user, until their `exp`."""

    def __init__(self, key: Secret, user_id: str) -> None:
        self._key = key
        self._user_id = user_id

    def __call__(self, token: str) -> float:
        """How many seconds the token is still good for, the leeway included.

        Raises:
            Unauthorized: the token is malformed, of another key, algorithm or user, too early or too late.
        """
        try:
            claims = jwt.decode(
                token,
                self._key.reveal(),
                algorithms=["HS256"],
                # Whom else a token is for is not ours to judge: it is signed with the key of this user's relay.
                options={"require": ["exp", "sub"], "verify_aud": False},
                subject=self._user_id,
                leeway=LEEWAY,
            )
        except (jwt.PyJWTError, ValueError, RecursionError) as error:
            _logger.info("token refused", extra={"fields": {"why": type(error).__name__}})
            raise Unauthorized(type(error).__name__) from None
        now = time.time()
        # JSON has integers that no float holds.
        return min(int(claims["exp"]), now + _FOREVER) - now + LEEWAY
