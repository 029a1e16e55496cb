"""The names of a user's objects, derived from the userId, and the name of this process."""

from __future__ import annotations

import base64
import functools
import hashlib
import os
import re
import socket

PREFIX = "urt"
# A Service's name is a DNS label: 63 characters. `urt-`, the slug, `-` and the hash stay below it.
SLUG_LENGTH = 40
HASH_LENGTH = 12
SLICE_SUFFIX = "-activator"
CREDENTIALS_SUFFIX = "-credentials"
SECRET = "Secret"  # noqa: S105  (a kind)
"""The part with the user's token keys."""
CREDENTIALS = "Secret/credentials"
"""The part with the URLs of the database and of the broker, which the user's pods need."""
_PARTS = {"EndpointSlice": ("EndpointSlice", SLICE_SUFFIX), CREDENTIALS: (SECRET, CREDENTIALS_SUFFIX)}
"""The parts whose name has a suffix, each with its kind and the suffix."""


@functools.lru_cache(maxsize=1024)
def child_name(user_id: str) -> str:
    """Return the name of a user's objects, such as `urt-alice-fpmansl7byak`: a readable part and 60 bits of SHA-256.

    The readable part contains only characters of a DNS label. The hash distinguishes users with equal readable parts.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", user_id.lower()).strip("-")[:SLUG_LENGTH].strip("-")
    digest = hashlib.sha256(user_id.encode()).digest()
    tail = base64.b32encode(digest).decode().lower()[:HASH_LENGTH]
    return "-".join(part for part in (PREFIX, slug, tail) if part)


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
    # The common name of a user's objects ends with a hash of `HASH_LENGTH` characters, so it never has such a suffix.
    return next((part for part, (of, suffix) in _PARTS.items() if of == kind and name.endswith(suffix)), kind)


def child_of(kind: str, name: str) -> str:
    """Return the common name of a user's objects, from the name of one of them."""
    part = part_of(kind, name)
    return name.removesuffix(_PARTS[part][1]) if part in _PARTS else name


def instance_name() -> str:
    """Return the name of this replica: the pod's name, or the host's name outside a cluster."""
    return os.environ.get("POD_ID") or socket.gethostname()
