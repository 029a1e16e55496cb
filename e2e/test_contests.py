"""Objects of users that an admission policy and a tool modify. On a local API server without a node."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest

from testing.local.apiserver import LocalApiServer
from testing.operator.names import child_name
from testing.patience import PATIENCE_S
from userrealtime_operator.reconcile.contests import REPAIRS

from .test_leader import NAMESPACE, apply_users, database_url, eventually, has_deployment, prepared, replica, settled

__all__ = ["database_url"]

ALICE = child_name("alice")
MIRROR = "mirror.example.com/relay:none"
POLICIES = "admissionregistration.k8s.io/v1beta1"
IMAGE = "Deployment spec.template.spec.containers[relay].image"


@pytest.fixture
def server() -> Iterator[LocalApiServer]:
    options = ("--feature-gates=MutatingAdmissionPolicy=true", f"--runtime-config={POLICIES}=true")
    with prepared(*options) as api:
        yield api


def rewrite_images(server: LocalApiServer) -> None:
    """Let the API server use a mirror for the image of every Deployment, as a policy of a platform does."""
    rule = {
        "apiGroups": ["apps"],
        "apiVersions": ["v1"],
        "operations": ["CREATE", "UPDATE"],
        "resources": ["deployments"],
    }
    image = "/spec/template/spec/containers/0/image"
    expression = f'[JSONPatch{{op: "replace", path: "{image}", value: "{MIRROR}"}}]'
    policy = {
        "matchConstraints": {"resourceRules": [rule]},
        "failurePolicy": "Fail",
        "reinvocationPolicy": "Never",
        "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": expression}}],
    }
    for kind, spec in (("Policy", policy), ("PolicyBinding", {"policyName": "mirror"})):
        item = {"apiVersion": POLICIES, "kind": f"MutatingAdmission{kind}", "metadata": {"name": "mirror"}}
        server.kubectl("create", "-f", "-", input=json.dumps({**item, "spec": spec}))


def is_rewritten(server: LocalApiServer) -> bool:
    """Return whether the policy is in effect."""
    create = ("create", "deployment", "probe", "--image=probe", "--dry-run=server")
    return MIRROR in server.kubectl(*create, "-o", "jsonpath={.spec.template.spec.containers[0].image}")


def deployment(server: LocalApiServer, path: str) -> str:
    return server.kubectl("-n", NAMESPACE, "get", "deployment", ALICE, "-o", f"jsonpath={{{path}}}")


def contested(server: LocalApiServer) -> str:
    """Return the message of the condition Contested, empty if there is none."""
    condition = '{.status.conditions[?(@.type=="Contested")].message}'
    return server.kubectl("-n", NAMESPACE, "get", "urt", "alice", "-o", f"jsonpath={condition}")


def applied(server: LocalApiServer) -> int:
    """Return how often the operator has written the Deployment."""
    return sum((each.resource, each.name) == ("deployments", ALICE) for each in server.writes("first"))


async def test_a_field_that_a_policy_sets_is_reported_and_is_applied_once(
    server: LocalApiServer, database_url: str
) -> None:
    await asyncio.to_thread(rewrite_images, server)
    await eventually(lambda: is_rewritten(server), "the policy is in effect")
    with replica("first", server, database_url) as operator:
        await asyncio.to_thread(operator.wait_ready)
        await asyncio.to_thread(apply_users, server, "alice")
        await eventually(lambda: IMAGE in contested(server), "the image is reported")
        await settled(operator)
        assert deployment(server, ".spec.template.spec.containers[0].image") == MIRROR
        assert applied(server) == 1
        # Something else is added, and stays.
        server.kubectl("-n", NAMESPACE, "set", "env", f"deployment/{ALICE}", "EXTRA=1")
        await settled(operator)
        assert applied(server) == 1
        assert "EXTRA" in deployment(server, ".spec.template.spec.containers[0].env[*].name")
        # A change of the resource is applied.
        await asyncio.to_thread(apply_users, server, "alice", connections=7)
        await eventually(lambda: applied(server) == 2, "the change is applied")
        await eventually(lambda: IMAGE in contested(server), "the image is reported")
        await settled(operator)
        assert applied(server) == 2
        await asyncio.to_thread(operator.stop)
        operator.start()
        await asyncio.to_thread(operator.wait_ready)
        await eventually(lambda: applied(server) == 3, "a new operator tries once")
        await settled(operator)
        assert applied(server) == 3
        assert IMAGE in contested(server)


async def test_a_field_that_a_tool_sets_after_each_repair_is_left(server: LocalApiServer, database_url: str) -> None:
    with replica("first", server, database_url) as operator:
        await asyncio.to_thread(operator.wait_ready)
        await asyncio.to_thread(apply_users, server, "alice")
        await eventually(lambda: has_deployment(server, "alice"), "it has a Deployment")
        await settled(operator)
        first = applied(server)
        for repairs in range(1, REPAIRS + 1):
            server.kubectl("-n", NAMESPACE, "scale", f"deployment/{ALICE}", "--replicas=3")
            await eventually(lambda: applied(server) == first + repairs, "it is repaired", PATIENCE_S)  # noqa: B023
            assert contested(server) == ""
            assert deployment(server, ".spec.replicas") == "1"
        server.kubectl("-n", NAMESPACE, "scale", f"deployment/{ALICE}", "--replicas=3")
        await eventually(lambda: "Deployment spec.replicas" in contested(server), "it is reported")
        await settled(operator)
        assert deployment(server, ".spec.replicas") == "3"
        assert applied(server) == first + REPAIRS
