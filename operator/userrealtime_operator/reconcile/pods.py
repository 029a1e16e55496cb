"""The reasons for which a pod does not serve, with advice. Pure.

The kubelet's reasons and messages change with every attempt ("ErrImagePull", "ImagePullBackOff", "back-off 40s"). Here
the same problem always has the same text, and is therefore written to the status once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from userrealtime_operator.model.conditions import ConditionResult

_IMAGE = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"})
_CONTAINER = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
_CRASH = "CrashLoopBackOff"


def pod_trouble(pods: Iterable[Mapping[str, Any]]) -> ConditionResult | None:
    """Return why the newest pod of a user does not serve, None if no reason is known."""
    living = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
    if not living:
        return None
    pod = max(living, key=lambda item: str(item["metadata"]["creationTimestamp"]))
    status = pod.get("status", {})
    for condition in status.get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return ConditionResult(False, "Unschedulable", f"no node can run the pod: {condition.get('message', '')}")
    for container in status.get("containerStatuses", ()):
        if found := _container_trouble(container):
            return found
    return None


def _container_trouble(container: Mapping[str, Any]) -> ConditionResult | None:
    waiting = container.get("state", {}).get("waiting", {})
    reason, message = waiting.get("reason", ""), waiting.get("message", "")
    if reason in _IMAGE:
        cause = message.rpartition("ErrImagePull: ")[2]
        advice = "check spec.relay.image, or the chart's relay.image and imagePullSecrets"
        return ConditionResult(
            False, "ImagePullFailed", f"image {container['image']} cannot be pulled; {advice}: {cause}"
        )
    if reason in _CONTAINER:
        return ConditionResult(False, reason, f"the container cannot be started: {message}")
    if reason == _CRASH:
        ended = container.get("lastState", {}).get("terminated", {})
        if ended.get("reason") == "OOMKilled":
            return ConditionResult(
                False, "OOMKilled", "the relay needs more memory than spec.relay.resources.limits.memory"
            )
        code = ended.get("exitCode", "unknown")
        return ConditionResult(False, _CRASH, f"the relay exited with status {code}; see its log: kubectl logs")
    return None
