"""The decision to lead, from the observed lease and the local clock."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from userrealtime_operator.kube.lease import Action, Seen, Settings, decide, lease_spec

SETTINGS = Settings(duration=12, renew_deadline=8, retry=2)
AT = datetime(2030, 1, 1, tzinfo=UTC)


def lease(holder: str, version: str = "1", **spec: Any) -> dict[str, Any]:
    return {"metadata": {"resourceVersion": version}, "spec": {"holderIdentity": holder, **spec}}


@pytest.mark.parametrize(
    ("seen", "renewed", "now", "action"),
    [
        (None, None, 0, Action.ACQUIRE),
        (lease(""), None, 0, Action.ACQUIRE),
        (lease("other"), None, 11.9, Action.WAIT),
        (lease("other"), None, 12, Action.ACQUIRE),
        (lease("other", leaseDurationSeconds=30), None, 29.9, Action.WAIT),
        (lease("other", leaseDurationSeconds=30), None, 30, Action.ACQUIRE),
        (lease("other", leaseDurationSeconds=1), None, 11.9, Action.WAIT),
        (lease("me"), None, 0, Action.ACQUIRE),
        (lease("me"), 0, 7.9, Action.RENEW),
        (lease("me"), 0, 8, Action.LOST),
        (lease("other"), 0, 1, Action.LOST),
        (None, 0, 1, Action.LOST),
    ],
)
def test_what_to_do(seen: dict[str, Any] | None, renewed: float | None, now: float, action: Action) -> None:
    assert decide(Seen(seen, since=0), "me", renewed, now, SETTINGS) is action


def test_waiting_begins_anew_with_every_change_and_only_then() -> None:
    seen = Seen(lease("other", "1"), 0).observe(lease("other", "1"), 5)
    assert seen.since == 0
    assert seen.observe(lease("other", "2"), 6).since == 6


def test_times_written_by_others_decide_nothing() -> None:
    for time in ("1970-01-01T00:00:00.000000Z", "2999-01-01T00:00:00.000000Z"):
        assert decide(Seen(lease("other", renewTime=time), 0), "me", None, 11, SETTINGS) is Action.WAIT


@given(
    renewed=st.floats(0, 100),
    read_after=st.floats(0, 50),
    now=st.floats(0, 200),
)
def test_nobody_acquires_while_the_holder_may_work(renewed: float, read_after: float, now: float) -> None:
    """The other candidate cannot have read the renewal before it was sent."""
    holder_works = decide(Seen(lease("a"), renewed), "a", renewed, now, SETTINGS) is Action.RENEW
    other = decide(Seen(lease("a"), renewed + read_after), "b", None, now, SETTINGS)
    assert not (holder_works and other is Action.ACQUIRE)


def test_a_claim_counts_changes_of_the_holder() -> None:
    first = lease_spec(None, "a", AT, SETTINGS)
    again = lease_spec({"metadata": {}, "spec": first}, "a", AT, SETTINGS)
    second = lease_spec({"metadata": {}, "spec": again}, "b", AT, SETTINGS)
    assert [spec["leaseTransitions"] for spec in (first, again, second)] == [0, 0, 1]
    assert first["renewTime"] == "2030-01-01T00:00:00.000000Z"


@pytest.mark.parametrize("change", [{"retry": 8.0}, {"renew_deadline": 12.0}, {"retry": 0.0}])
def test_settings_that_cannot_hold_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="retry < renew_deadline < duration"):
        dataclasses.replace(SETTINGS, **change)
