"""A real one-node Kubernetes without a container engine: for machines where no image can be pulled.

The node is a set of Linux namespaces (processes, mounts, network, host name) made by `unshare`, as a kind node is a
container. Everything the cluster does happens in there: kube-proxy's nftables rules, the pods' interfaces, the
kubelet's mounts, IP forwarding, and every process down to the last container. So the machine around it stays as it
was, the control plane's ports are on no network of the machine, and ending the node's first process ends everything;
the kernel does the tidying. On the machine's side there are only: one interface (`urt0`) with the routes to pods and
services, the socket of the ingress on 127.0.0.1, a control group and the state directory; `down` removes them.

    node.py        the node's first process: sets up the inside, starts the components, restarts what ends
    addresses.py   the addresses of IPv4, of IPv6 or of both
    components.py  what runs in the node, as data: command lines and configuration files
    pki.py         certificates and kubeconfigs
    policies.py    what enforces NetworkPolicies, for the length of a test
    leftovers.py   what of all this is still on the machine
    cluster.py     the provider: up, down, images

Pods reach each other, the services and this machine's end of `urt0`; nothing outside the machine. NetworkPolicies
are accepted and not enforced, since the pods' network is the plain `ptp` plugin, but while `enforcing_policies` runs.
"""

from .cluster import LocalCluster

__all__ = ["LocalCluster"]
