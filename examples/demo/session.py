"""Who is logged in: a signed cookie. There is no password; this is a demo, and says so."""

from __future__ import annotations

import time

import jwt

USERS = ("alice", "bob")
COOKIE = "userrealtime_demo"
LIFETIME_S = 12 * 3600
# A session is no token of a relay, nor the other way round, whatever keys they are signed with.
AUDIENCE = "userrealtime-demo-session"


class Sessions:
    """Makes and reads the cookie's value: a JWT that only this server understands."""

    def __init__(self, key: str) -> None:
        self._key = key

    def issue(self, user: str) -> str:
        """The cookie of one of USERS."""
        if user not in USERS:
            raise ValueError("not a user of the demo")
        claims = {"sub": user, "aud": AUDIENCE, "exp": int(time.time()) + LIFETIME_S}
        return jwt.encode(claims, self._key, algorithm="HS256")

    def user(self, cookie: str | None) -> str | None:
        """Whose cookie it is; None if it is nobody's, or not any more."""
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
