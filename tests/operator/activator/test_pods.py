"""The pod to connect to, and the notification of each change."""

from __future__ import annotations

import asyncio
import time

import pytest

from testing.operator.pods import pod
from testing.patience import PATIENCE_S
from userrealtime_operator.activator.pods import REGISTERED_S, Pods

ALICE = ("users", "urt-alice")


def best(pods: Pods) -> tuple[str, int] | None:
    found = pods.best(ALICE)
    return found and found.address


def test_a_pod_counts_from_its_address_until_it_goes() -> None:
    pods = Pods()
    pods.put(pod(ip=""))
    assert best(pods) is None
    pods.put(pod())
    assert best(pods) == ("10.0.0.1", 8080)
    assert pods.best(("users", "urt-bob")) is None
    pods.put(pod(going=True))
    assert best(pods) is None
    pods.put(pod(phase="Failed"))
    assert best(pods) is None
    pods.put(pod())
    pods.remove(pod())
    assert best(pods) is None


def test_a_pod_exists_before_it_has_an_address() -> None:
    pods = Pods()
    assert not pods.exists(ALICE)
    pods.put(pod("a", ip=""))
    pods.put(pod("b", ip=""))
    pods.put(pod("b", ip="", going=True))
    assert pods.exists(ALICE)
    pods.put(pod("a"))
    assert pods.exists(ALICE)
    pods.put(pod("a", going=True))
    assert not pods.exists(ALICE)
    pods.put(pod("a", ip=""))
    pods.retain("users", {"a"}, 1)
    assert pods.exists(ALICE)
    pods.retain("users", set(), 2)
    assert not pods.exists(ALICE)
    pods.put(pod("a", ip=""))
    pods.remove(pod("a"))
    assert not pods.exists(ALICE)
    pods.add_registered(ALICE, "10.0.0.1")
    assert pods.exists(ALICE)


def test_ready_pods_come_first_then_newer_ones() -> None:
    pods = Pods()
    pods.put(pod("a", "10.0.0.1", ready=True, created=1))
    pods.put(pod("b", "10.0.0.2", created=2))
    assert best(pods) == ("10.0.0.1", 8080)
    pods.put(pod("a", "10.0.0.1", created=1))
    assert best(pods) == ("10.0.0.2", 8080)


def test_a_new_list_forgets_what_is_not_on_it() -> None:
    pods = Pods()
    pods.put(pod("a", "10.0.0.1"))
    pods.put(pod("b", "10.0.0.2", created=1))
    pods.retain("others", set(), 1)
    assert best(pods) == ("10.0.0.2", 8080)
    pods.retain("users", {"a"}, 1)
    assert best(pods) == ("10.0.0.1", 8080)


def test_when_a_user_was_last_ready() -> None:
    pods = Pods()
    pods.put(pod())
    assert pods.last_ready(ALICE) == 0
    pods.put(pod(ready=True))
    first = pods.last_ready(ALICE)
    assert pods.last_ready(ALICE) >= first > 0
    pods.put(pod(going=True))
    gone = pods.last_ready(ALICE)
    assert pods.last_ready(ALICE) == gone >= first


async def test_every_change_is_told_to_all_who_wait() -> None:
    pods = Pods()
    for change in (pod(ip=""), pod(), pod(ready=True), pod(going=True)):
        waiting = [asyncio.create_task(pods.wait_for_change(ALICE)) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        pods.put(change)
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*waiting[1:])
    waiting = [asyncio.create_task(pods.wait_for_change(ALICE))]
    await asyncio.sleep(0)
    pods.put(pod(going=True))  # which was known
    await asyncio.sleep(0)
    assert not waiting[0].done()
    waiting[0].cancel()


async def test_a_registered_pod_is_used_until_the_cluster_reports_one() -> None:
    pods = Pods()
    changed = asyncio.create_task(pods.wait_for_change(ALICE))
    await asyncio.sleep(0)
    pods.add_registered(ALICE, "10.0.0.9")
    await changed
    assert best(pods) == ("10.0.0.9", 8080)
    pods.put(pod(ip=""))  # as the cluster has it, for a second
    assert best(pods) == ("10.0.0.9", 8080)
    pods.put(pod(ip="10.0.0.9"))
    pods.remove(pod())
    assert best(pods) is None


def test_a_pod_from_the_cluster_precedes_a_registered_one() -> None:
    pods = Pods()
    pods.put(pod())
    pods.add_registered(ALICE, "10.0.0.9")
    assert best(pods) == ("10.0.0.1", 8080)


def test_an_announcement_does_not_count_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    pods = Pods()
    pods.add_registered(ALICE, "10.0.0.9")
    later = time.monotonic() + REGISTERED_S
    monkeypatch.setattr("userrealtime_operator.activator.pods.time.monotonic", lambda: later)
    assert best(pods) is None
    pods.add_registered(("users", "urt-bob"), "10.0.0.8")
    assert best(pods) is None
