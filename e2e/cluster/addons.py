"""What every cluster gets: DNS where there is none yet, and Traefik for Ingresses and the Gateway API."""

from string import Template

from .binaries import COREDNS, TRAEFIK, gateway_api
from .paths import MANIFESTS
from .progress import step
from .provider import Provider

INGRESS_NODE_PORT = 30080
COREDNS_IMAGE = f"localhost/coredns:{COREDNS}"
TRAEFIK_IMAGE = f"localhost/traefik:{TRAEFIK}"
TRAEFIK_OFFICIAL = f"traefik:v{TRAEFIK}"
GATEWAY = {"name": "traefik", "namespace": "traefik"}


def manifest(file: str, /, **values: str) -> str:
    """A file of `manifests/`, its `${...}` filled in."""
    return Template((MANIFESTS / file).read_text()).substitute(values)


def apply_dns(cluster: Provider) -> None:
    """CoreDNS at the address every pod is told to ask."""
    with step("DNS", usual="5 s"):
        cluster.apply(manifest("coredns.yaml", image=COREDNS_IMAGE))
        cluster.wait_rolled_out("kube-system", "deployment/coredns")


def apply_ingress(cluster: Provider, image: str) -> None:
    """Traefik, as ingress class `traefik`, which is the default, and as the Gateway of GATEWAY."""
    crds = gateway_api()
    with step("ingress controller", usual="5 s"):
        cluster.apply(crds)
        names = (f"crd/{kind}.gateway.networking.k8s.io" for kind in ("gatewayclasses", "gateways", "httproutes"))
        cluster.kubectl("wait", "--for=condition=Established", *names, "--timeout=30s")
        cluster.apply(manifest("traefik.yaml", image=image, node_port=str(INGRESS_NODE_PORT)))
        cluster.apply(manifest("gateway.yaml", **GATEWAY))
        cluster.wait_rolled_out("traefik", "deployment/traefik")
