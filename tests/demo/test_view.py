from __future__ import annotations

from typing import Any

import pytest

from examples.demo.view import describe, describe_pod


def resource(**conditions: str) -> dict[str, Any]:
    told = [
        {"type": name, "status": status, "reason": f"{name}Reason", "message": f"{name} message"}
        for name, status in conditions.items()
    ]
    return {"metadata": {"name": "alice"}, "status": {"conditions": told}}


def pod(
    name: str = "a", *, ready: bool = True, leaving: bool = False, created: str = "2026-01-01T00:00:00Z"
) -> dict[str, Any]:
    deleted = {"deletionTimestamp": "2026-01-01T00:01:00Z"} if leaving else {}
    return {
        "metadata": {"name": name, "creationTimestamp": created, **deleted},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": str(ready)}]},
    }


@pytest.mark.parametrize(
    ("conditions", "pods", "state"),
    [
        ({}, [], "starting"),
        ({"Ready": "True"}, [pod()], "ready"),
        ({"Ready": "True"}, [pod(leaving=True), pod("b")], "ready"),
        ({"Ready": "True"}, [pod(leaving=True)], "starting"),
        ({"Ready": "False", "Progressing": "True"}, [pod(ready=False)], "starting"),
        ({"Ready": "False", "Progressing": "False"}, [pod(ready=False)], "trouble"),
        ({"Ready": "True", "Asleep": "True"}, [], "asleep"),
        ({"Ready": "True", "Asleep": "False"}, [pod()], "ready"),
    ],
)
def test_a_user_is_in_one_state(conditions: dict[str, str], pods: list[Any], state: str) -> None:
    assert describe(resource(**conditions), pods)["state"] == state


def test_no_resource_is_a_state_too() -> None:
    assert describe(None, []) == {"state": "missing", "reason": "", "message": "", "maySleep": False, "pods": []}


def test_the_operators_own_words_are_kept() -> None:
    told = describe(resource(Ready="False"), [])
    assert (told["reason"], told["message"]) == ("ReadyReason", "Ready message")


@pytest.mark.parametrize(("reason", "may"), [(None, False), ("NeverSleeps", False), ("Awake", True), ("Idle", True)])
def test_who_may_sleep(reason: str | None, may: bool) -> None:
    told = resource(Ready="True", **({} if reason is None else {"Asleep": "False"}))
    for condition in told["status"]["conditions"]:
        condition["reason"] = reason
    assert describe(told, [])["maySleep"] == may


def test_the_newest_pod_is_first() -> None:
    pods = [pod("old"), pod("new", created="2026-01-01T00:00:09Z")]
    assert [item["name"] for item in describe(resource(), pods)["pods"]] == ["new", "old"]


def test_a_pod_in_a_few_words() -> None:
    assert describe_pod(pod()) == {
        "name": "a",
        "phase": "Running",
        "ready": True,
        "created": "2026-01-01T00:00:00Z",
        "restarts": 0,
    }
    leaving = describe_pod(pod(leaving=True))
    assert (leaving["phase"], leaving["ready"]) == ("Terminating", False)


def test_what_a_container_waits_for_says_more_than_pending() -> None:
    waiting = pod(ready=False)
    waiting["status"] = {
        "phase": "Pending",
        "containerStatuses": [{"restartCount": 2, "state": {"waiting": {"reason": "ImagePullBackOff"}}}],
    }
    told = describe_pod(waiting)
    assert (told["phase"], told["restarts"]) == ("ImagePullBackOff", 2)
    assert describe_pod({"metadata": {"name": "a", "creationTimestamp": "t"}})["phase"] == "Pending"
