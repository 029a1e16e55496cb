"""The names of a user's objects, derived from the userId, and the name of this process."""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import os
import re
import socket

PREFIX = "urt"
# A Service's name is a DNS label: 63 characters. `urt-`, the slug, `-` and the hash stay below it.
SLUG_LENGTH = 40
HASH_LENGTH = 12
OPAQUE_LENGTH = 20
"""The characters of an opaque name after `urt-`, with 5 bits each."""
MINIMUM_KEY_BYTES = 32  # RFC 2104, 3: a key is at least as long as the hash
MAXIMUM_KEY_BYTES = 4096
SLICE_SUFFIX = "-activator"
CREDENTIALS_SUFFIX = "-credentials"
SECRET = "Secret"  # noqa: S105  (a kind)
"""The part with the user's token keys."""
CREDENTIALS = "Secret/credentials"
"""The part with the URLs of the database and of the broker, which the user's pods need."""
_PARTS = {"EndpointSlice": ("EndpointSlice", SLICE_SUFFIX), CREDENTIALS: (SECRET, CREDENTIALS_SUFFIX)}
"""The parts whose name has a suffix, each with its kind and the suffix."""


class Naming:
    """The names of users' objects, which are also part of the users' URLs.

    Args:
        key: the secret key of opaque names. None: readable names. It does not appear in the object's repr.

    Raises:
        ValueError: the key is too short or too long. The message does not contain it.
    """

    def __init__(self, key: str | None = None) -> None:
        if key is not None and (flaw := validate_key(key)) is not None:
            raise ValueError(flaw)
        self._key = None if key is None else key.encode()

    def child_name(self, user_id: str) -> str:
        """Return the name of a user's Deployment, Service, Secret and route."""
        return readable_name(user_id) if self._key is None else opaque_name(user_id, self._key)


def validate_key(key: str) -> str | None:
    """Return the problem of a key for opaque names, without quoting it; None if it is valid."""
    length = len(key.encode())
    if MINIMUM_KEY_BYTES <= length <= MAXIMUM_KEY_BYTES:
        return None
    return (
        f"must have {MINIMUM_KEY_BYTES} to {MAXIMUM_KEY_BYTES} bytes, and has {length}: "
        "generate one with `openssl rand -base64 32`, and never change it"
    )


@functools.lru_cache(maxsize=1024)
def readable_name(user_id: str) -> str:
    """Return a name such as `urt-alice-fpmansl7byak`: a readable part and 60 bits of SHA-256.

    The readable part contains only characters of a DNS label. The hash distinguishes users with equal readable parts.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", user_id.lower()).strip("-")[:SLUG_LENGTH].strip("-")
    digest = hashlib.sha256(user_id.encode()).digest()
    tail = base64.b32encode(digest).decode().lower()[:HASH_LENGTH]
    return "-".join(part for part in (PREFIX, slug, tail) if part)


def opaque_name(user_id: str, key: bytes) -> str:
    """Return a name such as `urt-k3xq5w2m7yhd4vza6bpe`: 100 bits of HMAC-SHA256.

    Without the key, a userId can neither be read from the name nor be tested against it.
    """
    digest = hmac.digest(key, user_id.encode(), "sha256")
    return f"{PREFIX}-{base64.b32encode(digest).decode().lower()[:OPAQUE_LENGTH]}"


def object_name(part: str, child: str) -> str:
    """Return the name of a user's object, from the common name of the objects.

    A part is the kind of an object, or `CREDENTIALS`.
    """
    return child + _PARTS[part][1] if part in _PARTS else child


def kind_of(part: str) -> str:
    """Return the kind of a part."""
    return _PARTS[part][0] if part in _PARTS else part


def part_of(kind: str, name: str) -> str:
    """Return which part an object is, from its kind and its name."""
    # The common name of a user's objects ends with a hash of `HASH_LENGTH` or `OPAQUE_LENGTH` characters, so it never
    # has such a suffix.
    return next((part for part, (of, suffix) in _PARTS.items() if of == kind and name.endswith(suffix)), kind)


def child_of(kind: str, name: str) -> str:
    """Return the common name of a user's objects, from the name of one of them."""
    part = part_of(kind, name)
    return name.removesuffix(_PARTS[part][1]) if part in _PARTS else name


def instance_name() -> str:
    """Return the name of this replica: the pod's name, or the host's name outside a cluster."""
    return os.environ.get("POD_ID") or socket.gethostname()
