"""The examples for signup flows, run as a separate service account: they create a user and return a token."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest
import yaml

from examples import provision, provision_http
from testing.client import ResumingClient
from testing.patience import COMMAND_TIMEOUT_S, WITHIN
from testing.system import ROOT, USERS_NAMESPACE, System
from testing.waiting import eventually

from .conftest import RUN
from .test_status import WRONG_IMAGE

EXAMPLES = ROOT / "examples"
RBAC = EXAMPLES / "signup-rbac.yaml"
ACCOUNT = f"system:serviceaccount:{USERS_NAMESPACE}:signup"


@dataclass(frozen=True)
class Signup:
    """Run the two examples with the permissions of the service account, from outside the cluster."""

    folder: Path
    server: str

    def run(self, example: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("KUBE")}
        command = [sys.executable, str(EXAMPLES / f"{example}.py"), *arguments]
        if example == "provision":
            environment["KUBECONFIG"] = str(self.folder / "kubeconfig")
        else:
            files = ("--ca-file", str(self.folder / "ca.crt"), "--token-file", str(self.folder / "token"))
            command += ["--server", self.server, *files]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
        )


@pytest.fixture(scope="module")
def signup(system: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Signup]:
    folder = tmp_path_factory.mktemp("signup")
    system.cluster.apply(RBAC.read_text())
    view = json.loads(system.kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "json"))
    cluster = view["clusters"][0]["cluster"]
    token = system.kubectl("create", "token", "signup", "--duration=1h").strip()
    kubeconfig = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "signup", "user": {"token": token}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "signup"}}],
        "current-context": "c",
    }
    contents = {
        "ca.crt": base64.b64decode(cluster["certificate-authority-data"]).decode(),
        "token": token,
        "kubeconfig": json.dumps(kubeconfig),
    }
    for name, content in contents.items():
        path = folder / name
        path.touch(mode=0o600)
        path.write_text(content)
    yield Signup(folder, cluster["server"])
    system.kubectl("delete", "-f", str(RBAC), "--ignore-not-found", WITHIN)


@pytest.fixture
def remove(system: System) -> Iterator[Callable[[str], None]]:
    """A function that registers users by their ids, to be removed at the end."""
    noted: list[str] = []
    yield noted.append
    for user_id in noted:
        system.delete_user(provision.resource_name(user_id))


@pytest.mark.parametrize("example", ["provision", "provision_http"])
async def test_a_user_signs_up_connects_and_leaves(
    system: System, signup: Signup, remove: Callable[[str], None], database: asyncpg.Connection, example: str
) -> None:
    user_id = f"Ann.{example}+{RUN}@Example.com"
    remove(user_id)
    done = await asyncio.to_thread(signup.run, example, user_id)
    assert done.returncode == 0, done.stderr
    handed_out = json.loads(done.stdout)
    url = handed_out["url"].replace("http", "ws", 1) + "/ws"
    async with ResumingClient(url, handed_out["token"]) as client:
        await database.execute("select userrealtime.publish($1, 'welcome')", user_id)
        await client.wait_for_events(1)
        assert client.ids == [1]

    # A second login returns the same pod and another token.
    again = await asyncio.to_thread(signup.run, example, user_id, "--lifetime", "60")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["url"] == handed_out["url"]
    claims = json.loads(base64.urlsafe_b64decode(json.loads(again.stdout)["token"].split(".")[1] + "=="))
    assert claims == {"sub": user_id, "iat": claims["iat"], "exp": claims["iat"] + 60}
    assert abs(claims["iat"] - time.time()) < 60

    for _ in range(2):
        gone = await asyncio.to_thread(signup.run, example, user_id, "--delete")
        assert (gone.returncode, gone.stdout, gone.stderr) == (0, "", "")
    name = provision.resource_name(user_id)
    await asyncio.to_thread(eventually, lambda: name not in system.kubectl("get", "urt", "-o", "name"), "no resource")


@pytest.mark.parametrize("example", ["provision", "provision_http"])
def test_what_goes_wrong_is_told(system: System, signup: Signup, remove: Callable[[str], None], example: str) -> None:
    user_id = f"stuck-{example.replace('_', '-')}-{RUN}"
    remove(user_id)
    # The user has an image that does not exist.
    system.apply_user(user_id, relay=WRONG_IMAGE)
    ready = 'jsonpath={.status.conditions[?(@.type=="Ready")].reason}'
    eventually(
        lambda: system.kubectl("get", "urt", user_id, "-o", ready) == "ImagePullFailed", "the operator reports it"
    )
    done = signup.run(example, user_id, "--timeout", "5")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{user_id} is not ready after 5 s: ImagePullFailed: " in done.stderr

    # a resource with this name for another user
    other = f"taken-{example.replace('_', '-')}-{RUN}"
    remove(other)
    system.apply_user(other, userId=f"not {other}")
    done = signup.run(example, other)
    assert (done.returncode, done.stderr) == (1, f"provision: the resource {other} belongs to another user\n")

    done = signup.run(example, "a\nb")
    assert done.returncode == 1
    assert "userId must not contain control characters" in done.stderr

    done = signup.run(example, user_id, "--namespace", "default")
    assert done.returncode == 1
    assert 'cannot create resource "userrealtimes"' in done.stderr


def test_in_a_pod_with_its_service_account(system: System, signup: Signup, remove: Callable[[str], None]) -> None:
    """The plain example needs only Python and no configuration."""
    user_id = f"in-a-pod-{RUN}"
    remove(user_id)
    name = f"signup-{RUN}"
    data = {"provision_http.py": (EXAMPLES / "provision_http.py").read_text()}
    script = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}
    image = system.values["relay"]["image"]
    container = {
        "name": "signup",
        "image": f"{image['repository']}:{image['tag']}",
        "command": ["python3", "/examples/provision_http.py", user_id],
        "volumeMounts": [{"name": "examples", "mountPath": "/examples", "readOnly": True}],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "serviceAccountName": "signup",
            "restartPolicy": "Never",
            "activeDeadlineSeconds": 120,
            "containers": [container],
            "volumes": [{"name": "examples", "configMap": {"name": name}}],
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
        },
    }
    try:
        for item in (script, pod):
            system.kubectl("create", "-f", "-", input=json.dumps(item))
        eventually(lambda: system.get("pod", name)["status"]["phase"] in ("Succeeded", "Failed"), "the end of the pod")
        printed = system.kubectl("logs", name)
        assert system.get("pod", name)["status"]["phase"] == "Succeeded", printed
        assert json.loads(printed)["url"] == system.get("urt", user_id)["status"]["url"]
    finally:
        system.kubectl("delete", "pod,configmap", name, "--ignore-not-found", WITHIN)


@pytest.mark.parametrize(
    ("verb", "resource", "namespace", "allowed"),
    [
        ("create", "userrealtimes.userrealtime.dev", USERS_NAMESPACE, True),
        ("get", "userrealtimes.userrealtime.dev", USERS_NAMESPACE, True),
        ("watch", "userrealtimes.userrealtime.dev", USERS_NAMESPACE, True),
        ("delete", "userrealtimes.userrealtime.dev", USERS_NAMESPACE, True),
        ("get", "secrets", USERS_NAMESPACE, True),
        ("list", "userrealtimes.userrealtime.dev", USERS_NAMESPACE, False),
        ("patch", "userrealtimes.userrealtime.dev", USERS_NAMESPACE, False),
        ("update", "userrealtimes.userrealtime.dev", USERS_NAMESPACE, False),
        ("deletecollection", "userrealtimes.userrealtime.dev", USERS_NAMESPACE, False),
        ("patch", "userrealtimes.userrealtime.dev/status", USERS_NAMESPACE, False),
        ("list", "secrets", USERS_NAMESPACE, False),
        ("watch", "secrets", USERS_NAMESPACE, False),
        ("create", "secrets", USERS_NAMESPACE, False),
        ("patch", "secrets", USERS_NAMESPACE, False),
        ("delete", "secrets", USERS_NAMESPACE, False),
        ("get", "pods", USERS_NAMESPACE, False),
        ("create", "pods", USERS_NAMESPACE, False),
        ("get", "configmaps", USERS_NAMESPACE, False),
        ("get", "deployments.apps", USERS_NAMESPACE, False),
        ("create", "serviceaccounts/token", USERS_NAMESPACE, False),
        ("create", "rolebindings.rbac.authorization.k8s.io", USERS_NAMESPACE, False),
        ("create", "userrealtimes.userrealtime.dev", "default", False),
        ("get", "secrets", "userrealtime", False),
        ("get", "secrets", "", False),
        ("list", "namespaces", "", False),
    ],
)
def test_the_rights_of_a_signup_flow(
    system: System, signup: Signup, verb: str, resource: str, namespace: str, allowed: bool
) -> None:
    assert system.may(ACCOUNT, verb, resource, namespace) is allowed


def test_the_role_is_as_it_was_tested() -> None:
    """The tests above do not cover all permissions, so this one compares the whole role."""
    rules = [rule for item in yaml.safe_load_all(RBAC.read_text()) if item["kind"] == "Role" for rule in item["rules"]]
    assert rules == [
        {
            "apiGroups": ["userrealtime.dev"],
            "resources": ["userrealtimes"],
            "verbs": ["create", "get", "watch", "delete"],
        },
        {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]},
    ]


def test_both_examples_name_a_user_alike(system: System) -> None:
    # Not alice, whom `make up` creates.
    ids = ["anna", "a", "x" * 63, "x" * 64, "Alice", "ann@example.com", "-a", "a-", "a.b", "Jörg 🙂", "u-1", "123"]
    names = [provision.resource_name(user_id) for user_id in ids]
    assert names == [provision_http.resource_name(user_id) for user_id in ids]
    assert len(set(names)) == len(ids)
    # The resource name of a user cannot be the id of another user.
    assert [provision.resource_name(name) == name for name in names] == [not name.startswith("u-") for name in names]
    for user_id, name in zip(ids, names, strict=True):
        resource = {
            "apiVersion": "userrealtime.dev/v1alpha1",
            "kind": "UserRealtime",
            "metadata": {"name": name},
            "spec": {"userId": user_id},
        }
        system.kubectl("create", "--dry-run=server", "-f", "-", input=json.dumps(resource))
