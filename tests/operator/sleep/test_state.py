"""The record of a sleeping user in the Deployment."""

from __future__ import annotations

from typing import Any

import pytest

from userrealtime_operator.sleep.state import MAX_ADDRESSES, Asleep, asleep, ready_addresses, wake_pending

SLEEPING = Asleep("2026-01-02T03:04:05.000006Z", "2026-01-01T00:00:00.000000Z")


def deployment(replicas: int | None = 0, annotations: dict[str, str] | None = None) -> dict[str, Any]:
    spec = {} if replicas is None else {"replicas": replicas}
    return {"metadata": {"annotations": SLEEPING.annotations() if annotations is None else annotations}, "spec": spec}


def test_the_deployment_says_it() -> None:
    assert asleep(deployment()) == SLEEPING


@pytest.mark.parametrize("live", [None, deployment(1), deployment(None), deployment(0, {})])
def test_replicas_or_annotations_alone_do_not(live: dict[str, Any] | None) -> None:
    assert asleep(live) is None


@pytest.mark.parametrize(
    ("requested", "pending"),
    [
        (None, True),  # it was removed manually, and therefore differs
        ("2026-01-01T00:00:00.000000Z", False),
        ("2026-01-03T00:00:00.000000Z", True),
        ("2025-01-01T00:00:00.000000Z", True),  # a request with a wrong clock also wakes the user
    ],
)
def test_any_other_request_than_the_one_seen_is_one(requested: str | None, pending: bool) -> None:
    body = {"status": {"wakeRequestedAt": requested}}
    assert wake_pending(body, deployment()) is pending
    assert not wake_pending(body, deployment(1))
    assert not wake_pending(body, None)


def test_a_resource_without_a_status_asks_for_nothing() -> None:
    assert not wake_pending({}, deployment(annotations=Asleep("x", "").annotations()))


def endpoint(address: str, ready: bool | None = True) -> dict[str, Any]:
    return {"addresses": [address], "conditions": {} if ready is None else {"ready": ready}}


def test_the_addresses_that_are_ready_by_family() -> None:
    slices: list[dict[str, Any]] = [
        {"addressType": "IPv4", "endpoints": [endpoint("10.0.0.2"), endpoint("10.0.0.9", False)]},
        {"addressType": "IPv4", "endpoints": [endpoint("10.0.0.1", None), endpoint("10.0.0.2")]},
        {"addressType": "IPv6", "endpoints": [endpoint("fd00::1")]},
        {"addressType": "IPv6", "endpoints": None},
    ]
    assert ready_addresses(slices) == {"IPv4": ("10.0.0.1", "10.0.0.2"), "IPv6": ("fd00::1",)}
    assert ready_addresses([]) == {}


def test_a_slice_is_not_filled_beyond_measure() -> None:
    many = [endpoint(f"10.0.{number // 250}.{number % 250}") for number in range(MAX_ADDRESSES + 5)]
    assert len(ready_addresses([{"addressType": "IPv4", "endpoints": many}])["IPv4"]) == MAX_ADDRESSES
