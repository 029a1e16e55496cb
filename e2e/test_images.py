"""The contents of the images, as seen inside a running pod."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from typing import Any

from testing.cluster import images
from testing.system import OPERATOR_NAMESPACE, RELEASE, ROOT, USERS_NAMESPACE, System

# A program for the image's Python: prints the distributions, the files of /app, and the user id.
INSIDE = """
import importlib.metadata, json, os, sys
try:
    open("/app/probe", "w")
    writable = True
except OSError:
    writable = False
print(json.dumps({
    "distributions": sorted(item.name.lower().replace("_", "-") for item in importlib.metadata.distributions()),
    "app": sorted(os.listdir("/app")),
    "python": "%d.%d" % sys.version_info[:2],
    "uid": os.getuid(),
    "writable": writable,
    "compiled": os.path.exists(importlib.util.cache_from_source(f"/app/{sys.argv[1]}/__main__.py")),
    "token": os.path.exists("/var/run/secrets/kubernetes.io"),
}))
"""


def look_inside(system: System, namespace: str, workload: str, package: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        system.cluster.kubectl(
            "-n",
            namespace,
            "exec",
            workload,
            "--",
            "/app/venv/bin/python",
            "-c",
            "import importlib.util" + INSIDE,
            package,
        )
    )
    if "BASE_IMAGE" not in os.environ:  # which may be any from 3.11 on
        assert found["python"] == images.DEBIAN_PYTHON
    del found["python"]
    return found


def locked(extra: str) -> list[str]:
    """Return the names of the distributions that a lock file pins."""
    text = (ROOT / "locks" / f"{extra}.txt").read_text()
    pins = re.findall(r"^([a-z0-9-]+)==\S+(?: ; (.*?))?(?: \\)?$", text, re.MULTILINE)
    return sorted(name for name, _ in pins)


def test_the_relays_image_holds_the_relay_and_what_it_needs(system: System, users: Callable[..., str]) -> None:
    name = system.get("urt", users())["status"]["name"]
    workload = f"deployment/{name}"
    inside = look_inside(system, USERS_NAMESPACE, workload, "userrealtime_relay")
    program = "from userrealtime_relay.process import bundle; print(bundle.install())"
    command = ["exec", workload, "--", "/app/venv/bin/python", "-c", program]
    assert system.cluster.kubectl("-n", USERS_NAMESPACE, *command).strip() == "True", "a start imports all files"
    assert inside.pop("distributions") == locked("relay")
    assert inside == {
        "app": ["userrealtime_core", "userrealtime_relay", "userrealtime_relay.bundle", "venv"],
        "uid": 65532,
        "writable": False,
        "compiled": True,
        "token": False,
    }


def test_the_operators_image_holds_the_operator_and_what_it_needs(system: System) -> None:
    inside = look_inside(system, OPERATOR_NAMESPACE, f"deployment/{RELEASE}", "userrealtime_operator")
    assert set(inside.pop("distributions")) <= set(locked("operator"))
    assert inside == {
        "app": ["userrealtime_core", "userrealtime_operator", "venv"],
        "uid": 65532,
        "writable": False,
        "compiled": True,
        "token": True,
    }
