"""The protocol with one client, without I/O and without a clock.

A transport creates a session from the connect request, passes the client's messages and the state of the log to it, and
carries out its results: `take` the messages to send, `tick` at `deadline`, answer `question` with `locate`, and close
once `closing` is set. The session does not handle events: while there is no question, the transport sends the events
after `cursor`, and advances it.

    authenticating --token--> open: "where is the log?" --locate--> open, with a cursor --> closing

A token may also raise a question before it is accepted: which signing keys are current? `retry` answers it.

If the log cannot serve a cursor, the client receives `reset`: no gap is silent. Before a cursor that is ahead, or of
another epoch, is rejected, the log is read: another relay may have sent events that this one has not read yet.
"""

from __future__ import annotations

import enum
import json
import math
import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from userrealtime_core.auth.errors import KeySetStale, Unauthorized

from .broadcast import Content, InvalidBroadcast
from .connect_request import CloseCode, ConnectRequest, Reason, Resume
from .position import LogState
from .rate_limit import TokenBucket
from .submission import Invalid, Refused, Submission, Unavailable

MAX_ERRORS: Final = 10
"""Invalid messages on one connection before it is closed."""
MAX_EARLY: Final = 8
"""Messages that may arrive while the signing keys are fetched."""
BROADCASTS_DISABLED: Final = (
    "broadcasts of clients are disabled for this user; set spec.limits.broadcastsPerSecond of the UserRealtime"
)
TOO_MANY_BROADCASTS: Final = "too many broadcasts: this one was dropped; send fewer than the limit of this user"


class CloseFrame(NamedTuple):
    code: CloseCode
    reason: str


TOO_MANY_MESSAGES: Final = CloseFrame(CloseCode.TRY_LATER, "Too many messages")
UNAUTHORIZED: Final = CloseFrame(CloseCode.POLICY_VIOLATION, "Unauthorized")


class PendingLookup(enum.Enum):
    """What the session must know before it continues."""

    POSITION = enum.auto()
    """The state of the log, as last known."""
    FRESH_POSITION = enum.auto()
    """The state of the log, read again."""
    KEYS = enum.auto()
    """The current signing keys, fetched again. Answered by `retry`."""


class Session:
    """One client. `now` is in seconds, of any clock that only goes forward.

    Args:
        verify: returns for how many seconds a token is still valid; raises Unauthorized or KeySetStale.
        auth_timeout: seconds within which the client must authenticate.
        messages_per_second: the limit of the client's messages, and of a burst.
        broadcasts: the limit of broadcasts, which several sessions may share. None: the client may not send any.
    """

    __slots__ = (
        "_allowance",
        "_broadcast_allowance",
        "_early",
        "_errors",
        "_greeted",
        "_messages",
        "_resume",
        "_resume_understood",
        "_token",
        "_user_id",
        "_verify",
        "authenticated",
        "broadcast_failures",
        "broadcasts",
        "closing",
        "cursor",
        "deadline",
        "epoch",
        "question",
        "renewing",
        "submissions",
    )

    def __init__(
        self,
        opening: ConnectRequest,
        *,
        user_id: str,
        verify: Callable[[str], float],
        auth_timeout: float,
        now: float,
        messages_per_second: float = math.inf,
        broadcasts: TokenBucket | None = None,
    ) -> None:
        self._user_id = user_id
        self._verify = verify
        self._messages: list[str] = []
        self._allowance = TokenBucket(messages_per_second, now)
        self._broadcast_allowance = broadcasts
        self._errors = 0
        self._early: list[str | bytes] = []
        self._token = ""  # waits for keys
        self._greeted = False
        self._resume = opening.resume or Resume()
        self._resume_understood = opening.resume is not None
        self.authenticated = False
        self.cursor = 0
        """The number after which the client receives events; meaningless while there is a question."""
        self.epoch: str | None = None
        """The epoch that the client knows."""
        self.question: PendingLookup | None = None
        self.submissions: list[Submission] = []
        """Messages that the client published. Take them from here, store them, and `acknowledge` each of them."""
        self.broadcasts: list[Content] = []
        """Broadcasts that the client sends to the other clients of its user. Take them from here."""
        self.broadcast_failures: list[str] = []
        """Why broadcasts of the client were not sent: `disabled`, `limited` or `invalid`. Take them from here."""
        self.renewing = False
        """Whether a new token waits for keys. Fetch them, and call `renew`."""
        self.closing: CloseFrame | None = None
        self.deadline = now + auth_timeout
        """When to call `tick`."""
        if opening.token is not None:
            self._authenticate(opening.token, now)

    @property
    def resumes(self) -> bool:
        """Whether the client has sent a cursor."""
        return self._resume.cursor is not None

    def take(self) -> list[str]:
        """Return the messages to send now, in order, and remove them. `connected` comes before all others."""
        if not self._greeted and self.closing is None:
            return []
        messages, self._messages = self._messages, []
        return messages

    def close(self, code: CloseCode, reason: str) -> None:
        """Close, unless the session is closing already."""
        if self.closing is None:
            self.closing = CloseFrame(code, reason)
            self.question = None

    def tick(self, now: float) -> None:
        """Check the deadline."""
        if now >= self.deadline:
            if self.authenticated:
                self.close(CloseCode.TOKEN_EXPIRED, "Token expired")
            else:
                self.close(*UNAUTHORIZED)

    def receive(self, message: str | bytes, now: float) -> None:
        """Process one message of the client."""
        if self.closing is not None:
            return
        if not self._allowance.take(now):
            self.close(*TOO_MANY_MESSAGES)
        elif self.question is PendingLookup.KEYS:
            self._early.append(message)
            if len(self._early) > MAX_EARLY:
                self.close(CloseCode.POLICY_VIOLATION, "Too many messages before being authenticated")
        else:
            self._understand(message, now)

    def _understand(self, message: str | bytes, now: float) -> None:
        if self.closing is not None:
            return
        fields = _fields(message)
        if not self.authenticated:
            token = fields.get("token") if fields is not None and fields.get("type") == "auth" else None
            if isinstance(token, str):
                self._authenticate(token, now)
            else:
                self.close(*UNAUTHORIZED)
        elif fields is None and isinstance(message, str) and (begin := _PUBLISH.match(message)):
            # Without the ref, the client would wait for an acknowledgement and repeat the message forever.
            self._error(
                "invalid-publish",
                "this cannot be parsed: no JSON, nested too deeply, or a number too long",
                ref=json.loads(begin[1]),
            )
        elif fields is None:
            self._error("invalid-message", 'send a JSON object with a "type", as a text message')
        elif fields["type"] == "resume":
            self._receive_resume(fields)
        elif fields["type"] == "publish":
            self._receive_publish(fields)
        elif fields["type"] == "auth":
            token = fields.get("token")
            self._token = token if isinstance(token, str) else ""
            self._renew(now)
        elif fields["type"] == "ping":
            self._pong()
        elif fields["type"] == "broadcast":
            self._receive_broadcast(fields, now)
        else:
            types = '"auth", "broadcast", "ping", "publish" and "resume"'
            self._error("unknown-type", f"the types understood here are {types}")

    def acknowledge(self, ref: str, outcome: int | Refused | Unavailable) -> None:
        """Answer the message that the client published as `ref`: with its id, or with the reason of the failure."""
        if isinstance(outcome, int):
            self._send(type="ack", ref=ref, id=outcome)
        else:
            code = "refused" if isinstance(outcome, Refused) else "unavailable"
            self._send(type="error", code=code, message=str(outcome), ref=ref)

    def retry(self, now: float) -> None:
        """Answer `PendingLookup.KEYS`: they were fetched, with or without success."""
        if self.question is not PendingLookup.KEYS:
            return  # closed meanwhile
        self.question = None
        self._authenticate(self._token, now)
        if self.question is PendingLookup.KEYS:
            self.close(CloseCode.TRY_LATER, "Signing keys unavailable")
        self._token = ""
        early, self._early = self._early, []
        for message in early:
            self._understand(message, now)

    def locate(self, position: LogState) -> Reason | None:
        """Answer `question`; it may be followed by another.

        Returns:
            the reason if the client was reset.
        """
        resume = self._resume
        refusal = resume.refusal(position)
        if refusal in ("ahead", "epoch") and self.question is not PendingLookup.FRESH_POSITION:
            self.question = PendingLookup.FRESH_POSITION
            return None
        self.question = None
        self.epoch = position.epoch
        self.cursor = position.head if refusal is not None or resume.cursor is None else resume.cursor
        if not self._greeted:
            self._greeted = True
            greeting = _encode(
                type="connected",
                userId=self._user_id,
                cursor=self.cursor,
                epoch=position.epoch,
                earliest=position.earliest,
            )
            self._messages.insert(0, greeting)
        if refusal is not None:
            self.reset(refusal, position)
        return refusal

    def reset_to_new_log(self, position: LogState) -> Reason:
        """Continue at the head of a log that was replaced or is shorter than before. Return the reason of the reset."""
        reason: Reason = "ahead" if position.epoch == self.epoch else "epoch"
        self.reset(reason, position)
        return reason

    def reset(self, reason: Reason, position: LogState) -> None:
        """Report to the client that it will not receive the events up to the head, and continue at the head."""
        self.epoch = position.epoch
        self.cursor = position.head
        self._send(
            type="reset",
            reason=reason,
            cursor=position.head,
            epoch=position.epoch,
            earliest=position.earliest,
        )

    def _authenticate(self, token: str, now: float) -> None:
        try:
            remaining = self._verify(token)
        except Unauthorized:
            self.close(*UNAUTHORIZED)
            return
        except KeySetStale:
            self._token = token
            self.question = PendingLookup.KEYS
            return
        if not self._resume_understood:
            self.close(CloseCode.POLICY_VIOLATION, "Invalid last_event_id: send the id of an event, a whole number")
            return
        self.authenticated = True
        self.deadline = now + remaining
        self.question = PendingLookup.POSITION

    def renew(self, now: float) -> None:
        """Answer `renewing`: the keys were fetched, with or without success."""
        self._renew(now)
        if self.renewing:
            self.renewing = False
            self._token = ""
            self._send(
                type="error", code="unavailable", message="signing keys are temporarily unavailable; retry later"
            )

    def _renew(self, now: float) -> None:
        self.renewing = False
        try:
            remaining = self._verify(self._token)
        except Unauthorized:
            self.close(*UNAUTHORIZED)
            return
        except KeySetStale:
            self.renewing = True
            return
        self._token = ""
        self.deadline = now + remaining
        self._send(type="renewed", expiresIn=int(remaining))

    def _pong(self) -> None:
        # One pong answers all pings before it, so the queue of a client that is not located yet stays short.
        if self._messages[-1:] != [_PONG]:
            self._messages.append(_PONG)

    def _receive_publish(self, fields: dict[str, Any]) -> None:
        try:
            self.submissions.append(Submission.parse(fields))
        except Invalid as error:
            self._error("invalid-publish", str(error), **({} if error.ref is None else {"ref": error.ref}))

    def _receive_broadcast(self, fields: dict[str, Any], now: float) -> None:
        if self._broadcast_allowance is None:
            self._drop_broadcast("disabled", "broadcasts-disabled", BROADCASTS_DISABLED)
        elif not self._broadcast_allowance.take(now):
            self._drop_broadcast("limited", "too-many-broadcasts", TOO_MANY_BROADCASTS)
        else:
            try:
                self.broadcasts.append(Content.parse(fields.get("event"), fields.get("data", {})))
            except InvalidBroadcast as error:
                self._drop_broadcast("invalid", "invalid-broadcast", str(error))

    def _drop_broadcast(self, reason: str, code: str, message: str) -> None:
        # Not counted as an error: a broadcast that is lost is no reason to close the connection of the events.
        self.broadcast_failures.append(reason)
        self._send(type="error", code=code, message=message)

    def _receive_resume(self, fields: dict[str, Any]) -> None:
        cursor, epoch = fields.get("lastEventId"), fields.get("epoch")
        if type(cursor) is not int or cursor < 0:
            self._error("invalid-resume", '"lastEventId" must be the id of an event, a whole number')
        elif epoch is not None and not isinstance(epoch, str):
            self._error("invalid-resume", '"epoch" must be the string that "connected" gave')
        else:
            self._resume = Resume(cursor, epoch)
            self.question = PendingLookup.POSITION

    def _error(self, code: str, message: str, **more: str) -> None:
        self._errors += 1
        self._send(type="error", code=code, message=message, **more)
        if self._errors >= MAX_ERRORS:
            self.close(CloseCode.POLICY_VIOLATION, "Too many errors")

    def _send(self, **fields: object) -> None:
        self._messages.append(_encode(**fields))


def _encode(**fields: object) -> str:
    return json.dumps(fields, separators=(",", ":"))


_PONG: Final = _encode(type="pong")


_PUBLISH: Final = re.compile(r'\s*\{\s*"type"\s*:\s*"publish"\s*,\s*"ref"\s*:\s*("[^"\\\x00-\x1f]{1,253}")\s*,')
"""The begin of a `publish` message as the clients write it; its ref is still readable if its data is not."""


def _fields(message: str | bytes) -> dict[str, Any] | None:
    """The message's fields, if it is a JSON object with a type."""
    if isinstance(message, bytes):
        return None
    try:
        fields = json.loads(message)
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) and isinstance(fields.get("type"), str) else None
