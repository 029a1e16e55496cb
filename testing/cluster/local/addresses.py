"""The addresses of the local cluster, for each choice of address families. Pure: this module reads and writes nothing.

`LOCAL_IP_FAMILY` chooses: `ipv4` (the default), `ipv6`, or `dual`, in which IPv4 is the primary family.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from testing.cluster.errors import ClusterError

VARIABLE = "LOCAL_IP_FAMILY"
DEFAULT = "ipv4"


@dataclass(frozen=True)
class Family:
    """The addresses of one family.

    Attributes:
        host: this machine's end of the link to the node.
        node: the node's end.
        prefix: of the link.
        pods: the range of the pods.
        services: the range of the Services.
        everything: the range of all addresses of the family.
    """

    host: str
    node: str
    prefix: int
    pods: str
    services: str
    everything: str

    @property
    def version(self) -> int:
        """4 or 6."""
        return ipaddress.ip_address(self.node).version

    @property
    def link(self) -> str:
        """The range of the link."""
        return str(ipaddress.ip_network(f"{self.host}/{self.prefix}", strict=False))

    @property
    def api_service(self) -> str:
        """The address of the Service `kubernetes`, which is the first of the range."""
        return self._service(1)

    @property
    def dns_service(self) -> str:
        """The address of the Service of the DNS, which every pod's resolv.conf names."""
        return self._service(10)

    def _service(self, number: int) -> str:
        return str(ipaddress.ip_network(self.services)[number])


IPV4 = Family("10.243.255.1", "10.243.255.2", 30, "10.244.0.0/16", "10.96.0.0/16", "0.0.0.0/0")
# A range for local use, with the random number of RFC 4193. The API server accepts at most 20 bits for Services.
IPV6 = Family(
    "fd5d:83b1:6c20:1::1", "fd5d:83b1:6c20:1::2", 126, "fd5d:83b1:6c20:2::/64", "fd5d:83b1:6c20:3::/112", "::/0"
)


@dataclass(frozen=True)
class Addresses:
    """The families of a cluster, of which the first is the primary one."""

    families: Sequence[Family]

    @property
    def primary(self) -> Family:
        return self.families[0]

    @property
    def api_server(self) -> str:
        """The URL of the API server, on this machine and in the node."""
        return f"https://{url_host(self.primary.node)}:6443"

    @property
    def nodes(self) -> str:
        """The addresses of the node, as an argument of Kubernetes' programs."""
        return ",".join(family.node for family in self.families)

    @property
    def pods(self) -> str:
        return ",".join(family.pods for family in self.families)

    @property
    def services(self) -> str:
        return ",".join(family.services for family in self.families)


CHOICES = {DEFAULT: Addresses((IPV4,)), "ipv6": Addresses((IPV6,)), "dual": Addresses((IPV4, IPV6))}


def chosen(text: str) -> Addresses:
    """Return the addresses for a value of `LOCAL_IP_FAMILY`.

    Raises:
        ClusterError: there is no such choice.
    """
    if (found := CHOICES.get(text)) is None:
        raise ClusterError(f"{VARIABLE}={text} is unknown: choose one of {', '.join(CHOICES)}")
    return found


def url_host(address: str) -> str:
    """Return an address as a URL contains it: an IPv6 address has brackets."""
    return f"[{address}]" if ":" in address else address
