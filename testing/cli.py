"""The objects of a user at an API server, and a kubeconfig for it. The tests in `e2e` use a real one."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

KEY = "a key of alice's that is long enough"
RESOURCES = "/apis/userrealtime.dev/v1alpha1/namespaces/{}/userrealtimes"
Answers = dict[str, tuple[int, Any]]


def resource(name: str, user_id: str, ready: str = "True", **status: Any) -> dict[str, Any]:
    conditions = [{"type": "Ready", "status": ready, "reason": "PodNotReady", "message": "the pod is not ready yet"}]
    return {
        "metadata": {"name": name},
        "spec": {"userId": user_id},
        "status": {
            "tokenSecret": {"name": "urt-alice", "key": "TOKEN_KEY"},
            "url": "https://h/alice",
            "conditions": conditions,
            **status,
        },
    }


def refusal(status: int, message: str, **details: str) -> tuple[int, Any]:
    return status, {"kind": "Status", "message": message, "details": details}


ALICE = RESOURCES.format("users") + "/alice"
SECRET = "/api/v1/namespaces/users/secrets/urt-alice"
GOOD: Answers = {
    ALICE: (200, resource("alice", "alice@example.com")),
    SECRET: (
        200,
        {"metadata": {"name": "urt-alice"}, "data": {"TOKEN_KEY": base64.b64encode(KEY.encode()).decode()}},
    ),
}


def kubeconfig(path: Path, port: int) -> None:
    context = {"cluster": "here", "user": "me"}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "me", "user": {"token": "t"}}],
        "contexts": [
            {"name": "here", "context": {**context, "namespace": "users"}},
            {"name": "bare", "context": context},
        ],
    }
    path.write_text(json.dumps(document))


Run = Callable[..., tuple[int, str, str]]
