"""The values files for platforms in examples/values, rendered. Only Helm is needed, no cluster."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from typing import Any, Final

import pytest
import yaml

from testing.cluster import choose
from testing.system import CHART, ROOT
from userrealtime_operator.config import Config, parse_config

Json = dict[str, Any]
FILES: Final = {path.stem: path for path in sorted((ROOT / "examples" / "values").iterdir())}
INSTALLED: Final = {"namespaces": ["users"]}
MAXIMUM_LINES: Final = 20


@cache
def render(text: str) -> list[Json]:
    """Return the objects that the chart renders with values, given as JSON."""
    arguments = ("template", "userrealtime", str(CHART), "--namespace", "userrealtime", "--values", "-")
    return [item for item in yaml.safe_load_all(choose().helm(*arguments, input=text)) if item]


def values(name: str) -> Json:
    loaded: Json = yaml.safe_load(FILES[name].read_text())
    return loaded


def rendered(name: str) -> list[Json]:
    return render(json.dumps(values(name) | INSTALLED))


def of_kind(name: str, kind: str) -> list[Json]:
    return [item for item in rendered(name) if item["kind"] == kind]


def operator_config(name: str) -> Config:
    """Return the configuration as the operator reads it."""
    [text] = [item["data"]["config.yaml"] for item in of_kind(name, "ConfigMap") if "config.yaml" in item["data"]]
    return parse_config(text, None)


def leaves(content: Json, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in content.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, name))
        else:
            yield (*path, name)


def without(content: Json, path: tuple[str, ...]) -> Json:
    """Return the values without one of them."""
    result = deepcopy(content)
    parent = result
    for name in path[:-1]:
        parent = parent[name]
    del parent[path[-1]]
    return result


def reason(lines: list[str], line: str) -> bool:
    """Return whether a line needs no reason or has one, in itself or in the line before, to which it then belongs."""
    setting = line.split(" #")[0].rstrip()
    if "#" in line or setting.endswith(":") or setting.lstrip().startswith("url:"):
        return True
    before = lines[lines.index(line) - 1]
    return "#" in before


LEAVES: Final = [(name, path) for name in FILES for path in leaves(values(name))]


def test_the_platforms() -> None:
    assert set(FILES) == {"aks", "eks", "gke", "k3s", "openshift"}


@pytest.mark.parametrize("name", FILES)
def test_the_chart_and_the_operator_accept_the_file(name: str) -> None:
    assert of_kind(name, "Deployment")
    assert operator_config(name).namespaces == ("users",)


@pytest.mark.parametrize(
    ("name", "path"),
    # The chart does not render without this value: every file needs it.
    [pytest.param(*leaf, id=f"{leaf[0]}-{'.'.join(leaf[1])}") for leaf in LEAVES if leaf[1][0] != "database"],
)
def test_each_value_has_an_effect(name: str, path: tuple[str, ...]) -> None:
    """A value that equals the default, or that the chart ignores, does not belong into the file."""
    assert render(json.dumps(without(values(name), path) | INSTALLED)) != rendered(name)


@pytest.mark.parametrize("name", FILES)
def test_the_files_are_short_and_have_a_reason_for_each_value(name: str) -> None:
    lines = [line for line in FILES[name].read_text().splitlines() if not line.startswith("#")]
    assert len(lines) <= MAXIMUM_LINES
    assert not [line for line in lines if line.strip() and not reason(lines, line)]


def test_openshift_assigns_the_user_ids() -> None:
    for item in of_kind("openshift", "Deployment") + of_kind("openshift", "Job"):
        assert {"runAsUser", "runAsGroup"}.isdisjoint(item["spec"]["template"]["spec"]["securityContext"])
    assert operator_config("openshift").relay.run_as_user is None


@pytest.mark.parametrize("name", ["aks", "eks"])
def test_one_ingress_serves_all_users(name: str) -> None:
    [ingress] = of_kind(name, "Ingress")
    assert ingress["spec"]["ingressClassName"] == values(name)["route"]["className"]
    assert ingress["metadata"]["annotations"] == values(name)["route"]["annotations"]
    assert ingress["spec"]["tls"][0]["hosts"] == ["realtime.example.com"]


def test_gke_has_the_edge_without_an_ingress() -> None:
    assert not of_kind("gke", "Ingress")
    assert "userrealtime-edge" in [item["metadata"]["name"] for item in of_kind("gke", "Service")]


def test_k3s_has_one_pod_of_each_part() -> None:
    assert {item["spec"]["replicas"] for item in of_kind("k3s", "Deployment")} == {1}
    assert not of_kind("k3s", "PodDisruptionBudget")


def peers(name: str, policy: str, port: str) -> list[Json]:
    """Return the peers that a policy allows at a port."""
    [spec] = [item["spec"] for item in of_kind(name, "NetworkPolicy") if item["metadata"]["name"].endswith(policy)]
    [rule] = [rule for rule in spec["ingress"] if rule["ports"][0]["port"] == port]
    found: list[Json] = rule["from"]
    return found


def component(peer: Json) -> str:
    name: str = peer["podSelector"]["matchLabels"]["app.kubernetes.io/name"]
    return name


@pytest.mark.parametrize("name", ["k3s", "openshift"])
def test_policies_allow_the_source_of_connections_and_the_activator(name: str) -> None:
    *sources, activator = peers(name, "-relays", "ws")
    assert sources == peers(name, "-activator", "ws") == values(name)["networkPolicy"]["ingressFrom"]
    assert component(activator) == "userrealtime-activator"


@pytest.mark.parametrize("name", ["gke", "aks"])
def test_policies_allow_the_source_of_connections_at_the_edge(name: str) -> None:
    sources = values(name)["networkPolicy"]["ingressFrom"]
    assert peers(name, "-edge", "http") == sources
    assert peers(name, "-edge", "private")[:-1] == sources
    assert [component(peer) for peer in peers(name, "-relays", "ws")] == ["userrealtime-edge", "userrealtime-activator"]
    assert [component(peer) for peer in peers(name, "-activator", "ws")] == ["userrealtime-edge"]


def test_the_name_of_each_file_is_documented() -> None:
    text = (ROOT / "docs" / "releases.md").read_text()
    assert [name for name in FILES if f"examples/values/{name}.yaml" not in text] == []
