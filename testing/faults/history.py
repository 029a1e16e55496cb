"""The expected history, recorded by the test, and the check of a client's transcript.

The history is read from the log's tables, over a connection of the test's own, before anything is taken away from them
and at the end; nothing in it comes from a relay. Each incarnation of the log, an *epoch*, has its own numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from .client import Asked, Entry, Place


class Violation(AssertionError):
    """A guarantee was violated. The message contains the client, the guarantee, and the place in the transcript."""


class Row(NamedTuple):
    """One event of the log, as a client must receive it."""

    event: str
    at: str
    data: Any


class History:
    """All events that were ever committed to one user's log."""

    def __init__(self) -> None:
        self.epochs: dict[str, dict[int, Row]] = {}
        """The epochs in order, of which the last is the current one. Each has all of its events by number."""
        self.let_go: dict[str, int] = {}
        """The highest number that retention has removed, by epoch; 0 if none."""

    @property
    def epoch(self) -> str:
        return next(reversed(self.epochs))

    @property
    def head(self) -> int:
        return max(self.epochs[self.epoch], default=self.let_go[self.epoch])

    def see(self, epoch: str, rows: Iterable[tuple[int, Row]]) -> None:
        """Add the current events of the log.

        Raises:
            Violation: the log itself breaks its word: a number means two events, or there is a gap.
        """
        known = self.epochs.setdefault(epoch, {})
        self.let_go.setdefault(epoch, 0)
        for number, row in rows:
            if known.setdefault(number, row) != row:
                raise Violation(f"the log has two events {number}: {known[number]} and {row}")
        numbers = sorted(known)
        if numbers and numbers != list(range(numbers[0], numbers[-1] + 1)):
            raise Violation(f"the log has gaps: {numbers}")

    def superseded(self, epoch: str | None, by: str | None) -> bool:
        """Return whether one epoch is older than the other."""
        order = list(self.epochs)
        return epoch in order and by in order and order.index(epoch) < order.index(by)


def judge(name: str, transcript: Sequence[Entry], history: History) -> None:
    """Whether one client has every event once, in order, as committed, up to the head, or got a reset for each gap.

    Raises:
        Violation: it has not, or got a reset without a gap.
    """
    place = Place()
    greeted = reset_due = False
    for index, entry in enumerate(transcript):

        def wrong(what: str, index: int = index, entry: Entry = entry) -> Violation:
            before = "".join(f"\n    {part}" for part in transcript[max(0, index - 4) : index])
            return Violation(f"{name} was at {place.cursor} of {place.epoch}: {what}{before}\n  > {entry}")

        if isinstance(entry, Asked):
            greeted = reset_due = False
            if entry != (place.cursor, place.epoch):
                raise wrong("it resumes from somewhere else")
            continue
        message = entry.message
        kind = message["type"]
        if (kind == "connected") == greeted:
            raise wrong("`connected` comes first, and once")
        if reset_due and kind != "reset":
            raise wrong("a greeting elsewhere must be followed by `reset`")
        if kind == "connected":
            greeted = True
            reset_due = place.cursor is not None and (
                message["cursor"] != place.cursor or place.epoch not in (None, message["epoch"])
            )
        elif kind == "event":
            if message["id"] != (place.cursor or 0) + 1:
                raise wrong("a gap, a double, or events out of order")
            row = Row(message["event"], message["at"], message["data"])
            if history.epochs.get(place.epoch or history.epoch, {}).get(message["id"]) != row:
                raise wrong("this is not the event that was committed under this number")
        elif kind == "reset":
            _judge_reset(message, place, history, wrong)
            reset_due = False
        else:
            raise wrong("this was not asked for")
        place.hear(message)
        if kind != "event" and place.epoch is not None and place.epoch not in history.epochs:
            raise wrong("there never was such an epoch")
    if (place.epoch, place.cursor) != (history.epoch, history.head):
        raise Violation(
            f"{name} ended at {place.cursor} of {place.epoch}; the log is at {history.head} of {history.epoch}"
        )


def _judge_reset(message: dict[str, Any], place: Place, history: History, wrong: Any) -> None:
    """Return whether a client's reset has a reason."""
    replaced = history.superseded(place.epoch, history.epoch)
    match message["reason"]:
        case "epoch":
            if not history.superseded(place.epoch, message["epoch"]):
                raise wrong("reset, though its log was not replaced")
        case "too-old":
            # The missing end of a restored log may appear as a missing beginning, until the epoch is read.
            if not replaced and history.let_go.get(place.epoch or "", 0) <= (place.cursor or 0):
                raise wrong("reset, though the log holds all that follows")
        case _:
            raise wrong("there was no reason for this reset")
