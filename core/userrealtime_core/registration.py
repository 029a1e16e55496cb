"""The registration of a relay's address with the activators: a JWT that the relay signs with its user's own key."""

from __future__ import annotations

import time
from typing import Final

import jwt

LIFETIME: Final = 30
"""Seconds for which a registration is valid."""
TYPE: Final = "announcement+jwt"
"""The `typ` of a registration. A relay does not accept it as a client's token (RFC 8725, 3.11)."""
AUDIENCE: Final = "userrealtime-activator"


class BadRegistration(Exception):
    """The registration was not signed by the user's relay, or has expired."""


def sign(key: str, address: str) -> str:
    """Return the registration of an IP address, as a JWT signed with a user's HS256 key."""
    claims = {"aud": AUDIENCE, "address": address, "exp": int(time.time()) + LIFETIME}
    return jwt.encode(claims, key, algorithm="HS256", headers={"typ": TYPE})


def read(token: str, keys: tuple[str, ...]) -> str:
    """Return the address in a registration that one of these keys has signed.

    Raises:
        BadRegistration: no key has signed it, it has expired, or it is not a registration.
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
