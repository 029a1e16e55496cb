"""The stand-in for kind's node image: Debian, kind's own base files, containerd, and Kubernetes of our build.

The root is made by debootstrap and then changed in the way that the Dockerfile of kind's base image describes. kind's
files come out of its Go module when the image is made.
"""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from testing.cluster import addons, binaries, images, oci
from testing.cluster.binaries import KIND, KUBERNETES
from testing.cluster.errors import ClusterError
from testing.cluster.local.components import KERNEL_VALUES, PAUSE_IMAGE
from testing.cluster.paths import cache
from testing.cluster.progress import Step, step

# Not the machine's own release: from version 254 on systemd does not start under version 1 of control groups, which
# virtual machines for tests still have.
SUITE = "bookworm"
PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "kmod", "procps", "hostname", "jq", "ca-certificates"),
    *("iptables", "nftables", "conntrack", "iproute2", "ethtool", "socat"),
    *("containerd", "runc", "containernetworking-plugins"),
)
ENTRYPOINT = ("/kind/bin/start", "/usr/local/bin/entrypoint", "/sbin/init")
PODS = "10.244.0.0/16"

CONTROL_PLANE = "localhost/control-plane:engine"
PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy")
# What kube-proxy calls.
NETFILTER = ("iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore", "nft")

# The network of kind's nodes is a DaemonSet, kindnet. Here it is a configuration file in the image, and the manifest
# that kind applies is a note about that.
CNI_MANIFEST = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "network-stand-in", "namespace": "kube-system"},
    "data": {"note": "Pods are linked by the CNI plugin ptp. NetworkPolicies are not enforced."},
}
CNI_CONFIGURATION = {
    "cniVersion": "0.4.0",
    "name": "pods",
    "plugins": [
        {
            "type": "ptp",
            "ipMasq": True,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": PODS}]], "routes": [{"dst": "0.0.0.0/0"}]},
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}
STORAGE_MANIFEST = {
    "apiVersion": "storage.k8s.io/v1",
    "kind": "StorageClass",
    "metadata": {"name": "standard", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
    "provisioner": "kubernetes.io/no-provisioner",
}

# containerd loads the images of the control plane before it is reported as started, so the kubelet finds them.
IMPORT_IMAGES = """#!/bin/sh
set -eu
[ ! -e /var/lib/containerd/imported ] || exit 0
for archive in /kind/images/*.tar; do
  ctr -n k8s.io images import "$archive"
done
while read -r image name; do
  ctr -n k8s.io images tag --force "$image" "$name"
done < /kind/images/names
touch /var/lib/containerd/imported
"""
CONTAINERD_UNIT = """[Service]
ExecStartPost=/kind/bin/import-images
TimeoutStartSec=180
"""
# Of systemd, which raises them.
OTHER_KERNEL_VALUES = ("fs/file-max", "fs/nr_open")
# The kubelet and systemd would set these for the whole machine: in the node they are separate files.
START = "\n".join(
    [
        "#!/bin/sh",
        "set -eu",
        "own() {",
        '  mkdir -p "$(dirname "/run/sys/$1")"',
        '  cat > "/run/sys/$1"',
        '  mount --bind "/run/sys/$1" "/proc/sys/$1"',
        "}",
        *(f"echo {value} | own {name}" for name, value in KERNEL_VALUES.items()),
        *(f"cat /proc/sys/{name} | own {name}" for name in OTHER_KERNEL_VALUES),
        'exec "$@"',
        "",
    ]
)


def node_image() -> Path:
    """The root of the node image as a tar file, made if it is not in the cache.

    Raises:
        ClusterError: it cannot be made; the text says why.
    """
    hyperkube = binaries.hyperkube()
    contained = [
        (CONTROL_PLANE, hyperkube),
        (addons.COREDNS_IMAGE, binaries.coredns()),
        (PAUSE_IMAGE, binaries.pause()),
    ]
    made_of = [Path(__file__).read_text(), *(f"{name} {binary.parent.name}" for name, binary in contained)]
    digest = hashlib.sha256("\0".join(made_of).encode()).hexdigest()[:12]
    archive = cache("engine", f"node-{digest}.tar")
    if archive.exists():
        return archive
    base = _debian()
    for older in archive.parent.glob("node-*"):
        older.unlink()
    with (
        step("making a node image for kind", usual="1 min") as current,
        tempfile.TemporaryDirectory(dir=archive.parent) as workspace,
    ):
        root = Path(workspace, "root")
        root.mkdir()
        current.run(["tar", "--extract", f"--file={base}", f"--directory={root}"], timeout=300)
        _add_kind_files(current, root)
        _configure_systemd(root)
        _add_kubernetes(root, hyperkube)
        _configure_containerd(root)
        _add_images(current, root, contained, Path(workspace))
        partial = archive.with_suffix(".partial")
        _pack(current, root, partial)
        partial.replace(archive)
    return archive


def _debian() -> Path:
    """Debian with the packages of a node, as a tar file."""
    mirror, _ = images.apt_source(images.apt_lines())
    digest = hashlib.sha256("\0".join((SUITE, mirror, *PACKAGES)).encode()).hexdigest()[:12]
    archive = cache("engine", f"debian-{digest}.tar")
    if archive.exists():
        return archive
    for older in archive.parent.glob("debian-*"):
        older.unlink()
    with (
        step(f"making a Debian {SUITE} with debootstrap", usual="1 to 2 min") as current,
        tempfile.TemporaryDirectory(dir=archive.parent) as workspace,
    ):
        root = Path(workspace, "root")
        namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]
        packages = f"--include={','.join(PACKAGES)}"
        debootstrap = ["debootstrap", "--variant=minbase", packages, SUITE, str(root), mirror]
        current.run([*namespaces, *debootstrap], timeout=900)
        partial = archive.with_suffix(".partial")
        _pack(current, root, partial)
        partial.replace(archive)
    return archive


def _pack(current: Step, root: Path, archive: Path) -> None:
    without = ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/cache/apt", "var/lib/apt/lists", "var/log")
    excluded = [f"--exclude=./{path}/*" for path in (*without, "dev", "proc", "sys", "run")]
    current.run(
        ["tar", "--create", "--numeric-owner", *excluded, f"--directory={root}", f"--file={archive}", "."], timeout=300
    )


def _add_kind_files(current: Step, root: Path) -> None:
    """Copy the files of kind's base image, with the modes that its Dockerfile gives them."""
    files = _kind_module() / "images" / "base" / "files"
    current.run(["cp", "--recursive", "--no-preserve=mode,ownership", f"{files}/.", root], timeout=60)
    for directory in (root / "usr/local/bin", root / "kind/bin"):
        for program in directory.iterdir():
            program.chmod(0o755)
    _write(root / "kind/bin/start", START, 0o755)
    _write(root / "kind/version", f"v{KUBERNETES}")
    _write(root / "kind/manifests/default-cni.yaml", json.dumps(CNI_MANIFEST))
    _write(root / "kind/manifests/default-storage.yaml", json.dumps(STORAGE_MANIFEST))


def _kind_module() -> Path:
    """The directory of kind's source, downloaded by Go if need be."""
    module = f"sigs.k8s.io/kind@v{KIND}"
    # Outside of any module, or go would look for this one in its go.mod.
    with tempfile.TemporaryDirectory() as elsewhere:
        command = [binaries.require_go(), "mod", "download", "-json", module]
        answer = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, timeout=300).stdout
    found = json.loads(answer or "{}")
    if "Dir" not in found:
        raise ClusterError(f"{module} cannot be downloaded: {found.get('Error', 'go gives no reason')}")
    return Path(found["Dir"])


def _configure_systemd(root: Path) -> None:
    """Leave only the services of a node, and none that changes the machine."""
    for pattern in (
        "lib/systemd/system/sysinit.target.wants/systemd-tmpfiles-setup.service",
        "lib/systemd/system/multi-user.target.wants/*",
        "etc/systemd/system/*.wants/*",
        "lib/systemd/system/local-fs.target.wants/*",
        "lib/systemd/system/sockets.target.wants/*udev*",
        "lib/systemd/system/sockets.target.wants/*initctl*",
        "lib/systemd/system/basic.target.wants/*",
        "usr/lib/sysctl.d/*",
    ):
        for path in root.glob(pattern):
            path.unlink()
    _write(root / "etc/systemd/journald.conf.d/kmsg.conf", "[Journal]\nReadKMsg=no\n")
    units = ("kubelet.service", "containerd.service", "undo-mount-hacks.service")
    _chroot(root, "systemctl", "enable", *units)
    _chroot(root, "systemctl", "mask", "systemd-binfmt.service")


def _add_kubernetes(root: Path, hyperkube: Path) -> None:
    shutil.copy2(hyperkube, root / "usr/bin/hyperkube")
    for name in ("kubelet", "kubectl", "kubeadm"):
        # Not symbolic links: each has to work when it is copied out of the image.
        (root / "usr/bin" / name).hardlink_to(root / "usr/bin/hyperkube")
    (root / "etc/kubernetes/manifests").mkdir(parents=True)


def _configure_containerd(root: Path) -> None:
    for program in ("containerd", "ctr", "containerd-shim-runc-v2"):
        (root / "usr/local/bin" / program).symlink_to(f"/usr/bin/{program}")
    plugins = root / "opt/cni/bin"
    plugins.mkdir(parents=True)
    for name in ("host-local", "loopback", "ptp", "portmap"):
        shutil.copy2(root / "usr/lib/cni" / name, plugins / name)
    _write(root / "etc/cni/net.d/10-pods.conflist", json.dumps(CNI_CONFIGURATION))
    specification = json.loads(_chroot(root, "ctr", "oci", "spec"))
    del specification["process"]["rlimits"]
    hooks = specification.setdefault("hooks", {}).setdefault("createContainer", [])
    hooks.append({"path": "/kind/bin/mount-product-files.sh"})
    _write(root / "etc/containerd/cri-base.json", json.dumps(specification))
    configuration = root / "etc/containerd/config.toml"
    # Without CAP_SYS_RESOURCE lowering a score is refused. The ports are open to containers as in later versions.
    configuration.write_text(
        replaced(
            configuration.read_text(),
            "restrict_oom_score_adj = false",
            "restrict_oom_score_adj = true\n  enable_unprivileged_ports = true",
        )
    )
    _write(root / "kind/bin/import-images", IMPORT_IMAGES, 0o755)
    _write(root / "etc/systemd/system/containerd.service.d/images.conf", CONTAINERD_UNIT)


def replaced(text: str, old: str, new: str) -> str:
    """`text` with `old`, which occurs once, replaced.

    Raises:
        ClusterError: it does not occur once: the file of kind has changed.
    """
    if text.count(old) != 1:
        raise ClusterError(f"kind {KIND}: {old!r} is expected once in its configuration of containerd")
    return text.replace(old, new)


def _add_images(current: Step, root: Path, contained: Iterable[tuple[str, Path]], workspace: Path) -> None:
    """Archives of the images that kubeadm names, for containerd to load."""
    target = root / "kind/images"
    target.mkdir(parents=True)
    for reference, binary in contained:
        archive = target / f"{binary.name}.tar"
        if reference == CONTROL_PLANE:
            layer = _control_plane_layer(current, root, binary, workspace)
            oci.write(archive, reference, layer)
        else:
            oci.write_static(archive, reference, binary)
    listing = _chroot(root, "kubeadm", "config", "images", "list", f"--kubernetes-version=v{KUBERNETES}")
    names = [*listing.split(), _sandbox_image((root / "etc/containerd/config.toml").read_text())]
    _write(target / "names", "".join(f"{stand_in(name)} {name}\n" for name in names))


def stand_in(name: str) -> str:
    """Which of our images replaces an image of the registry of Kubernetes.

    Raises:
        ClusterError: none does.
    """
    program = name.rpartition("/")[2].partition(":")[0]
    if program in (*PROGRAMS, "etcd"):
        return CONTROL_PLANE
    if program == "coredns":
        return addons.COREDNS_IMAGE
    if program == "pause":
        return PAUSE_IMAGE
    raise ClusterError(f"kubeadm asks for {name}, for which there is no stand-in")


def _sandbox_image(configuration: str) -> str:
    found = re.search(r'sandbox_image = "([^"]+)"', configuration)
    if found is None:
        raise ClusterError(f"kind {KIND}: no sandbox image in its configuration of containerd")
    return found[1]


def _control_plane_layer(current: Step, root: Path, hyperkube: Path, workspace: Path) -> Path:
    """All programs of the control plane by name, and what kube-proxy needs of Debian."""
    image, layer = workspace / "control-plane", workspace / "control-plane.tar"
    programs = image / "usr/local/bin"
    programs.mkdir(parents=True)
    shutil.copy2(hyperkube, programs / "hyperkube")
    for name in (*PROGRAMS, "etcd"):
        (programs / name).symlink_to("hyperkube")
    xtables = next((root / "usr/lib").glob("*/xtables"))
    extensions = [f"/{extension.relative_to(root)}" for extension in xtables.glob("*.so")]
    for path in netfilter_files(_chroot(root, "ldd", "/usr/sbin/xtables-nft-multi", "/usr/sbin/nft", *extensions)):
        (image / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / path, image / path)
    shutil.copytree(xtables, image / xtables.relative_to(root), dirs_exist_ok=True)
    for name in NETFILTER:
        if name != "nft":
            (image / "usr/sbin" / name).symlink_to("xtables-nft-multi")
    for merged in ("bin", "sbin", "lib", "lib64"):
        (image / merged).symlink_to(f"usr/{merged}")
    (image / "tmp").mkdir(mode=0o1777)
    (image / "run").mkdir()
    current.run(
        ["tar", "--create", "--numeric-owner", f"--directory={image}", f"--file={layer}", "."],
        timeout=120,
    )
    return layer


def netfilter_files(libraries: str) -> list[str]:
    """nft, iptables and their libraries, from the output of ldd: paths without a slash at the beginning."""
    # Debian's /lib is a link to /usr/lib.
    found = {f"usr{path}" for path in re.findall(r"(?:=> |\t)(/lib\S+) \(", libraries)}
    found |= {path[1:] for path in re.findall(r"=> (/usr/lib\S+) \(", libraries)}
    return sorted(found | {"usr/sbin/xtables-nft-multi", "usr/sbin/nft"})


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def _chroot(root: Path, *command: str) -> str:
    """Run a program in `root`; its output."""
    environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "HOME": "/root"}
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "chroot", root, *command],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    if done.returncode != 0:
        raise ClusterError(f"`{shlex.join(command)}` in the node image: {(done.stderr or done.stdout).strip()}")
    return done.stdout
