"""The id of a request, in its log lines here and in the proxies before it.

A valid `X-Request-Id` of a proxy is used; otherwise an id is generated. The response contains it.
"""

from __future__ import annotations

import re
import secrets
from typing import Final

from userrealtime_core import logging_setup
from userrealtime_core.wire.cors import REQUEST_ID

HEADER: Final = REQUEST_ID
# What is safe in a header and in any log: no more than a UUID, a trace id or a ULID needs.
_GOOD: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")

current: Final = logging_setup.request_id


def adopt(given: str | None) -> str:
    """Return the id of a request, and make it the `current` one. `given` is the header of the request."""
    request_id = given if given is not None and _GOOD.fullmatch(given) else secrets.token_hex(16)
    current.set(request_id)
    return request_id
