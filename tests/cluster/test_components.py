import ipaddress
import json
import re
import tomllib
from pathlib import Path

import yaml

from testing.cluster import addons
from testing.cluster.local import LocalCluster, components
from testing.cluster.local.components import NodeSpec


def spec() -> NodeSpec:
    return components.node_spec(Path("/state"), Path("/bin/hyperkube"), Path("/bin/forward"), 30080)


def test_the_specification_survives_its_journey() -> None:
    assert NodeSpec.from_json(spec().to_json()).to_json() == spec().to_json()


def test_every_certificate_named_is_made() -> None:
    made = {"ca", "sa"} | {identity.name for identity in components.IDENTITIES}
    text = spec().to_json() + json.dumps(components.files("/cni"))
    named = set(re.findall(rf"{components.PKI}/([a-z-]+)\.(?:crt|key|pub)", text))
    assert named
    assert named <= made
    assert set(components.CLIENTS) <= made


def test_every_configuration_file_named_is_written() -> None:
    written = {Path(path).name for path in components.files("/cni")}
    written |= {f"{client}.kubeconfig" for client in components.CLIENTS}
    named = set(re.findall(rf"{components.KUBERNETES}/([a-z.-]+\.(?:yaml|toml|kubeconfig))", spec().to_json()))
    assert named
    assert named <= written


def test_addresses_do_not_overlap() -> None:
    link = ipaddress.ip_network(f"{components.LINK_HOST}/{components.LINK_PREFIX}", strict=False)
    pods, services = ipaddress.ip_network(components.PODS), ipaddress.ip_network(components.SERVICES)
    assert not link.overlaps(pods)
    assert not link.overlaps(services)
    assert not pods.overlaps(services)
    assert ipaddress.ip_address(components.NODE_IP) in link
    assert ipaddress.ip_address(components.API_SERVICE) == services.network_address + 1


def test_the_api_server_certificate_covers_its_addresses() -> None:
    (server,) = (identity for identity in components.IDENTITIES if identity.name == "apiserver")
    assert {f"IP:{components.NODE_IP}", f"IP:{components.API_SERVICE}"} <= set(server.names)


def test_pods_ask_the_dns_that_is_installed() -> None:
    kubelet = json.loads(components.files("/cni")[f"{components.KUBERNETES}/kubelet.yaml"])
    documents = yaml.safe_load_all(addons.manifest("coredns.yaml", image="x"))
    (service,) = (document for document in documents if document["kind"] == "Service")
    assert kubelet["clusterDNS"] == [service["spec"]["clusterIP"]]


def test_the_kubelet_has_the_sync_period_that_tests_wait_for() -> None:
    kubelet = json.loads(components.files("/cni")[f"{components.KUBERNETES}/kubelet.yaml"])
    assert kubelet["syncFrequency"] == f"{LocalCluster.sync_s}s"


def test_containerd_configuration_is_toml() -> None:
    text = components.files("/some/cni")[f"{components.KUBERNETES}/containerd.toml"]
    cri = tomllib.loads(text)["plugins"]["io.containerd.grpc.v1.cri"]
    assert cri["sandbox_image"] == components.PAUSE_IMAGE
    assert cri["cni"]["bin_dir"] == "/some/cni"


def test_one_component_listens_for_the_ingress() -> None:
    assert [process.name for process in spec().processes if process.listens] == ["ingress"]
