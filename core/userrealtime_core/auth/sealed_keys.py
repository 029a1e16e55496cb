"""Seals token keys: encrypts them for the activator, which finds them in the status of the user's resource.

The operator and the activator share one key. An account that can read resources but not this key learns nothing of the
token keys, except whether they have changed. The text is bound to the uid of its resource: it opens for no other.

AES-SIV (RFC 5297) needs no nonce, and equal token keys of a user have equal texts, so an unchanged status is not
written again.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from typing import Final

SEAL_KEY: Final = "SEAL_KEY"
"""The variable, or the file in CREDENTIALS_DIR, with the key."""
MINIMUM_KEY_BYTES: Final = 32
MAXIMUM_KEY_BYTES: Final = 4096
_PURPOSE: Final = b"userrealtime sealed token keys 1\0"


class BadSeal(ValueError):
    """A text was not sealed with this key for this resource."""


class Seal:
    """Seals and opens the token keys of users. The key does not appear in the object's repr.

    Raises:
        ValueError: the key is too short or too long. The message does not contain it.
    """

    def __init__(self, key: str) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESSIV  # late: its library needs several MiB

        if (flaw := validate_seal_key(key)) is not None:
            raise ValueError(flaw)
        self._cipher = AESSIV(hashlib.sha512(_PURPOSE + key.encode()).digest())

    def seal(self, uid: str, keys: Mapping[str, str]) -> str:
        """Return the sealed token keys of the resource with this uid.

        Args:
            keys: the keys by their names in the user's Secret.
        """
        text = json.dumps(dict(keys), sort_keys=True, separators=(",", ":"))
        return base64.b64encode(self._cipher.encrypt(text.encode(), [uid.encode()])).decode()

    def open(self, uid: str, sealed: str) -> dict[str, str]:
        """Return the token keys.

        Raises:
            BadSeal: the text was sealed with another key or for another resource, or was changed.
        """
        from cryptography.exceptions import InvalidTag

        try:
            keys = json.loads(self._cipher.decrypt(base64.b64decode(sealed, validate=True), [uid.encode()]))
        except (InvalidTag, binascii.Error, ValueError):
            raise BadSeal("the sealed keys cannot be opened") from None
        return {str(name): str(key) for name, key in keys.items()}


def validate_seal_key(key: str) -> str | None:
    """Return the problem of a key for seals, without quoting it; None if it is valid."""
    length = len(key.encode())
    if MINIMUM_KEY_BYTES <= length <= MAXIMUM_KEY_BYTES:
        return None
    return (
        f"must have {MINIMUM_KEY_BYTES} to {MAXIMUM_KEY_BYTES} bytes, and has {length}: "
        "generate one with `openssl rand -base64 32`"
    )
