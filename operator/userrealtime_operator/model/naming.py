"""Names: of objects, for user ids of any shape, and of this process."""

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
    """The name of all of a user's objects, like `urt-alice-fpmansl7byak`: a readable part, then 60 bits of SHA-256.

    The readable part loses what a DNS label cannot hold; the hash keeps users apart that it makes equal.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", user_id.lower()).strip("-")[:SLUG_LENGTH].strip("-")
    digest = hashlib.sha256(user_id.encode()).digest()
    tail = base64.b32encode(digest).decode().lower()[:HASH_LENGTH]
    return "-".join(part for part in (PREFIX, slug, tail) if part)


def object_name(kind: str, child: str) -> str:
    """The name of a user's object of a kind, from that of most of them."""
    return child + SLICE_SUFFIX if kind == "EndpointSlice" else child


def child_of(kind: str, name: str) -> str:
    """The name of most of a user's objects, from that of one of them."""
    return name.removesuffix(SLICE_SUFFIX) if kind == "EndpointSlice" else name


def instance_name() -> str:
    """This operator among its replicas: the pod's name, or the host's outside of a cluster."""
    return os.environ.get("POD_ID") or socket.gethostname()
