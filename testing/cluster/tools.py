"""kind, kubectl and helm for a kind cluster: from PATH if their version fits, otherwise a pinned version.

A pinned version is downloaded from the project's site and verified by the checksum published beside it. Where that
cannot be reached and Go is installed, it is built from its Go module. kubectl of a Linux machine is copied out of the
kind node instead.
"""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from . import binaries, docker, downloads
from .errors import ClusterError
from .paths import HERE
from .progress import Step

Version = tuple[int, int]
# platform.machine() to the word in names of releases.
ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


@dataclass(frozen=True)
class Tool:
    """A program that a kind cluster needs.

    Attributes:
        lowest, highest: the minor versions of a program on PATH that are used, both included.
        version_command: the arguments that print the version; the first `v1.2.3` of the output counts.
        pinned: the version that is obtained if PATH has no fitting one.
        install: the advice for a person.
    """

    name: str
    lowest: Version
    highest: Version
    version_command: tuple[str, ...]
    pinned: str
    install: str

    def on_path(self) -> Path | None:
        """Return the program on PATH if its version fits."""
        return find_on_path(self, os.environ.get("PATH", ""))


@cache
def find_on_path(tool: Tool, path: str) -> Path | None:
    found = shutil.which(tool.name, path=path)
    if found is None:
        return None
    version = _version_of(tool, found)
    if tool.lowest <= version <= tool.highest:
        return Path(found)
    print(
        f"✓ {found} has version {_dotted(version)}, not {_dotted(tool.lowest)} to {_dotted(tool.highest)}: another "
        f"{tool.name} is used",
        file=sys.stderr,
        flush=True,
    )
    return None


def _version_of(tool: Tool, program: str) -> Version:
    try:
        done = subprocess.run([program, *tool.version_command], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return (0, 0)
    return parse_version(done.stdout)


# `kind load` of 0.27 is the first that works with containerd 2, which the nodes of today run.
KIND = Tool(
    "kind",
    (0, 27),
    (0, 99),
    ("version",),
    binaries.KIND,
    "install kind 0.27 or later: https://kind.sigs.k8s.io/docs/user/quick-start/#installation",
)
# One minor version beside the API server's on both sides, which is what Kubernetes supports.
KUBECTL = Tool(
    "kubectl",
    (1, 33),
    (1, 35),
    ("version", "--client"),
    binaries.KUBERNETES,
    "install kubectl 1.33 to 1.35: https://kubernetes.io/docs/tasks/tools/",
)
HELM = Tool(
    "helm",
    (3, 14),
    (4, 99),
    ("version", "--short"),
    binaries.HELM,
    "install Helm 3.14 or later: https://helm.sh/docs/intro/install/",
)


def kind() -> Path:
    """Return the path of kind.

    Raises:
        ClusterError: it cannot be obtained; the text has advice for the installation.
    """
    url = f"https://github.com/kubernetes-sigs/kind/releases/download/v{KIND.pinned}/kind-{_platform()}"

    def download(out: Path) -> None:
        downloads.release(url, f"{url}.sha256sum", out)

    return KIND.on_path() or _obtained(KIND, download, f"sigs.k8s.io/kind@v{KIND.pinned}")


def helm() -> Path:
    """Return the path of helm. Raises the errors of `kind`."""
    archive = f"helm-v{HELM.pinned}-{_platform()}.tar.gz"

    def download(out: Path) -> None:
        local = out.with_name(archive)
        downloads.release(f"https://get.helm.sh/{archive}", f"https://get.helm.sh/{archive}.sha256sum", local)
        downloads.extract(local, f"{_platform()}/helm", out)

    return HELM.on_path() or _obtained(HELM, download, f"helm.sh/helm/v4/cmd/helm@v{HELM.pinned}")


def kubectl() -> Path:
    """Return the path of kubectl, from PATH or downloaded. Raises the errors of `kind`."""
    url = f"https://dl.k8s.io/release/v{KUBECTL.pinned}/bin/{_platform('/')}/kubectl"

    def download(out: Path) -> None:
        downloads.release(url, f"{url}.sha256", out)

    return KUBECTL.on_path() or _obtained(KUBECTL, download, "k8s.io/kubernetes/cmd/kubectl")


def kubectl_of_node(container: str, image: str) -> Path:
    """kubectl, from PATH or copied out of the kind node `container`, which is made of `image`. Only on Linux.

    Raises:
        ClusterError: there is no such node, or it has none.
    """
    if found := KUBECTL.on_path():
        return found
    command = ["docker", "cp", "--follow-link", f"{container}:/usr/bin/kubectl"]
    return binaries.cached(
        "kubectl",
        f"of-node-{hashlib.sha256(image.encode()).hexdigest()[:12]}",
        "copying kubectl out of the node",
        lambda step, out: step.run([*command, str(out)], env=docker.environment(), timeout=120),
        hint="`make up` creates or starts the node",
    )


def obtain(*getters: Callable[[], object], problems: list[str] | None = None) -> None:
    """Call all getters, also after one has failed.

    Args:
        problems: the problems that are known already.

    Raises:
        ClusterError: there are problems; the message lists all of them.
    """
    found = list(problems or [])
    # With Go, all tools can be built in minutes, which is useless if there are other problems.
    for getter in () if found and shutil.which("go") else getters:
        try:
            getter()
        except ClusterError as error:
            found.append(str(error))
    if found:
        items = "".join("\n  - " + problem.replace("\n", "\n    ") for problem in found)
        raise ClusterError(f"nothing was created, because this is missing or in the way:{items}")


def parse_version(text: str) -> Version:
    """Return the first `1.2.3` in `text` as (1, 2); (0, 0) if there is none."""
    found = re.search(r"\bv?(\d+)\.(\d+)\.\d+", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _obtained(tool: Tool, download: Callable[[Path], None], package: str) -> Path:
    def get(step: Step, out: Path) -> None:
        try:
            download(out)
            return
        except ClusterError as error:
            failed = error
        if shutil.which("go") is None:
            raise failed
        with step.log.open("a") as log:
            log.write(f"{failed}; building {package} instead\n")
        # The module of hyperkube names the versions of all that Kubernetes consists of.
        if "@" in package:
            binaries.go_install(step, package, out)
        else:
            binaries.go_build(step, HERE / "hyperkube", out, package=package, ldflags=binaries.kubernetes_ldflags())

    usual = "seconds to download, else 2 to 6 min to build with Go"
    return binaries.cached(
        tool.name, f"{tool.pinned}-tool", f"obtaining {tool.name} {tool.pinned}", get, usual=usual, hint=tool.install
    )


def _platform(separator: str = "-") -> str:
    machine = platform.machine().lower()
    return f"{sys.platform}{separator}{ARCHITECTURES.get(machine, machine)}"


def _dotted(version: Version) -> str:
    return ".".join(map(str, version)) if version != (0, 0) else "unknown"
