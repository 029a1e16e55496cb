"""Starting and ending the engine: namespaces, network, removal, and the check that nothing is left."""

import contextlib
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from testing.cluster.errors import ClusterError
from testing.cluster.local.components import KERNEL_VALUES
from testing.cluster.local.leftovers import cgroup_roots, snapshot
from testing.cluster.local.packages import ensure
from testing.cluster.paths import REPOSITORY, cache
from testing.cluster.progress import exclusive, step

from . import images
from .node import OTHER_KERNEL_VALUES
from .packages import engine_packages
from .paths import CGROUP, STATE
from .spec import Import, Spec

# Program to Debian package: what the machine itself needs, as for the local cluster.
PROGRAMS = {
    "debootstrap": "debootstrap",
    "ip": "iproute2",
    "nft": "nftables",
    "setpriv": "util-linux",
    "unshare": "util-linux",
}
SETUP_LIMIT = 30.0
END_LIMIT = 30.0
NAMESPACES = ("--mount", "--net", "--pid", "--ipc", "--uts", "--cgroup", "--fork", "--kill-child=KILL", "--mount-proc")


def prepare() -> tuple[Path, list[images.StandIn]]:
    """The engine's packages and the stand-in images, made if they are not in the cache.

    Raises:
        ClusterError: something cannot be made, or this is not root on Linux.
    """
    if sys.platform != "linux" or os.geteuid() != 0:
        raise ClusterError("the engine needs Linux and root: it runs in separate namespaces")
    ensure(PROGRAMS)
    return engine_packages(), images.stand_ins()


def run(command: Sequence[str], *, compare: bool = False) -> int:
    """Run a command with a Docker engine and return its exit status. The engine is removed afterwards.

    Args:
        compare: check that the machine has not changed: `unchanged`.

    Raises:
        ClusterError: the engine cannot be started, or something is left of it.
    """
    with exclusive("engine"):
        packages, stand_ins = prepare()
        remove()
        with unchanged() if compare else contextlib.nullcontext():
            return _run(command, packages, stand_ins)


def _run(command: Sequence[str], packages: Path, stand_ins: Sequence[images.StandIn]) -> int:
    STATE.mkdir(parents=True, mode=0o700)
    spec = Spec(
        packages=str(packages),
        images=[Import(image.reference, str(image.root), image.changes) for image in stand_ins],
        command=command,
        environment=environment(),
    )
    path = STATE / "spec.json"
    path.write_text(spec.to_json())
    try:
        with _namespaces(path, packages) as process:
            status = process.wait()
    finally:
        with step("removing the engine"):
            remove()
    return status if status >= 0 else 128 - status


@contextmanager
def unchanged() -> Iterator[None]:
    """Compare the machine before and after the block.

    Raises:
        ClusterError: it differs; the differences are named.
    """
    before = snapshot() | kernel_values()
    yield
    after = snapshot() | kernel_values()
    if before != after:
        differences = [f"gone: {fact}" for fact in sorted(before - after)]
        differences += [f"new: {fact}" for fact in sorted(after - before)]
        raise ClusterError("the machine has changed:\n  " + "\n  ".join(differences))


def kernel_values() -> set[str]:
    """The settings of the kernel that a node's systemd and kubelet change where they may."""
    names = (*KERNEL_VALUES, *OTHER_KERNEL_VALUES)
    return {f"kernel value {name} {Path('/proc/sys', name).read_text().strip()}" for name in names}


def environment() -> dict[str, str]:
    """Return the environment of the command, without DOCKER_HOST and PATH.

    The images have other bases than in the local cluster, so their archives are in a separate cache.
    """
    private = cache("engine", "cache")
    programs = private / "userrealtime" / "bin"
    programs.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        programs.symlink_to(cache("bin"))
    variables = {"XDG_CACHE_HOME": str(private), "KIND_NODE_IMAGE": images.NODE}
    if go := shutil.which("go"):
        done = subprocess.run([go, "env", "GOCACHE"], capture_output=True, text=True, timeout=30)
        variables["GOCACHE"] = done.stdout.strip()
    return variables


@contextmanager
def _namespaces(spec: Path, packages: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """The process that holds the namespaces, with its network connected. Killed when the block ends."""
    ready, ready_there = os.pipe()
    go_there, go = os.pipe()
    # When this process is killed, unshare is as well, and with it everything in its namespaces.
    command = ["setpriv", "--pdeathsig=KILL", "unshare", *NAMESPACES, "--propagation=private"]
    command += [sys.executable, "-m", "testing.engine.inside", str(spec), str(ready_there), str(go_there)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    groups = _make_cgroups()

    def enter() -> None:
        for group in groups:
            (group / "cgroup.procs").write_text("0")

    # The control groups first: the namespace of control groups begins where the process is.
    with subprocess.Popen(command, pass_fds=(ready_there, go_there), env=environment, preexec_fn=enter) as process:
        os.close(ready_there)
        os.close(go_there)
        try:
            _await_byte(ready, "the mounts")
            with _network(process.pid, packages):
                os.write(go, b"1")
                yield process
        finally:
            process.kill()
            os.close(ready)
            os.close(go)


@contextmanager
def _network(pid: int, packages: Path) -> Iterator[None]:
    """A way out of the network namespace of `pid`: through a process of ours, without any setting of the machine."""
    ready, ready_there = os.pipe()
    program = packages / "usr/bin/slirp4netns"
    if not program.exists():
        program = Path("slirp4netns")
    command = ["setpriv", "--pdeathsig=KILL", str(program), "--configure", "--mtu=1400", "--disable-host-loopback"]
    command += [f"--ready-fd={ready_there}", str(pid), "tap0"]
    libraries = ":".join(str(path) for path in (packages / "usr/lib").glob("*-linux-gnu*"))
    log = cache("log", "engine-network.log")
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command,
            env={**os.environ, "LD_LIBRARY_PATH": libraries},
            pass_fds=(ready_there,),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        ) as process,
    ):
        os.close(ready_there)
        try:
            _await_byte(ready, f"its network ({log})")
            yield
        finally:
            process.kill()
            os.close(ready)


def _await_byte(descriptor: int, what: str) -> None:
    readable, _, _ = select.select([descriptor], [], [], SETUP_LIMIT)
    if not readable or not os.read(descriptor, 1):
        raise ClusterError(f"the engine's namespaces cannot be set up: {what}")


def remove() -> None:
    """Remove what the engine of this or an interrupted run left outside of its namespaces.

    Raises:
        ClusterError: some of it stays; it is named.
    """
    deadline = time.monotonic() + END_LIMIT
    while left := leftovers():
        for path in left:
            if path == STATE:
                shutil.rmtree(path, ignore_errors=True)
            else:
                _remove_cgroup(path)
        if time.monotonic() > deadline:
            raise ClusterError("the engine left:\n  " + "\n  ".join(str(path) for path in leftovers()))
        if leftovers():
            time.sleep(0.2)


def leftovers() -> list[Path]:
    """Directories of an engine: its state, and its control group in every hierarchy. The kernel removes the rest."""
    paths = [STATE, *(root / CGROUP for root in cgroup_roots())]
    return [path for path in paths if path.exists()]


def _make_cgroups() -> list[Path]:
    """A control group in every hierarchy, for all processes of the engine."""
    groups = [root / CGROUP for root in cgroup_roots()]
    for group in groups:
        group.mkdir()
        # A new group of this hierarchy has no processors, and takes no processes until it has.
        for name in ("cpuset.cpus", "cpuset.mems"):
            if (group / name).exists() and not (group / name).read_text().strip():
                (group / name).write_text((group.parent / name).read_text())
    return groups


def _remove_cgroup(group: Path) -> None:
    """Remove a control group and those in it, as far as they are empty already."""
    for directory, _, _ in os.walk(group, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(directory)
