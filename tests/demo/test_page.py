"""What the page is made of, and the manifests under which it is served."""

from __future__ import annotations

import re
from typing import Any

from examples.demo.session import USERS
from testing import demo, demo_page
from testing.operator.names import child_name
from testing.system import ROOT


def test_the_client_is_as_it_is_built() -> None:
    said = "clients/js, or what is kept of it, has changed: run `python -m testing.demo_page`"
    assert demo_page.STAMP.read_text().strip() == demo_page.digest(), said


def test_nothing_comes_from_elsewhere() -> None:
    for path in (demo_page.PAGE / "index.html", demo_page.PAGE / "demo.css", demo_page.PAGE / "demo.js"):
        assert (
            re.findall(r"(?:https?:)?//[a-z0-9]|@import|url\(", re.sub(r"^\s*// .*$", "", path.read_text(), flags=re.M))
            == []
        )


def test_what_is_published_is_never_html() -> None:
    text = (demo_page.PAGE / "demo.js").read_text()
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", text) == []


def of_kind(kind: str) -> dict[str, Any]:
    (found,) = (
        item for item in demo.manifests("registry/demo:1", "https://app.example.com/demo") if item["kind"] == kind
    )
    return found


def test_the_manifests_are_filled_in() -> None:
    (container,) = of_kind("Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry/demo:1"
    assert {"name": "PUBLIC_URL", "value": "https://app.example.com/demo"} in container["env"]
    assert of_kind("Ingress")["spec"]["rules"][0]["host"] == "app.example.com"
    assert of_kind("Namespace")["metadata"]["name"] == demo.NAMESPACE


def test_the_secrets_it_may_read_are_its_users() -> None:
    (secrets,) = (rule for rule in of_kind("Role")["rules"] if rule["resources"] == ["secrets"])
    assert secrets == {
        "apiGroups": [""],
        "resources": ["secrets"],
        "resourceNames": [child_name(user) for user in USERS],
        "verbs": ["get"],
    }


def test_the_network_policy_is_for_the_pod_and_its_port() -> None:
    policy, pod = of_kind("NetworkPolicy")["spec"], of_kind("Deployment")["spec"]["template"]
    assert policy["podSelector"]["matchLabels"] == pod["metadata"]["labels"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    [port] = pod["spec"]["containers"][0]["ports"]
    assert [rule["ports"] for rule in policy["ingress"]] == [[{"port": port["name"], "protocol": "TCP"}]]
    [database] = [rule for rule in policy["egress"] if rule["ports"][0]["port"] == 5432]
    blocks = [peer["ipBlock"] for peer in database["to"] if "ipBlock" in peer]
    assert {block["cidr"]: block["except"] for block in blocks} == {
        "0.0.0.0/0": ["169.254.0.0/16"],
        "::/0": ["fe80::/10"],
    }


def test_the_documented_tables_and_grants_are_those_that_are_tested() -> None:
    text = (ROOT / "docs" / "demo.md").read_text()
    for grant in demo.GRANTS.strip().splitlines():
        assert grant in text
    tables = [line for line in demo.SCHEMA.read_text().splitlines() if not line.startswith("--")]
    assert "\n".join(tables) in text
