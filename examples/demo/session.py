"""Sessions: a signed cookie with the name of the user. The demo has no passwords."""

from __future__ import annotations

import time

import jwt

USERS = ("alice", "bob")
COOKIE = "userrealtime_demo"
LIFETIME_S = 12 * 3600
# A session is never accepted as a token of a relay, and a token never as a session, even if their keys are equal.
AUDIENCE = "userrealtime-demo-session"


class Sessions:
    """Issues and verifies the value of the cookie: a JWT for this server."""

    def __init__(self, key: str) -> None:
        self._key = key

    def issue(self, user: str) -> str:
        """Return the cookie of one of USERS."""
        if user not in USERS:
            raise ValueError("not a user of the demo")
        claims = {"sub": user, "aud": AUDIENCE, "exp": int(time.time()) + LIFETIME_S}
        return jwt.encode(claims, self._key, algorithm="HS256")

    def user(self, cookie: str | None) -> str | None:
        """Return the user of a cookie, or None if the cookie is invalid or has expired."""
        try:
            claims = jwt.decode(
                cookie or "",
                self._key,
                algorithms=["HS256"],
                audience=AUDIENCE,
                options={"require": ["sub", "aud", "exp"]},
            )
        except jwt.InvalidTokenError:
            return None
        return claims["sub"] if claims["sub"] in USERS else None
