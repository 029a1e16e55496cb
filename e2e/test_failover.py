"""The operator's two pods on a cluster: when one ends, the other takes over. `test_leader` tests which may write."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from testing.patience import WITHIN
from testing.processes import processes_with
from testing.system import OPERATOR_NAMESPACE, RELEASE, System
from testing.waiting import eventually

from .conftest import RUN

LEASE = f"{RELEASE}-operator"


def leader(system: System) -> str:
    """Return the name of the pod that holds the Lease."""
    holder = ("-n", OPERATOR_NAMESPACE, "get", "lease", LEASE, "-o", "jsonpath={.spec.holderIdentity}")
    return system.cluster.kubectl(*holder).rpartition("_")[0]


@pytest.fixture
def late(system: System) -> Iterator[str]:
    """The name of a new user, which is removed afterwards."""
    name = f"late-{RUN}"
    yield name
    system.delete_user(name)


@pytest.mark.parametrize("end", ["killed", "deleted"])
def test_the_leaders_pod_ends_and_the_other_acts(system: System, late: str, end: str) -> None:
    pods = ("-n", OPERATOR_NAMESPACE, "rollout", "status", f"deployment/{RELEASE}", WITHIN)
    system.cluster.kubectl(*pods)
    eventually(lambda: leader(system) != "", "a leader")
    old = leader(system)
    if end == "killed":
        victims = processes_with("POD_ID", old)
        if not victims:
            pytest.skip("the cluster's processes are not on this machine, or not to be seen: none can be killed")
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
    else:
        system.cluster.kubectl("-n", OPERATOR_NAMESPACE, "delete", "pod", old, "--wait=false")
    begin = time.monotonic()
    system.apply_user(late)
    eventually(lambda: "observedGeneration" in system.get("urt", late).get("status", {}), "the user is served")
    print(
        f"\nthe leader's pod was {end}: a new user's objects were there after {time.monotonic() - begin:.1f} s", end=""
    )
    if end == "deleted":
        assert leader(system) != old  # a killed container restarts, and can be the first to get the lease
    system.wait_ready(late)
    print(f", the user's pod ready after {time.monotonic() - begin:.1f} s")
