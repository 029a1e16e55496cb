"""A broadcast on its way from the database to the relays of its user."""

from __future__ import annotations

import json
from typing import Final, NamedTuple

MOST_BYTES: Final = 8000
"""What a notification of Postgres can carry. `userrealtime.broadcast` allows 7,000 bytes for the name and the data."""


class Broadcast(NamedTuple):
    """A broadcast to one user.

    Attributes:
        channel: the secret name of the channel of the user's broadcasts.
        message: the text that clients receive.
    """

    user_id: str
    channel: str
    message: str


def parse(message: str | bytes) -> str | None:
    """Return the text of a broadcast, as clients receive it; None if it is invalid: a broker may send anything."""
    if len(message) > MOST_BYTES:
        return None
    try:
        text = message if isinstance(message, str) else message.decode()
        fields = json.loads(text)
    except RecursionError:
        return None  # a client could not parse it either
    except ValueError:
        return None
    if not (isinstance(fields, dict) and fields.get("type") == "broadcast" and isinstance(fields.get("event"), str)):
        return None
    # Postgres writes JSON in one line. A stream of Server-Sent Events depends on it.
    return text if "data" in fields and "\n" not in text and "\r" not in text else None
