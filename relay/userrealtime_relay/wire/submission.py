"""What a client publishes: a message for the application, named by a `ref` of the client's own.

It is stored once, however often it is repeated with the same ref. So whatever goes wrong, a client repeats what has no
`ack`, and nothing is lost or doubled.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final, NamedTuple, TypeGuard

LONGEST_NAME: Final = 253
"""Characters of a ref or the name of an event, as userrealtime.submit checks it."""


class Invalid(Exception):
    """What a client has sent is no message. Says why; `ref` is what it calls it, if that can be told."""

    def __init__(self, why: str, ref: str | None) -> None:
        super().__init__(why)
        self.ref = ref


class Refused(Exception):
    """The database will not have a message, now or ever. Says why, without quoting it."""


class Unavailable(Exception):
    """The database cannot be asked, or has not answered: to be repeated with the same ref."""


class Submission(NamedTuple):
    """A message for the application; `data` is JSON text."""

    ref: str
    event: str
    data: str

    @classmethod
    def parse(cls, fields: Any) -> Submission:
        """Read a `publish` message.

        Raises:
            Invalid: it is none.
        """
        if not isinstance(fields, dict):
            raise Invalid("send a JSON object", None)
        ref, event = fields.get("ref"), fields.get("event")
        if not _is_name(ref):
            raise Invalid(f'"ref" must be a string of 1 to {LONGEST_NAME} characters, none of them a control one', None)
        if not _is_name(event):
            raise Invalid(
                f'"event" must be a string of 1 to {LONGEST_NAME} characters, none of them a control one', ref
            )
        try:
            data = json.dumps(fields.get("data", {}), separators=(",", ":"))
        except RecursionError:
            raise Invalid('"data" is nested too deeply', ref) from None
        return cls(ref, event, data)


def _is_name(value: Any) -> TypeGuard[str]:
    # Half of a surrogate pair is a character to JSON, but not to UTF-8.
    return (
        isinstance(value, str)
        and 1 <= len(value) <= LONGEST_NAME
        and re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", value) is None
    )
