"""The add-ons of a cluster: DNS if it has none, and Traefik for Ingresses and the Gateway API."""

import hashlib
from string import Template

from .binaries import COREDNS, TRAEFIK, gateway_api
from .paths import MANIFESTS
from .progress import step
from .provider import Provider

INGRESS_NODE_PORT = 30080
COREDNS_IMAGE = f"localhost/coredns:{COREDNS}"
TRAEFIK_IMAGE = f"localhost/traefik:{TRAEFIK}"
# An annotation of the ingress controller's namespace.
APPLIED = "userrealtime.dev/applied"
GATEWAY = {"name": "traefik", "namespace": "traefik"}


def manifest(file: str, /, **values: str) -> str:
    """Return a file of `manifests/` with its `${...}` replaced."""
    return Template((MANIFESTS / file).read_text()).substitute(values)


def apply_dns(cluster: Provider, address: str) -> None:
    """Install CoreDNS with this address of its Service, which is in every pod's resolv.conf."""
    with step("DNS", usual="5 s"):
        cluster.apply(manifest("coredns.yaml", image=COREDNS_IMAGE, address=address))
        cluster.wait_rolled_out("kube-system", "deployment/coredns")


def apply_ingress(cluster: Provider, image: str) -> None:
    """Install Traefik as the default ingress class `traefik`, and as the Gateway of GATEWAY."""
    crds = gateway_api()
    traefik = manifest("traefik.yaml", image=image, node_port=str(INGRESS_NODE_PORT))
    gateway = manifest("gateway.yaml", **GATEWAY)
    digest = hashlib.sha256("\0".join((crds, traefik, gateway)).encode()).hexdigest()[:12]
    with step("ingress controller", usual="5 s"):
        if _applied(cluster) != digest:
            cluster.apply(crds)
            names = (f"crd/{kind}.gateway.networking.k8s.io" for kind in ("gatewayclasses", "gateways", "httproutes"))
            cluster.kubectl("wait", "--for=condition=Established", *names, "--timeout=30s")
            cluster.apply(traefik)
            cluster.apply(gateway)
        cluster.wait_rolled_out("traefik", "deployment/traefik")
        # Last: an interrupted installation is then repeated.
        cluster.kubectl("annotate", "--overwrite", "namespace", GATEWAY["namespace"], f"{APPLIED}={digest}")


def _applied(cluster: Provider) -> str:
    """Return the digest of the last applied manifests, empty if there are none."""
    path = "jsonpath={.metadata.annotations." + APPLIED.replace(".", "\\.") + "}"
    return cluster.kubectl("get", "namespace", GATEWAY["namespace"], "--ignore-not-found", "-o", path)
