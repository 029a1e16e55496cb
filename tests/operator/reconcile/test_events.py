"""Which changes of a status become Events."""

from __future__ import annotations

from testing.operator.samples import resource
from userrealtime_operator.kube.types import Object
from userrealtime_operator.reconcile.events import NOTE_LENGTH, events


def condition(kind: str, status: bool, reason: str, message: str = "so it is") -> Object:
    return {"type": kind, "status": str(status), "reason": reason, "message": message}


READY = condition("Ready", True, "PodAvailable")
STARTING = condition("Ready", False, "PodNotReady")
STUCK = condition("Ready", False, "ImagePullFailed")
SLOW = condition("Progressing", True, "ImagePullFailed")


def told(before: list[Object], after: list[Object]) -> list[tuple[str, str]]:
    return [(event["type"], event["reason"]) for event in events(resource(), before, after, "T", "me")]


def test_the_usual_way_makes_none() -> None:
    assert told([], [STARTING]) == told([STARTING], [READY]) == told([READY], [STARTING]) == []


def test_trouble_is_told_once() -> None:
    assert told([STARTING], [STUCK, SLOW]) == [("Warning", "ImagePullFailed")]
    assert told([STUCK, SLOW], [STUCK, SLOW]) == []
    assert told([STARTING, SLOW], [STUCK, SLOW]) == []


def test_its_end_is_told() -> None:
    assert told([STUCK, SLOW], [STARTING]) == told([STUCK, SLOW], [READY]) == [("Normal", "Resolved")]


def test_one_trouble_may_follow_another() -> None:
    other = condition("Ready", False, "Unschedulable")
    assert told([STUCK], [other]) == [("Warning", "Unschedulable"), ("Normal", "Resolved")]


def test_an_event_is_about_the_resource_and_within_the_limits() -> None:
    long = condition("Ready", False, "Refused", "é" * NOTE_LENGTH)
    [event] = events(resource(), [], [long], "T", "m" * 200)
    assert event["regarding"]["uid"] == resource().uid
    assert len(event["note"].encode()) <= NOTE_LENGTH
    assert len(event["reportingInstance"]) <= 128


def test_sleep_and_its_end_are_told() -> None:
    awake, asleep = condition("Asleep", False, "Awake"), condition("Asleep", True, "Idle")
    woken = condition("Asleep", False, "WakeRequested")
    assert told([awake], [asleep]) == [("Normal", "Slept")]
    assert told([asleep], [woken]) == [("Normal", "Woken")]
    assert told([asleep], [asleep]) == told([awake], [woken]) == []
    assert told([], [asleep]) == told([], [awake]) == [], "nothing was known before"


def test_a_user_woken_for_want_of_an_activator() -> None:
    asleep, alone = condition("Asleep", True, "Idle"), condition("Asleep", False, "ActivatorUnavailable")
    assert told([asleep], [alone]) == [("Warning", "ActivatorUnavailable"), ("Normal", "Woken")]
