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


@functools.lru_cache(maxsize=1024)
def child_name(user_id: str) -> str:
    """Return the name of a user's objects, such as `urt-alice-fpmansl7byak`: a readable part and 60 bits of SHA-256.

    The readable part contains only characters of a DNS label. The hash distinguishes users with equal readable parts.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", user_id.lower()).strip("-")[:SLUG_LENGTH].strip("-")
    digest = hashlib.sha256(user_id.encode()).digest()
    tail = base64.b32encode(digest).decode().lower()[:HASH_LENGTH]
    return "-".join(part for part in (PREFIX, slug, tail) if part)


def object_name(kind: str, child: str) -> str:
    """Return the name of a user's object of a kind, from the common name of the objects."""
    return child + SLICE_SUFFIX if kind == "EndpointSlice" else child


def child_of(kind: str, name: str) -> str:
    """Return the common name of a user's objects, from the name of one of them."""
    return name.removesuffix(SLICE_SUFFIX) if kind == "EndpointSlice" else name


def instance_name() -> str:
    """Return the name of this replica: the pod's name, or the host's name outside a cluster."""
    return os.environ.get("POD_ID") or socket.gethostname()
