"""The dry run of `python -m testing.kubernetes`, on the API server of the local cluster's version."""

from __future__ import annotations

from copy import deepcopy

from testing import kubernetes
from testing.local.apiserver import LocalApiServer


def test_all_objects_are_accepted_and_a_wrong_one_is_not() -> None:
    found = dict(kubernetes.cases())
    wrong = deepcopy(found["user, Ingress"])
    [deployment] = [item for item in wrong if item["kind"] == "Deployment"]
    deployment["spec"]["template"]["spec"]["unknownField"] = True
    kinds = {item["kind"] for objects in found.values() for item in objects}
    assert {"Deployment", "EndpointSlice", "HTTPRoute", "Ingress", "Job", "NetworkPolicy", "Pod", "Role"} <= kinds
    with LocalApiServer() as server:
        problems = kubernetes.check(server, [*found.items(), ("wrong", wrong)])
    [problem] = problems
    assert problem.startswith("wrong: ")
    assert "unknownField" in problem
