"""The judge: it accepts correct histories, and finds every violation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from testing.faults.client import Asked, Entry, Heard
from testing.faults.history import History, Row, Violation, judge


def row(text: str) -> Row:
    return Row("test.event", "2026-01-01T00:00:00.000000Z", {"text": text})


@pytest.fixture
def history() -> History:
    """Ten events, of which retention removes three. The log is then restored to eight events, and two others follow."""
    history = History()
    history.see("first", [(number, row(f"first {number}")) for number in range(1, 11)])
    history.let_go["first"] = 3
    history.see("second", [(number, row(f"first {number}")) for number in range(4, 9)])
    history.let_go["second"] = 3
    history.see("second", [(number, row(f"second {number}")) for number in (9, 10)])
    return history


def connected(cursor: int, epoch: str) -> Heard:
    return Heard({"type": "connected", "cursor": cursor, "epoch": epoch})


def reset(reason: str, cursor: int, epoch: str) -> Heard:
    return Heard({"type": "reset", "reason": reason, "cursor": cursor, "epoch": epoch})


def events(epoch: str, *numbers: int) -> list[Heard]:
    return [
        Heard(
            {
                "type": "event",
                "id": number,
                **row(f"{'first' if number < 9 else epoch} {number}")._asdict(),
            }
        )
        for number in numbers
    ]


NEW = Asked(None, None)
GOOD: dict[str, list[Entry]] = {
    "from the head": [NEW, connected(9, "second"), *events("second", 10)],
    "nothing new": [NEW, connected(10, "second")],
    "cut off and resumed": [
        NEW,
        connected(7, "second"),
        *events("second", 8),
        Asked(8, "second"),
        Asked(8, "second"),
        connected(8, "second"),
        *events("second", 9, 10),
    ],
    "reset while connected": [
        NEW,
        connected(8, "first"),
        *events("first", 9, 10),
        reset("epoch", 8, "second"),
        *events("second", 9, 10),
    ],
    "reset on resuming": [
        NEW,
        connected(1, "first"),
        *events("first", 2),
        Asked(2, "first"),
        connected(10, "second"),
        reset("epoch", 10, "second"),
    ],
    "too old": [
        NEW,
        connected(1, "first"),
        Asked(1, "first"),
        connected(10, "first"),
        reset("too-old", 10, "first"),
        reset("epoch", 10, "second"),
    ],
    "cut off before the reset": [
        NEW,
        connected(10, "first"),
        Asked(10, "first"),
        connected(9, "second"),
        Asked(10, "first"),
        connected(10, "second"),
        reset("epoch", 10, "second"),
    ],
}
BAD: dict[str, list[Entry]] = {
    "nothing heard": [NEW],
    "an event is missing": [NEW, connected(7, "second"), *events("second", 8, 10)],
    "the first event is missing": [NEW, connected(7, "second"), *events("second", 9, 10)],
    "the last event is missing": [NEW, connected(7, "second"), *events("second", 8, 9)],
    "an event comes twice": [NEW, connected(7, "second"), *events("second", 8, 8, 9, 10)],
    "two events change places": [NEW, connected(7, "second"), *events("second", 9, 8, 10)],
    "another event's contents": [NEW, connected(8, "second"), *events("first", 9), *events("second", 10)],
    "an event beyond the log": [NEW, connected(10, "second"), *events("second", 11)],
    "an event comes again after resuming": [
        NEW,
        connected(8, "second"),
        *events("second", 9),
        Asked(9, "second"),
        connected(9, "second"),
        *events("second", 9, 10),
    ],
    "a gap after resuming, unsaid": [
        NEW,
        connected(7, "second"),
        Asked(7, "second"),
        connected(9, "second"),
        *events("second", 10),
    ],
    "another log, unsaid": [
        NEW,
        connected(9, "first"),
        Asked(9, "first"),
        connected(9, "second"),
        *events("second", 10),
    ],
    "the old log for ever": [NEW, connected(8, "first"), *events("first", 9, 10)],
    "a reset without a reason": [NEW, connected(7, "second"), reset("too-old", 10, "second")],
    "a reset to the same log": [NEW, connected(7, "second"), reset("epoch", 10, "second")],
    "a reset to an older log": [NEW, connected(7, "second"), reset("epoch", 10, "first")],
    "ahead, which nobody was": [NEW, connected(7, "second"), reset("ahead", 10, "second")],
    "an epoch out of thin air": [NEW, connected(10, "third")],
    "no greeting": [NEW, *events("second", 1)],
    "two greetings": [NEW, connected(10, "second"), connected(10, "second")],
    "an error": [NEW, connected(10, "second"), Heard({"type": "error", "code": "invalid-message"})],
    "resumed from elsewhere": [NEW, connected(8, "second"), Asked(9, "second"), *events("second", 10)],
}


@pytest.mark.parametrize("transcript", GOOD.values(), ids=GOOD)
def test_what_is_right_is_let_pass(transcript: Sequence[Entry], history: History) -> None:
    judge("a client", transcript, history)
    assert (history.epoch, history.head) == ("second", 10)


@pytest.mark.parametrize("transcript", BAD.values(), ids=BAD)
def test_what_is_wrong_is_found(transcript: Sequence[Entry], history: History) -> None:
    with pytest.raises(Violation, match="a client"):
        judge("a client", transcript, history)


@pytest.mark.parametrize("rows", [[(1, row("one")), (3, row("three"))], [(1, row("one")), (1, row("another"))]])
def test_a_log_that_breaks_its_word_is_found(rows: list[tuple[int, Any]]) -> None:
    with pytest.raises(Violation, match="the log has"):
        History().see("first", rows)


def test_the_head_of_a_log_that_has_let_go_of_all_its_events_is_known() -> None:
    history = History()
    history.see("first", [])
    assert history.head == 0
    history.let_go["first"] = 5
    assert history.head == 5
