"""The chart: well-formed, accepted by the real API server, with no right that is not used."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Callable
from typing import Any

import asyncpg
import pytest
import yaml

from userrealtime_operator.naming import child_name

from .cluster import ClusterError
from .system import CHART, OPERATOR_NAMESPACE, RELEASE, USERS_NAMESPACE, System, install, uninstall

DATABASE = {"database": {"url": "postgresql://user:password@host/database"}}
# Every value other than its default, so that every branch of the templates is rendered.
EVERYTHING: dict[str, Any] = {
    "database": {"existingSecret": {"name": "other", "key": "URL"}},
    "namespaces": [USERS_NAMESPACE, OPERATOR_NAMESPACE],
    "operator": {
        "replicas": 3,
        "image": {"repository": "a/operator", "tag": "2", "pullPolicy": "Always"},
        "logLevel": "debug",
        "resources": {"limits": {"memory": "1Gi"}},
        "nodeSelector": {"a": "b"},
        "tolerations": [{"operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "podAnnotations": {"a": "b"},
    },
    "relay": {"image": {"repository": "a/relay", "tag": "2"}, "resources": {"limits": {"memory": "64Mi"}}},
    "route": {
        "url": "https://{name}.example.com",
        "className": "traefik",
        "annotations": {"a": "b"},
        "tlsSecretName": "wildcard",
    },
    "migration": {"waitSeconds": 5},
    "monitoring": {
        "dashboard": True,
        "podMonitor": True,
        "serviceMonitor": True,
        "prometheusRule": True,
        "runbookUrl": "https://example.com/runbooks",
    },
    "crds": {"keep": True},
    "imagePullSecrets": ["registry"],
}


def render(system: System, values: dict[str, Any]) -> str:
    return system.cluster.helm(
        "template", "other", str(CHART), "--namespace", OPERATOR_NAMESPACE, "--values", "-", input=json.dumps(values)
    )


def test_lint(system: System) -> None:
    for values in (DATABASE, EVERYTHING):
        system.cluster.helm("lint", str(CHART), "--strict", "--values", "-", input=json.dumps(values))


@pytest.mark.parametrize("values", [DATABASE, EVERYTHING], ids=["defaults", "everything"])
def test_the_api_server_accepts_every_object(system: System, values: dict[str, Any]) -> None:
    """A server-side dry run, strict about unknown fields."""
    # The CRD is the running release's own, and a dry run may not take it over.
    # These kinds are the Prometheus Operator's, which is not installed here.
    absent = {"podMonitor": False, "serviceMonitor": False, "prometheusRule": False}
    monitoring = {**values.get("monitoring", {}), **absent}
    rendered = render(system, {**values, "crds": {"enabled": False}, "monitoring": monitoring})
    kinds = {item["kind"] for item in yaml.safe_load_all(rendered) if item}
    assert {"Deployment", "Role", "RoleBinding", "ServiceAccount", "ConfigMap", "Job"} <= kinds
    system.cluster.kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", input=rendered)


def test_the_crd_is_the_projects_own(system: System) -> None:
    rendered = render(system, EVERYTHING)
    crd = next(item for item in yaml.safe_load_all(rendered) if item and item["kind"] == "CustomResourceDefinition")
    assert crd["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert crd == yaml.safe_load((CHART.parents[1] / "crds" / "userrealtimes.yaml").read_text())


def test_the_pod_monitor_finds_the_relays_health_port(system: System, users: Callable[..., str]) -> None:
    rendered = yaml.safe_load_all(render(system, EVERYTHING))
    monitor = next(item for item in rendered if item and item["kind"] == "PodMonitor")["spec"]
    endpoint = monitor["podMetricsEndpoints"][0]
    labels = {**monitor["selector"]["matchLabels"], "app.kubernetes.io/instance": child_name(users("monitored"))}
    selector = ",".join(f"{key}={value}" for key, value in labels.items())
    [pod] = json.loads(system.kubectl("get", "pods", "-l", selector, "-o", "json"))["items"]
    port = next(p for p in pod["spec"]["containers"][0]["ports"] if p["name"] == endpoint["port"])["containerPort"]
    with (
        system.cluster.forward(USERS_NAMESPACE, f"pod/{pod['metadata']['name']}", port) as (host, reached),
        urllib.request.urlopen(f"http://{host}:{reached}{endpoint['path']}", timeout=10) as answer,
    ):
        assert b"userrealtime_relay_ready 1" in answer.read()
    assert USERS_NAMESPACE in monitor["namespaceSelector"]["matchNames"]


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({}, "/database"),
        ({**DATABASE, "route": {"url": "http://localhost/"}}, "/route/url"),
        ({**DATABASE, "databse": {}}, "databse"),
        ({"database": {"url": "mysql://x"}}, "/database/url"),
    ],
)
def test_bad_values_are_refused_by_name(system: System, values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ClusterError, match=complaint):
        render(system, values)


@pytest.mark.parametrize(
    ("verb", "resource", "namespace", "allowed"),
    [
        ("patch", "deployments.apps", USERS_NAMESPACE, True),
        ("patch", "userrealtimes.userrealtime.dev/status", USERS_NAMESPACE, True),
        ("patch", "userrealtimes.userrealtime.dev", USERS_NAMESPACE, False),
        ("get", "pods", USERS_NAMESPACE, False),
        ("create", "pods/exec", USERS_NAMESPACE, False),
        ("get", "secrets", OPERATOR_NAMESPACE, False),
        ("get", "secrets", "kube-system", False),
        ("create", "rolebindings.rbac.authorization.k8s.io", USERS_NAMESPACE, False),
        ("list", "namespaces", "", False),
        ("create", "leases.coordination.k8s.io", OPERATOR_NAMESPACE, True),
        ("update", "leases.coordination.k8s.io", OPERATOR_NAMESPACE, False),
        ("create", "leases.coordination.k8s.io", USERS_NAMESPACE, False),
        ("list", "customresourcedefinitions.apiextensions.k8s.io", "", False),
    ],
)
def test_the_operators_rights(system: System, verb: str, resource: str, namespace: str, allowed: bool) -> None:
    plural, _, group = resource.partition(".")
    group, _, subresource = group.partition("/") if group else ("", "", "")
    plural, _, core_subresource = plural.partition("/")
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": f"system:serviceaccount:{OPERATOR_NAMESPACE}:{RELEASE}",
            "resourceAttributes": {
                "verb": verb,
                "group": group,
                "resource": plural,
                "subresource": subresource or core_subresource,
                "namespace": namespace,
            },
        },
    }
    answer = json.loads(system.cluster.kubectl("create", "-f", "-", "-o", "json", input=json.dumps(review)))
    assert answer["status"]["allowed"] is allowed


async def test_uninstalling_leaves_nothing_and_installing_again_works(
    system: System, users: Callable[..., str], database: asyncpg.Connection
) -> None:
    leaving = users("leaving")
    await asyncio.to_thread(uninstall, system.cluster)
    left = await asyncio.to_thread(
        system.cluster.kubectl,
        *("get", "crds,namespaces,clusterroles,clusterrolebindings", "-o", "name"),
    )
    assert [
        line for line in left.splitlines() if "userrealtime" in line or line == f"namespace/{USERS_NAMESPACE}"
    ] == []
    await asyncio.to_thread(install, system.cluster)
    await asyncio.to_thread(users, "arriving")
    # A log that the operator could not remove before it was removed itself is swept once it is back.
    async with asyncio.timeout(30):
        while await database.fetchval("select count(*) from userrealtime.log where user_id = $1", leaving):
            await asyncio.sleep(0.2)
