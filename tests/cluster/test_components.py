import ipaddress
import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from testing.cluster import addons
from testing.cluster.errors import ClusterError
from testing.cluster.local import LocalCluster, components
from testing.cluster.local.addresses import CHOICES, DEFAULT, Addresses, chosen, url_host
from testing.cluster.local.components import NodeSpec

FAMILIES = pytest.mark.parametrize("addresses", CHOICES.values(), ids=CHOICES)


def spec(addresses: Addresses = CHOICES[DEFAULT]) -> NodeSpec:
    return components.node_spec(Path("/state"), Path("/bin/hyperkube"), Path("/bin/forward"), 30080, addresses)


def test_the_specification_survives_its_journey() -> None:
    assert NodeSpec.from_json(spec().to_json()).to_json() == spec().to_json()


def test_every_certificate_named_is_made() -> None:
    made = {"ca", "sa"} | {identity.name for identity in components.identities(CHOICES[DEFAULT])}
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


@FAMILIES
def test_addresses_do_not_overlap(addresses: Addresses) -> None:
    for family in addresses.families:
        link, pods, services = (ipaddress.ip_network(text) for text in (family.link, family.pods, family.services))
        assert not link.overlaps(pods)
        assert not link.overlaps(services)
        assert not pods.overlaps(services)
        assert ipaddress.ip_address(family.node) in link
        assert ipaddress.ip_address(family.api_service) == services.network_address + 1
        assert ipaddress.ip_address(family.dns_service) in services
        assert pods.network_address in ipaddress.ip_network(family.everything)


@FAMILIES
def test_the_api_server_certificate_covers_its_addresses(addresses: Addresses) -> None:
    (server,) = (identity for identity in components.identities(addresses) if identity.name == "apiserver")
    for family in addresses.families:
        assert {f"IP:{family.node}", f"IP:{family.api_service}"} <= set(server.names)


@FAMILIES
def test_pods_ask_the_dns_that_is_installed(addresses: Addresses) -> None:
    kubelet = json.loads(components.files("/cni", addresses)[f"{components.KUBERNETES}/kubelet.yaml"])
    address = addresses.primary.dns_service
    documents = yaml.safe_load_all(addons.manifest("coredns.yaml", image="x", address=address))
    (service,) = (document for document in documents if document["kind"] == "Service")
    assert kubelet["clusterDNS"] == [service["spec"]["clusterIP"]] == [address]


@FAMILIES
def test_no_address_of_another_family_is_used(addresses: Addresses) -> None:
    """Except loopback, which a cluster of IPv6 only has, too."""
    text = spec(addresses).to_json() + json.dumps(components.files("/cni", addresses))
    versions = {family.version for family in addresses.families}
    assert bool(re.search(r"\b10\.(96|24[34])\.", text)) == (4 in versions)
    assert ("fd5d:83b1:6c20" in text) == (6 in versions)


def test_an_unknown_choice_of_families_is_rejected() -> None:
    with pytest.raises(ClusterError, match="LOCAL_IP_FAMILY=ipx is unknown: choose one of ipv4, ipv6, dual"):
        chosen("ipx")


def test_an_address_in_a_url() -> None:
    assert CHOICES["ipv6"].api_server == "https://[fd5d:83b1:6c20:1::2]:6443"
    assert url_host("10.0.0.1") == "10.0.0.1"


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
