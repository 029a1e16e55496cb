import pytest

from testing.cluster.addons import COREDNS_IMAGE
from testing.cluster.errors import ClusterError
from testing.cluster.local.components import PAUSE_IMAGE
from testing.engine import node

LDD = """\
/usr/sbin/nft:
\tlinux-vdso.so.1 (0x00007ffd)
\tlibnftables.so.1 => /lib/x86_64-linux-gnu/libnftables.so.1 (0x00007f2)
\tlibm.so.6 => /usr/lib/x86_64-linux-gnu/libm.so.6 (0x00007f1)
\t/lib64/ld-linux-x86-64.so.2 (0x00007f3)
"""


def test_the_libraries_of_netfilter_programs_are_found_below_usr() -> None:
    assert node.netfilter_files(LDD) == [
        "usr/lib/x86_64-linux-gnu/libm.so.6",
        "usr/lib/x86_64-linux-gnu/libnftables.so.1",
        "usr/lib64/ld-linux-x86-64.so.2",
        "usr/sbin/nft",
        "usr/sbin/xtables-nft-multi",
    ]


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("registry.k8s.io/kube-proxy:v1.34.4", node.CONTROL_PLANE),
        ("registry.k8s.io/etcd:3.6.5-0", node.CONTROL_PLANE),
        ("registry.k8s.io/coredns/coredns:v1.12.1", COREDNS_IMAGE),
        ("registry.k8s.io/pause:3.10.1", PAUSE_IMAGE),
    ],
)
def test_every_image_of_kubeadm_has_a_stand_in(name: str, image: str) -> None:
    assert node.stand_in(name) == image


def test_an_unknown_image_is_rejected() -> None:
    with pytest.raises(ClusterError, match=r"asks for registry\.k8s\.io/new:v1"):
        node.stand_in("registry.k8s.io/new:v1")


def test_a_change_of_kinds_configuration_is_reported() -> None:
    assert node.replaced("a = 1", "1", "2") == "a = 2"
    for text in ("a = 3", "a = 1, b = 1"):
        with pytest.raises(ClusterError, match="expected once"):
            node.replaced(text, "1", "2")


def test_kernel_values_are_set_before_the_node_starts() -> None:
    assert "echo 10 | own kernel/panic\n" in node.START
    assert node.START.endswith('exec "$@"\n')
