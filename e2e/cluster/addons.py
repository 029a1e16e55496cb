"""What every cluster gets: DNS where there is none yet, and Traefik as the ingress controller."""

from string import Template

from .binaries import TRAEFIK
from .paths import MANIFESTS
from .progress import step
from .provider import FIELD_MANAGER, Provider

INGRESS_NODE_PORT = 30080
COREDNS_IMAGE = "localhost/coredns:e2e"
TRAEFIK_IMAGE = "localhost/traefik:e2e"
TRAEFIK_OFFICIAL = f"docker.io/library/traefik:v{TRAEFIK}"


def manifest(file: str, /, **values: str) -> str:
    """A file of `manifests/`, its `${...}` filled in."""
    return Template((MANIFESTS / file).read_text()).substitute(values)


def apply_dns(cluster: Provider) -> None:
    """CoreDNS at the address every pod is told to ask."""
    with step("DNS", usual="5 s"):
        cluster.apply(manifest("coredns.yaml", image=COREDNS_IMAGE))
        cluster.wait_rolled_out("kube-system", "deployment/coredns")


def apply_ingress(cluster: Provider, image: str) -> None:
    """Traefik, as ingress class `traefik`, which is the default."""
    with step("ingress controller", usual="5 s"):
        cluster.apply(manifest("traefik.yaml", image=image, node_port=str(INGRESS_NODE_PORT)))
        cluster.wait_rolled_out("traefik", "deployment/traefik")


def remove_ingress(cluster: Provider) -> None:
    """Remove Traefik if it is ours: told by the name of its namespace and of the manager of its fields."""
    managers = "{.metadata.managedFields[*].manager}"
    found = cluster.kubectl(
        "get", "namespace", "traefik", "--ignore-not-found", "--show-managed-fields", "-o", f"jsonpath={managers}"
    )
    if FIELD_MANAGER not in found.split():
        return
    with step("removing the ingress controller"):
        text = manifest("traefik.yaml", image=TRAEFIK_IMAGE, node_port=str(INGRESS_NODE_PORT))
        cluster.kubectl("delete", "--ignore-not-found", "-f", "-", input=text, timeout=180)
