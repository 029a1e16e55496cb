"""Debian packages of the engine, unpacked into the cache and never installed on the machine."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from testing.cluster.errors import ClusterError
from testing.cluster.paths import cache
from testing.cluster.process import run
from testing.cluster.progress import Step, step

PACKAGES = ("docker.io", "iptables", "slirp4netns", "nftables", "iproute2", "procps")
# Links that Debian's installation scripts would make.
XTABLES = tuple(f"{family}{action}" for family in ("iptables", "ip6tables") for action in ("", "-save", "-restore"))
DOWNLOAD = ("apt-get", "install", "--yes", "--no-install-recommends", "-qq")


def engine_packages() -> Path:
    """A directory whose `usr` adds to the machine's own `/usr` what the engine needs.

    Raises:
        ClusterError: apt-get is not there, or cannot download the packages.
    """
    if shutil.which("apt-get") is None:
        raise ClusterError("the engine is made of Debian packages, and apt-get is not here: use a Debian machine")
    try:
        listing = _missing()
    except ClusterError:
        with step("updating apt's lists") as current:
            current.run(["apt-get", "update"], timeout=300)
        listing = _missing()
    target = cache("engine", f"packages-{hashlib.sha256(listing.encode()).hexdigest()[:12]}")
    if not target.exists():
        with (
            step("downloading Docker", usual="under a minute") as current,
            tempfile.TemporaryDirectory(dir=target.parent) as workspace,
        ):
            _unpack(current, Path(workspace))
            Path(workspace, "root").replace(target)
    return target


def _missing() -> str:
    """Return the packages that apt-get would download for PACKAGES. Raises the errors of `engine_packages`."""
    return run(DOWNLOAD[0], *DOWNLOAD[1:], "--print-uris", *PACKAGES, timeout=60)


def _unpack(current: Step, workspace: Path) -> None:
    archives, root = workspace / "archives", workspace / "root"
    (archives / "partial").mkdir(parents=True)
    command = [*DOWNLOAD, "--download-only", "-o", f"Dir::Cache::archives={archives}", *PACKAGES]
    current.run(command, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, timeout=900)
    for package in sorted(archives.glob("*.deb")):
        current.run(["dpkg", "--extract", package, root], timeout=120)
    usr = root / "usr"
    for merged in ("bin", "sbin", "lib"):
        if (root / merged).is_dir():
            shutil.copytree(root / merged, usr / merged, symlinks=True, dirs_exist_ok=True)
    # kind mounts it into its nodes; Docker would make it on the machine.
    (usr / "lib" / "modules").mkdir(parents=True, exist_ok=True)
    for name in XTABLES:
        if not Path("/usr/sbin", name).exists() and not (usr / "sbin" / name).exists():
            (usr / "sbin" / name).symlink_to("xtables-nft-multi")
