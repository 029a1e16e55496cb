"""The system packages that the local cluster needs, which are installed if possible."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from testing.cluster.errors import ClusterError
from testing.cluster.progress import step

from .components import CNI_DIRECTORIES, ENVIRONMENT

# Program to Debian package.
PROGRAMS = {
    "containerd": "containerd",
    "runc": "runc",
    "nft": "nftables",
    "ip": "iproute2",
    "openssl": "openssl",
    "unshare": "util-linux",
    "mount": "mount",
    "buildah": "buildah",
    "debootstrap": "debootstrap",
}
# Debian asks this program whether a service may be started.
POLICY = Path("/usr/sbin/policy-rc.d")
CNI_PACKAGE = "containernetworking-plugins"


def missing(programs: Mapping[str, str] = PROGRAMS) -> list[str]:
    """Return the Debian packages whose programs are missing, sorted."""
    packages = [package for program, package in programs.items() if not _which(program)]
    if not cni_binaries():
        packages.append(CNI_PACKAGE)
    return sorted(packages)


def problems() -> list[str]:
    """Return the packages that `ensure` cannot install, in a sentence with advice; empty if there are none."""
    packages = missing()
    if not packages or _which("apt-get"):
        return []
    return [f"the local cluster needs {' '.join(packages)}: install these packages (the names are Debian's)"]


def ensure(programs: Mapping[str, str] = PROGRAMS) -> None:
    """Install the missing packages with apt-get.

    Args:
        programs: the Debian package of each program.

    Raises:
        ClusterError: something is missing and apt-get is not there or fails; the packages are named.
    """
    packages = missing(programs)
    if not packages:
        return
    names = " ".join(packages)
    if not _which("apt-get"):
        raise ClusterError(f"the local cluster needs {names}: install these packages (the names are Debian's)")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with step(f"installing {names} with apt-get", usual="under a minute") as current, _no_services():
        current.run(["apt-get", "update"], env=environment, timeout=300)
        install = ["apt-get", "install", "--yes", "--no-install-recommends", *packages]
        current.run(install, env=environment, timeout=900)
        if still := missing(programs):
            raise ClusterError(f"still missing after the installation: {' '.join(still)}")


@contextmanager
def _no_services() -> Iterator[None]:
    """Prevent packages from starting their services while the block runs: containerd runs only in the node."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()


def cni_binaries() -> str:
    """Return the directory of the CNI plugins, empty if none has `ptp`."""
    return next((directory for directory in CNI_DIRECTORIES if Path(directory, "ptp").exists()), "")


def _which(program: str) -> str | None:
    return shutil.which(program, path=ENVIRONMENT["PATH"])
