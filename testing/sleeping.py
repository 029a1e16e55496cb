"""Sleeping users, and the activators that wake them, on the cluster. Blocking."""

from __future__ import annotations

import json
import re
import urllib.request
from typing import Any

from .patience import PATIENCE_S
from .system import OPERATOR_NAMESPACE, System
from .waiting import eventually

SELECTOR = "app.kubernetes.io/name=userrealtime-activator"
SOON = {"after": "2s"}
"""`spec.idle` of a user that sleeps soon after the last client has left."""


def asleep(system: System, name: str) -> bool:
    """Return whether a user sleeps and has no pod."""
    status = system.get("urt", name).get("status", {})
    conditions = {condition["type"]: condition["status"] for condition in status.get("conditions", [])}
    if conditions.get("Asleep") != "True":
        return False
    return not system.kubectl("get", "pods", "-l", f"app.kubernetes.io/instance={status['name']}", "-o", "name")


def wait_asleep(system: System, *names: str) -> None:
    """Wait until all of them sleep."""
    for name in names:
        eventually(lambda name=name: asleep(system, name), f"{name} sleeps")  # type: ignore[misc]


def slices(system: System, name: str) -> list[dict[str, Any]]:
    """Return the EndpointSlices that route a user's clients to activators, without those on standby."""
    child = system.get("urt", name)["status"]["name"]
    selector = f"kubernetes.io/service-name={child},endpointslice.kubernetes.io/managed-by=userrealtime-operator"
    found = json.loads(system.kubectl("get", "endpointslices", "-l", selector, "-o", "json"))
    return [item for item in found["items"] if any(each["conditions"]["ready"] for each in item["endpoints"])]


def wait_direct(system: System, name: str) -> None:
    """Wait until no EndpointSlice routes a user's clients to the activator."""
    eventually(lambda: not slices(system, name), f"no connection of {name} goes to the activator")
    system.wait_reachable(name)


def activator_pods(system: System) -> list[str]:
    """Return the pods that are not terminating."""
    found = json.loads(system.cluster.kubectl("-n", OPERATOR_NAMESPACE, "get", "pods", "-l", SELECTOR, "-o", "json"))
    pods = [item["metadata"] for item in found["items"]]
    return [metadata["name"] for metadata in pods if "deletionTimestamp" not in metadata]


def activator_total(system: System, sample: str) -> float:
    """Return the sum of a sample over all activators, such as `wakes_requested_total`."""
    total = 0.0
    for pod in activator_pods(system):
        with (
            system.cluster.forward(OPERATOR_NAMESPACE, f"pod/{pod}", 3000) as (host, port),
            urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=PATIENCE_S) as answer,
        ):
            text = answer.read().decode()
        found = re.search(rf"^userrealtime_activator_{re.escape(sample)} (\S+)$", text, re.MULTILINE)
        assert found is not None, f"{sample} is not in:\n{text}"
        total += float(found[1])
    return total
