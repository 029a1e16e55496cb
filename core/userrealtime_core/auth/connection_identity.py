"""The identity that an activator has given to a connection, in a header of its request to the relay.

The identity is a part of what backends of Pusher sign, and such a signature must be valid on one connection only. A
client could send the header as well, to repeat the signature of another connection. So the activator signs the
identity with a token key of the user, and a relay accepts no signature on a connection with another identity.

The key is derived, and its label has neither `:` nor `.`: no backend of Pusher and no issuer of tokens signs it.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable
from typing import Final

HEADER: Final = "X-Userrealtime-Connection"
_LABEL: Final = b"userrealtime connection identity"
_VALUE: Final = re.compile(r"([0-9a-f]{24})(?:;([0-9a-f]{64}))?")


def encode(identity: str, keys: Iterable[str]) -> str:
    """Return the value of the header: the identity, and its signature with the first key if there is one."""
    return ";".join([identity, *(_sign(identity, key) for key in [*keys][:1])])


def parse(value: str, keys: Iterable[str]) -> tuple[str, bool] | None:
    """Return the identity in a header, and whether one of the keys has signed it; None if it has none."""
    found = _VALUE.fullmatch(value)
    if found is None:
        return None
    identity, signature = found.groups(default="")
    return identity, any(hmac.compare_digest(signature, _sign(identity, key)) for key in keys)


def _sign(identity: str, key: str) -> str:
    derived = hmac.digest(key.encode(), _LABEL, "sha256")
    return hmac.digest(derived, identity.encode(), "sha256").hex()
