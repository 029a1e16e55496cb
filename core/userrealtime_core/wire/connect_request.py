"""The request with which a client connects, the subprotocol, and the close codes (docs/protocol.md)."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Final, Literal, NamedTuple
from urllib.parse import parse_qsl

from .position import LogState

SUBPROTOCOL: Final = "userrealtime.v1"
_TOKEN_SUBPROTOCOL: Final = "bearer."  # noqa: S105 (a prefix)

Reason = Literal["too-old", "ahead", "epoch"]


class CloseCode(enum.IntEnum):
    """The close codes that the relay sends. docs/relay.md describes the reaction of a client to each."""

    POLICY_VIOLATION = 1008
    RESTARTING = 1012
    TRY_LATER = 1013
    TOKEN_EXPIRED = 4001
    TOO_SLOW = 4008


class Resume(NamedTuple):
    """Where a client wants to begin: after an event that it has received, or at the head."""

    cursor: int | None = None
    epoch: str | None = None

    def refusal(self, position: LogState) -> Reason | None:
        """Return why the log cannot be read from this position; None if it can."""
        if self.cursor is None:
            return None
        if self.epoch is not None and self.epoch != position.epoch:
            return "epoch"
        if self.cursor > position.head:
            return "ahead"
        if self.cursor < position.earliest - 1:
            return "too-old"
        return None


class ConnectRequest(NamedTuple):
    """The parts of the request that matter. `resume` is None if the cursor is invalid."""

    token: str | None
    resume: Resume | None

    @classmethod
    def parse(
        cls,
        *,
        query: str,
        authorization: Iterable[str],
        last_event_id: Iterable[str],
        subprotocols: Iterable[str] = (),
        query_token: bool = False,
    ) -> ConnectRequest:
        """Parse an HTTP request. Each header may have no value, one or several.

        A `Last-Event-ID` header takes precedence over the URL: an EventSource updates the header, and never the URL.
        For the same reason an id may contain the epoch of its log, as `42:5f0c`, which takes precedence as well.

        Args:
            query_token: whether a token in the URL, `token=`, is accepted if there is no other one.
        """
        tokens = [_bearer(value) for value in authorization]
        tokens += [name[len(_TOKEN_SUBPROTOCOL) :] for name in subprotocols if name.startswith(_TOKEN_SUBPROTOCOL)]
        try:
            parameters = dict(parse_qsl(query, max_num_fields=32))
        except ValueError:
            return cls(tokens[0] if tokens else None, None)
        if query_token and "token" in parameters:
            tokens.append(parameters["token"])
        text = next((value for value in last_event_id if value), "") or parameters.get("last_event_id", "")
        number, _, epoch = text.partition(":")
        resume = None
        if not text:
            resume = Resume(None, parameters.get("epoch"))
        elif number.isascii() and number.isdigit() and len(number) <= 19:
            resume = Resume(int(number), epoch or parameters.get("epoch"))
        return cls(tokens[0] if tokens else None, resume)


def _bearer(authorization: str) -> str:
    """Return the token of an Authorization header; an invalid token if the scheme is another one."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""
