"""A broadcast on its way from its sender to the relays of its user."""

from __future__ import annotations

import json
import re
from typing import Any, Final, NamedTuple

from .names import LONGEST_NAME, is_name

MOST_CONTENT_BYTES: Final = 7000
"""The limit of the JSON of a broadcast's name and data, as `userrealtime.broadcast` checks it."""

MOST_BYTES: Final = 8000
"""What a notification of Postgres can carry. `userrealtime.broadcast` allows 7,000 bytes for the name and the data."""

_NUL: Final = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


class InvalidBroadcast(Exception):
    """A broadcast that cannot be sent. The text has the reason, and does not quote the broadcast."""


class TooLarge(InvalidBroadcast):
    """A broadcast above `MOST_CONTENT_BYTES`."""


class Content(NamedTuple):
    """The name and the data of a broadcast, both as JSON."""

    event: str
    data: str

    @classmethod
    def parse(cls, event: Any, data: Any) -> Content:
        """Read the members of a message.

        Raises:
            InvalidBroadcast: the name or the data is invalid.
            TooLarge: they are too large.
        """
        if not is_name(event):
            raise InvalidBroadcast(
                f'"event" must be a string of 1 to {LONGEST_NAME} characters, without control characters'
            )
        try:
            content = cls(_json(event), _json(data))
            size = len(content.event.encode()) + len(content.data.encode())
        except RecursionError:
            raise InvalidBroadcast('"data" is nested too deeply') from None
        except UnicodeEncodeError:
            raise InvalidBroadcast('"data" contains half of a surrogate pair') from None
        except ValueError:
            raise InvalidBroadcast('"data" contains a number that is not finite') from None
        if _NUL.search(content.data):
            raise InvalidBroadcast('"data" contains the character U+0000, which Postgres cannot store')
        if size > MOST_CONTENT_BYTES:
            raise TooLarge(
                f"event and data are {size} bytes of JSON; the limit is {MOST_CONTENT_BYTES}. "
                "Publish it, or broadcast a reference and let the receiver fetch the content"
            )
        return content

    @property
    def message(self) -> str:
        """The text that clients receive."""
        return f'{{"type":"broadcast","event":{self.event},"data":{self.data}}}'


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


_SENDER: Final = re.compile(r',"from":"([0-9a-f]{1,32})\.([A-Za-z0-9_-]{1,80})"\}$')


class Sender(NamedTuple):
    """The client that has sent a broadcast: a name, and the name of its pod."""

    pod: str
    client: str


def with_sender(message: str, sender: Sender) -> str:
    """Return the text of a broadcast for the other pods of the user."""
    return f'{message[:-1]},"from":"{sender.pod}.{sender.client}"}}'


def split_sender(text: str) -> tuple[str, Sender | None]:
    """Return the text of a broadcast as clients receive it, and its sender if a client has sent it.

    The data cannot be taken for a sender: it is a whole JSON value, in which a quote inside of a string is escaped.
    """
    found = _SENDER.search(text)
    if found is None:
        return text, None
    return f"{text[: found.start()]}}}", Sender(found[1], found[2])


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
