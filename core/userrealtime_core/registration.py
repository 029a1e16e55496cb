"""The registration of a relay's address with the activators: a JWT that the relay signs with its user's own key."""

from __future__ import annotations

import time
from typing import Final

import jwt

LIFETIME: Final = 30
"""Seconds for which what was said is good."""
TYPE: Final = "announcement+jwt"
"""No client's token: a relay lets nobody in by it (RFC 8725, 3.11)."""
AUDIENCE: Final = "userrealtime-activator"


class BadRegistration(Exception):
    """It does not come from the user's own relay, or is not of now."""


def sign(key: str, address: str) -> str:
    """An announcement of an IP address, as a JWT signed with a user's HS256 key."""
    claims = {"aud": AUDIENCE, "address": address, "exp": int(time.time()) + LIFETIME}
    return jwt.encode(claims, key, algorithm="HS256", headers={"typ": TYPE})


def read(token: str, keys: tuple[str, ...]) -> str:
    """The address that an announcement tells, if one of these keys has signed it.

    Raises:
        BadAnnouncement: none has, it has expired, or it is something else.
    """
    try:
        if jwt.get_unverified_header(token).get("typ") != TYPE:
            raise BadRegistration
    except jwt.PyJWTError:
        raise BadRegistration from None
    for key in keys:
        try:
            claims = jwt.decode(
                token, key, algorithms=["HS256"], audience=AUDIENCE, options={"require": ["exp", "aud", "address"]}
            )
        except jwt.InvalidSignatureError:
            continue
        except jwt.PyJWTError:
            break
        return str(claims["address"])
    raise BadRegistration
