"""The components of the node, as data. Pure: this module reads and writes nothing.

Paths are those inside the node, where `/var/lib` and `/var/log` are directories of the state and `/run` is empty.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .addresses import CHOICES, DEFAULT, Addresses, url_host
from .pki import Identity

ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}

INTERFACE = "urt0"
NODE = "local"
CGROUP = "userrealtime"
SYSTEM_CGROUP = f"{CGROUP}/system"
"""The control group of Kubernetes itself, beside the group `kubepods`: the two share the CPUs as with systemd."""
CPU_WEIGHTS = {"cpu.shares": 8192, "cpu.weight": 800}
"""The files with the weight of a control group in versions 1 and 2, and the weight of the cluster on a machine without
systemd: as much CPU as eight processes. With systemd, the cluster has the CPU of a slice, which is the default."""
KUBERNETES = Path("/var/lib/kubernetes")
PKI = KUBERNETES / "pki"
MIRRORS = KUBERNETES / "mirrors"
CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
CNI_DIRECTORIES = ("/usr/lib/cni", "/usr/libexec/cni", "/opt/cni/bin")
PAUSE_IMAGE = "localhost/pause:e2e"
# Shorter than a kubelet's default of a minute, which tests of changed Secrets would have to wait for.
SYNC_S = 10

# The kubelet insists on these values and would set them for the whole machine. In the node they are files that
# already say so.
KERNEL_VALUES = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}

# the owners of the kubeconfigs of the components
CLIENTS = ("controller-manager", "scheduler", "proxy", "kubelet")


def identities(addresses: Addresses) -> Sequence[Identity]:
    """Return the owners of certificates."""
    names = ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc")
    reached = [address for family in addresses.families for address in (family.api_service, family.node)]
    nodes = [f"IP:{family.node}" for family in addresses.families]
    return (
        Identity(
            "apiserver",
            "/CN=kube-apiserver",
            (*(f"DNS:{name}" for name in names), *(f"IP:{address}" for address in ("127.0.0.1", *reached))),
        ),
        Identity("admin", "/O=system:masters/CN=admin", ("DNS:admin",)),
        Identity("controller-manager", "/CN=system:kube-controller-manager", ("DNS:controller-manager",)),
        Identity("scheduler", "/CN=system:kube-scheduler", ("DNS:scheduler",)),
        Identity("proxy", "/CN=system:kube-proxy", ("DNS:proxy",)),
        Identity("kubelet", f"/O=system:nodes/CN=system:node:{NODE}", (f"DNS:{NODE}", *nodes)),
        Identity("apiserver-kubelet", "/O=system:masters/CN=apiserver-kubelet", ("DNS:apiserver-kubelet",)),
        Identity("front-proxy", "/CN=front-proxy-client", ("DNS:front-proxy",)),
    )


@dataclass(frozen=True)
class Process:
    """A component.

    Attributes:
        ready: what must answer before the next one starts: a Unix socket's path, `host:port`, an https URL; or none.
        listens: whether it gets the listening socket of the ingress, as descriptor 3.
    """

    name: str
    argv: Sequence[str]
    ready: str = ""
    listens: bool = False


@dataclass(frozen=True)
class NodeSpec:
    """The parameters of the node's first process, which receives them as JSON."""

    state: str
    hostname: str
    addresses: Sequence[str] = ()
    kernel_values: dict[str, str] = field(default_factory=dict)
    processes: Sequence[Process] = ()

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @staticmethod
    def from_json(text: str) -> "NodeSpec":
        value = json.loads(text)
        value["processes"] = [Process(**process) for process in value["processes"]]
        return NodeSpec(**value)


def node_spec(
    state: Path, hyperkube: Path, forward: Path, ingress_port: int, addresses: Addresses = CHOICES[DEFAULT]
) -> NodeSpec:
    ingress = f"{url_host(addresses.primary.node)}:{ingress_port}"
    return NodeSpec(
        state=str(state),
        hostname="userrealtime",
        addresses=[f"{family.node}/{family.prefix}" for family in addresses.families],
        kernel_values=KERNEL_VALUES,
        processes=(
            etcd(hyperkube),
            containerd(),
            api_server(hyperkube, addresses),
            controller_manager(hyperkube),
            scheduler(hyperkube),
            kubelet(hyperkube, addresses),
            kube_proxy(hyperkube),
            Process("ingress", (str(forward), ingress), listens=True),
        ),
    )


def etcd(hyperkube: Path) -> Process:
    client, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
    return Process(
        "etcd",
        (
            str(hyperkube),
            "etcd",
            "--data-dir=/var/lib/etcd",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            # The state does not outlive the cluster, so a power failure may destroy it.
            "--unsafe-no-fsync",
        ),
        ready="127.0.0.1:2379",
    )


def containerd() -> Process:
    return Process(
        "containerd", ("containerd", "--config", str(KUBERNETES / "containerd.toml")), ready=CONTAINERD_SOCKET
    )


def api_server(hyperkube: Path, addresses: Addresses) -> Process:
    return Process(
        "kube-apiserver",
        (
            str(hyperkube),
            "kube-apiserver",
            "--etcd-servers=http://127.0.0.1:2379",
            f"--service-cluster-ip-range={addresses.services}",
            "--secure-port=6443",
            f"--advertise-address={addresses.primary.node}",
            f"--tls-cert-file={PKI}/apiserver.crt",
            f"--tls-private-key-file={PKI}/apiserver.key",
            f"--client-ca-file={PKI}/ca.crt",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={PKI}/sa.pub",
            f"--service-account-signing-key-file={PKI}/sa.key",
            f"--kubelet-client-certificate={PKI}/apiserver-kubelet.crt",
            f"--kubelet-client-key={PKI}/apiserver-kubelet.key",
            f"--kubelet-certificate-authority={PKI}/ca.crt",
            # The node's name does not resolve, so logs, exec and port-forward use its address.
            "--kubelet-preferred-address-types=InternalIP",
            f"--requestheader-client-ca-file={PKI}/ca.crt",
            "--requestheader-allowed-names=front-proxy-client",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-username-headers=X-Remote-User",
            f"--proxy-client-cert-file={PKI}/front-proxy.crt",
            f"--proxy-client-key-file={PKI}/front-proxy.key",
        ),
        # Its built-in roles exist only when it is ready, and the controller manager exits without them.
        ready=f"{addresses.api_server}/readyz",
    )


def controller_manager(hyperkube: Path) -> Process:
    config = f"{KUBERNETES}/controller-manager.kubeconfig"
    return Process(
        "kube-controller-manager",
        (
            str(hyperkube),
            "kube-controller-manager",
            f"--kubeconfig={config}",
            f"--authentication-kubeconfig={config}",
            f"--authorization-kubeconfig={config}",
            "--bind-address=127.0.0.1",
            "--use-service-account-credentials=true",
            f"--service-account-private-key-file={PKI}/sa.key",
            f"--root-ca-file={PKI}/ca.crt",
            f"--cluster-signing-cert-file={PKI}/ca.crt",
            f"--cluster-signing-key-file={PKI}/ca.key",
            "--leader-elect=false",
        ),
    )


def scheduler(hyperkube: Path) -> Process:
    config = f"{KUBERNETES}/scheduler.kubeconfig"
    return Process(
        "kube-scheduler",
        (
            str(hyperkube),
            "kube-scheduler",
            f"--kubeconfig={config}",
            f"--authentication-kubeconfig={config}",
            f"--authorization-kubeconfig={config}",
            "--bind-address=127.0.0.1",
            "--leader-elect=false",
        ),
    )


def kubelet(hyperkube: Path, addresses: Addresses) -> Process:
    return Process(
        "kubelet",
        (
            str(hyperkube),
            "kubelet",
            f"--config={KUBERNETES}/kubelet.yaml",
            f"--kubeconfig={KUBERNETES}/kubelet.kubeconfig",
            f"--hostname-override={NODE}",
            f"--node-ip={addresses.nodes}",
        ),
    )


def kube_proxy(hyperkube: Path) -> Process:
    return Process("kube-proxy", (str(hyperkube), "kube-proxy", f"--config={KUBERNETES}/proxy.yaml"))


def files(cni_binaries: str, addresses: Addresses = CHOICES[DEFAULT]) -> dict[str, str]:
    """Return the configuration files, by path inside the node. JSON is also valid YAML."""
    return {
        f"{KUBERNETES}/containerd.toml": _containerd_toml(cni_binaries),
        f"{KUBERNETES}/kubelet.yaml": json.dumps(_kubelet_configuration(addresses), indent=1),
        f"{KUBERNETES}/proxy.yaml": json.dumps(_proxy_configuration(addresses), indent=1),
        f"{KUBERNETES}/cni/10-pods.conflist": json.dumps(_cni_configuration(addresses), indent=1),
    }


def mirror_toml(address: str) -> str:
    """Return the `hosts.toml` of a registry whose images come from another address, and from nowhere else."""
    return f"""server = "http://{address}"\n[host."http://{address}"]\ncapabilities = ["pull", "resolve"]\n"""


def _containerd_toml(cni_binaries: str) -> str:
    return f"""version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "{CONTAINERD_SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  # Without CAP_SYS_RESOURCE lowering a score is refused, and every sandbox would fail.
  restrict_oom_score_adj = true
  # read at each pull
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{MIRRORS}"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{cni_binaries}"
    conf_dir = "{KUBERNETES}/cni"
"""


def _kubelet_configuration(addresses: Addresses) -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{PKI}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "address": addresses.primary.node,
        "healthzBindAddress": "127.0.0.1",
        "tlsCertFile": f"{PKI}/kubelet.crt",
        "tlsPrivateKeyFile": f"{PKI}/kubelet.key",
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{CGROUP}",
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        "clusterDomain": "cluster.local",
        "clusterDNS": [addresses.primary.dns_service],
        # not the machine's resolver, which the pods' network does not reach
        "resolvConf": "",
        "failSwapOn": False,
        "failCgroupV1": False,
        "maxPods": 500,
        "podPidsLimit": 1024,
        "serializeImagePulls": False,
        "syncFrequency": f"{SYNC_S}s",
        # A kubelet that watches Secrets may request them before the API server permits it, and then waits 1.7 s. This
        # one requests them again after 0.5 s (bench/README.md, "The slow wakes").
        "configMapAndSecretChangeDetectionStrategy": "Cache",
        # A developer's disk is often nearly full, and nothing here is worth an eviction.
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        # Images are loaded, not pulled: a collected image would be missing.
        "imageGCHighThresholdPercent": 100,
    }


def _proxy_configuration(addresses: Addresses) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": f"{KUBERNETES}/proxy.kubeconfig"},
        "clusterCIDR": addresses.pods,
        "mode": "nftables",
        "hostnameOverride": NODE,
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        # Zero keeps the kernel's values, most of which apply to the whole machine.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }


def _cni_configuration(addresses: Addresses) -> dict[str, Any]:
    # A point-to-point link a pod, not a bridge: every packet is routed, so that kube-proxy's translation of a service's
    # address is undone on the way back without the kernel's bridge filtering.
    return {
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [
            {
                "type": "ptp",
                "ipMasq": False,
                "ipam": {
                    "type": "host-local",
                    "dataDir": "/run/cni-addresses",
                    "ranges": [[{"subnet": family.pods}] for family in addresses.families],
                    "routes": [{"dst": family.everything} for family in addresses.families],
                },
            }
        ],
    }
