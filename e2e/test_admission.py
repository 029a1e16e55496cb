"""The chart's ValidatingAdmissionPolicy on a real API server. Without nodes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import yaml

from testing.cluster import ClusterError, binaries
from testing.local.apiserver import LocalApiServer
from testing.patience import PATIENCE_S, WITHIN
from testing.system import CHART
from testing.waiting import eventually

from .test_leader import CRD

NAMESPACE = "users"
VALUES = {
    "database": {"url": "postgresql://user:password@host/database"},
    "namespaces": [NAMESPACE],
    "admissionPolicy": {"enabled": True},
    "relay": {"allowedImages": ["a/relay:3", "registry.example.com/realtime/*"]},
    "route": {"allowedHosts": ["realtime.example.org", "*.example.com"]},
}
STRICT = {
    "database": VALUES["database"],
    "namespaces": ["strict"],
    "admissionPolicy": {"enabled": True, "requireRequester": True},
}
REQUESTER = "userrealtime.dev/requested-by must be the name of the account"
BOB = ("--as=bob", "--as-group=system:masters")
IMAGE, URL = r"spec\.relay\.image is not allowed", r"spec\.route\.url is not allowed"


def rendered(release: str, values: dict[str, Any]) -> list[dict[str, Any]]:
    """The policy and its binding."""
    done = subprocess.run(
        [binaries.helm(), "template", release, str(CHART), "--show-only=templates/admission.yaml", "--values=-"],
        input=yaml.safe_dump(values),
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_S,
    )
    return [item for item in yaml.safe_load_all(done.stdout) if item]


def resource(name: str, namespace: str = NAMESPACE, requester: str | None = None, **spec: Any) -> str:
    annotations = {} if requester is None else {"userrealtime.dev/requested-by": requester}
    return json.dumps(
        {
            "apiVersion": "userrealtime.dev/v1alpha1",
            "kind": "UserRealtime",
            "metadata": {"name": name, "namespace": namespace, "annotations": annotations},
            "spec": {"userId": name, **spec},
        }
    )


@pytest.fixture(scope="module")
def server() -> Iterator[LocalApiServer]:
    """An API server with the CRD and the policy, which is in effect."""
    with LocalApiServer() as api:
        api.kubectl("apply", "--server-side", "-f", str(CRD))
        api.kubectl("wait", "--for=condition=Established", WITHIN, "-f", str(CRD))
        for namespace in (NAMESPACE, "strict", "others"):
            api.kubectl("create", "namespace", namespace)
        # Resources from before the policy.
        for text in (
            resource("old-image", relay={"image": "old:1"}),
            resource("old-url", route={"url": "http://old"}),
        ):
            api.kubectl("apply", "--server-side", "-f", "-", input=text)
        for item in (*rendered("userrealtime", VALUES), *rendered("strict", STRICT)):
            api.kubectl("apply", "--server-side", "-f", "-", input=json.dumps(item))

        def is_in_effect(namespace: str) -> bool:
            try:
                create(api, resource("probe", namespace, relay={"image": "evil.example/relay"}))
            except ClusterError:
                return True
            return False

        for namespace in (NAMESPACE, "strict"):
            eventually(partial(is_in_effect, namespace), f"the policy is in effect in {namespace}")
        yield api


def create(server: LocalApiServer, text: str, *options: str) -> None:
    server.kubectl("create", "--dry-run=server", *options, "-f", "-", input=text)


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ({}, None),
        ({"relay": {}, "route": {}}, None),
        ({"relay": {"image": "a/relay:3"}}, None),
        ({"relay": {"image": "a/relay:30"}}, IMAGE),
        ({"relay": {"image": "registry.example.com/realtime/mine:1"}}, None),
        ({"relay": {"image": "registry.example.com/other:1"}}, IMAGE),
        ({"route": {"url": "https://realtime.example.org/alice"}}, None),
        ({"route": {"url": "http://alice.example.com:8080/x"}}, None),
        ({"route": {"url": "https://{name}.example.com"}}, None),
        ({"route": {"url": "https://a.alice.example.com"}}, URL),
        ({"route": {"url": "https://example.com"}}, URL),
        ({"route": {"url": "https://realtime.example.org.evil.example"}}, URL),
        ({"route": {"url": "https://evilexample.com"}}, URL),
    ],
)
def test_what_is_not_allowed_is_rejected(server: LocalApiServer, spec: dict[str, Any], complaint: str | None) -> None:
    if complaint is None:
        create(server, resource("alice", **spec))
        return
    with pytest.raises(ClusterError, match=complaint):
        create(server, resource("alice", **spec))
    create(server, resource("alice", "others", **spec))  # a namespace that the release does not serve


def test_a_resource_from_before_can_change_otherwise(server: LocalApiServer) -> None:
    for name, field in {"old-image": "relay", "old-url": "route"}.items():
        server.kubectl("-n", NAMESPACE, "patch", "urt", name, "--type=merge", "-p", '{"spec": {"replicas": 2}}')
        other = {"relay": {"image": "new:1"}, "route": {"url": "http://new"}}[field]
        patch = json.dumps({"spec": {field: other}})
        with pytest.raises(ClusterError, match="is not allowed"):
            server.kubectl("-n", NAMESPACE, "patch", "urt", name, "--type=merge", "-p", patch)


def test_an_account_can_name_only_itself_as_the_requester(server: LocalApiServer) -> None:
    """The operator writes the annotation to its audit log."""

    def change(*arguments: str, account: str = "bob") -> None:
        server.kubectl("-n", NAMESPACE, *arguments, f"--as={account}", BOB[1])

    def rename(requester: str, **spec: Any) -> str:
        metadata = {"annotations": {"userrealtime.dev/requested-by": requester}}
        return json.dumps({"metadata": metadata, "spec": spec})

    patch = ("patch", "urt", "carol", "--type=merge", "-p")
    with pytest.raises(ClusterError, match=REQUESTER):
        create(server, resource("carol", requester="carol"), *BOB)
    server.kubectl("create", *BOB, "-f", "-", input=resource("carol", requester="bob"))
    # Other accounts can change what the operator does not act on, and must otherwise name themselves.
    change("label", "urt", "carol", "team=one", account="dave")
    change("annotate", "urt", "carol", "note=text", account="dave")
    for patched in ('{"spec": {"replicas": 2}}', rename("bob", replicas=2), rename("erin")):
        with pytest.raises(ClusterError, match=REQUESTER):
            change(*patch, patched, account="dave")
    with pytest.raises(ClusterError, match=REQUESTER):
        change("annotate", "urt", "carol", "userrealtime.dev/rotate-database-password=now", account="dave")
    change(*patch, rename("dave", replicas=2), account="dave")
    # Without the requirement, the annotation can be removed.
    change("annotate", "urt", "carol", "userrealtime.dev/requested-by-", account="erin")


def test_the_chart_can_require_the_requester(server: LocalApiServer) -> None:
    with pytest.raises(ClusterError, match=REQUESTER):
        create(server, resource("grace", "strict"), *BOB)
    create(server, resource("grace", "strict", "bob"), *BOB)
    create(server, resource("grace"), *BOB)


def test_the_activator_can_only_request_a_wake(server: LocalApiServer) -> None:
    activator = ("--as=system:serviceaccount:default:userrealtime-activator", BOB[1])
    fields = yaml.safe_load(CRD.read_text())["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]
    full: dict[str, Any] = {
        "asleepSince": "2026-01-01T00:00:00.000001Z",
        "conditions": [],
        "name": "urt-frank",
        "observedGeneration": 1,
        "sealedKeys": "text",
        "state": "Asleep",
        "tokenSecret": {"name": "urt-frank", "key": "TOKEN_KEY"},
        "url": "https://example.com/frank",
    }
    wake = "wakeRequestedAt"
    assert fields["properties"].keys() == {*full, wake}, "the policy has the names of all fields"

    def patch(status: dict[str, Any], *options: str) -> None:
        arguments = (
            "patch",
            "urt",
            "frank",
            "--subresource=status",
            "--type=merge",
            "-p",
            json.dumps({"status": status}),
        )
        server.kubectl("-n", NAMESPACE, *arguments, *options)

    server.kubectl("create", "-f", "-", input=resource("frank"))
    with pytest.raises(ClusterError, match=wake):
        patch({"url": "https://evil.example"}, *activator)
    patch({wake: "2026-01-02T00:00:00.000001Z"}, *activator)
    patch(full)
    patch({wake: "2026-01-03T00:00:00.000001Z"}, *activator)
    changed = {
        "asleepSince": "2026-01-02T00:00:00.000001Z",
        "name": "urt-other",
        "observedGeneration": 2,
        "sealedKeys": "other",
        "state": "Awake",
        "tokenSecret": {"name": "urt-other", "key": "TOKEN_KEY"},
        "url": "https://evil.example",
    }
    for name, value in changed.items():
        for forged in (value, None):
            with pytest.raises(ClusterError, match=wake):
                patch({name: forged, wake: "2026-01-04T00:00:00.000001Z"}, *activator)
