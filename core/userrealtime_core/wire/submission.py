"""A message that a client publishes for the application, identified by a `ref` that the client chooses.

It is stored once, however often it is repeated with the same ref. After any failure, a client repeats the messages
without an `ack`, and none is lost or duplicated.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from .names import LONGEST_NAME, is_name


class Invalid(Exception):
    """The message is invalid; the text has the reason. `ref` is the message's ref, if it is readable."""

    def __init__(self, why: str, ref: str | None) -> None:
        super().__init__(why)
        self.ref = ref


class Refused(Exception):
    """The database rejects the message for good. The text has the reason and does not quote the message."""


class Unavailable(Exception):
    """The database is unreachable or has not answered. The client repeats the message with the same ref."""


class Full(Unavailable):
    """The user's quota of the inbox is used up, until the application has processed messages."""

    def __init__(self) -> None:
        super().__init__("the inbox of this user is full; repeat the message later with the same ref")


class Submission(NamedTuple):
    """A message for the application; `data` is JSON text."""

    ref: str
    event: str
    data: str

    @classmethod
    def parse(cls, fields: Any) -> Submission:
        """Read a `publish` message.

        Raises:
            Invalid: the message is invalid.
        """
        if not isinstance(fields, dict):
            raise Invalid("send a JSON object", None)
        ref, event = fields.get("ref"), fields.get("event")
        if not is_name(ref):
            raise Invalid(f'"ref" must be a string of 1 to {LONGEST_NAME} characters, without control characters', None)
        if not is_name(event):
            raise Invalid(
                f'"event" must be a string of 1 to {LONGEST_NAME} characters, without control characters', ref
            )
        try:
            data = json.dumps(fields.get("data", {}), separators=(",", ":"))
        except RecursionError:
            raise Invalid('"data" is nested too deeply', ref) from None
        return cls(ref, event, data)
