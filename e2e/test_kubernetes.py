"""The dry run of `python -m testing.kubernetes`, on the API server of the local cluster's version."""

from __future__ import annotations

import json
from copy import deepcopy

import pytest

from testing import kubernetes
from testing.local.apiserver import LocalApiServer

IPV4, IPV6 = "10.0.0.0/16", "fd00:10::/112"
CREATE = ("create", "--validate=strict", "-o", "json", "-f", "-")


def test_all_objects_are_accepted_and_a_wrong_one_is_not() -> None:
    found = dict(kubernetes.cases())
    wrong = deepcopy(found["user, Ingress"])
    [deployment] = [item for item in wrong if item["kind"] == "Deployment"]
    deployment["spec"]["template"]["spec"]["unknownField"] = True
    kinds = {item["kind"] for objects in found.values() for item in objects}
    assert {"Deployment", "EndpointSlice", "HTTPRoute", "Ingress", "Job", "NetworkPolicy", "Pod", "Role"} <= kinds
    assert {"PodDisruptionBudget", "ValidatingAdmissionPolicy"} <= kinds
    with LocalApiServer() as server:
        problems = kubernetes.check(server, [*found.items(), ("wrong", wrong)])
    [problem] = problems
    assert problem.startswith("wrong: ")
    assert "unknownField" in problem


@pytest.mark.parametrize(
    ("services", "families"),
    [(IPV6, ["IPv6"]), (f"{IPV4},{IPV6}", ["IPv4", "IPv6"]), (f"{IPV6},{IPV4}", ["IPv6", "IPv4"])],
)
def test_services_have_the_families_of_the_cluster(services: str, families: list[str]) -> None:
    """A user's Service has the primary family, and the edge's Service both of them if the values require it."""
    edge = kubernetes.dual_stack("PreferDualStack", 6 if families[0] == "IPv6" else 4)
    [user] = [item for item in kubernetes.user_objects(edge) if item["kind"] == "Service"]
    [public] = [item for item in edge if item["kind"] == "Service" and item["metadata"]["name"].endswith("-edge")]
    with LocalApiServer(services=services) as server:
        assert kubernetes.check(server, [*kubernetes.cases(), ("edge", edge)]) == []
        created = [json.loads(server.kubectl(*CREATE, input=json.dumps(item)))["spec"] for item in (user, public)]
    assert [each["ipFamilies"] for each in created] == [families[:1], families]
    for spec in created:
        assert ["IPv6" if ":" in address else "IPv4" for address in spec["clusterIPs"]] == spec["ipFamilies"]


def test_a_cluster_of_one_family_rejects_required_dual_stack() -> None:
    with LocalApiServer() as server:
        [problem] = kubernetes.check(server, [("edge", kubernetes.dual_stack("RequireDualStack", 4))])
    assert "not configured for dual-stack" in problem
