"""The first process in the engine's namespaces: `python -m testing.engine.inside SPEC READY GO`.

It sets up the mounts, writes to the descriptor READY, waits for the network (a byte on the descriptor GO), starts the
engine, imports the stand-ins, runs the command and exits with its status. Its end is the end of every process and
mount in the namespaces.
"""

import os
import stat
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from testing.cluster import paths as local_cluster
from testing.cluster.errors import ClusterError
from testing.cluster.progress import Step, step

from .paths import BIN, DATA, PRIVATE, SOCKET, STATE
from .spec import Spec

START_LIMIT = 60.0
RESOLVER = "10.0.2.3"


def main() -> int:
    """Run the command of the specification and return its exit status."""
    spec = Spec.from_json(Path(sys.argv[1]).read_text())
    ready, go = int(sys.argv[2]), int(sys.argv[3])
    child = os.fork()
    if child:
        return _reap(child)
    try:
        set_up(Path(spec.packages))
        os.write(ready, b"1")
        if not os.read(go, 1):
            return 1
        with step("starting Docker", usual="5 s") as current:
            start_engine(current)
        with step("importing the stand-in images", usual="20 s") as current:
            for image in spec.images:
                changes = [f"--change={change}" for change in image.changes]
                current.run(["docker", "import", *changes, image.root, image.reference], timeout=300)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    del os.environ["PYTHONPATH"]
    return subprocess.run(spec.command, env={**os.environ, **spec.environment}).returncode


def _reap(child: int) -> int:
    """Wait for `child` and collect what the containers leave, as process 1 must; the exit status of `child`."""
    while True:
        pid, status = os.wait()
        if pid == child:
            return os.waitstatus_to_exitcode(status)


def set_up(packages: Path) -> None:
    """Set up mounts, programs and network settings, which are visible only in these namespaces."""
    _mount("overlay", "/usr", f"lowerdir={packages}/usr:/usr")
    # What is mounted here shows the control groups and interfaces of these namespaces only.
    groups = control_groups(Path("/proc/self/mountinfo").read_text())
    _mount("sysfs", "/sys")
    if all(group.target != "/sys/fs/cgroup" for group in groups):
        _mount("tmpfs", "/sys/fs/cgroup", "mode=755")
    for group in groups:
        Path(group.target).mkdir(exist_ok=True)
        _mount(group.filesystem, group.target, group.options)
    _mount("tmpfs", "/run", "mode=755")
    BIN.mkdir(parents=True)
    DATA.mkdir()
    _run("mount", "--bind", str(STATE), str(DATA))
    _hide_local_cluster()
    resolver = PRIVATE / "resolv.conf"
    resolver.write_text(f"nameserver {RESOLVER}\n")
    _run("mount", "--bind", str(resolver), "/etc/resolv.conf")
    # The machine may have another docker earlier in PATH.
    (BIN / "docker").symlink_to("/usr/bin/docker")
    runtime = BIN / "container-runtime"
    runtime.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {Path(__file__).with_name("runtime.py")} "$@"\n')
    runtime.chmod(0o755)
    os.environ["PATH"] = f"{BIN}:{os.environ['PATH']}:/usr/sbin:/sbin"
    os.environ["DOCKER_HOST"] = f"unix://{SOCKET}"
    # not the user's directory, because docker writes to it
    os.environ["DOCKER_CONFIG"] = str(PRIVATE / "docker")
    _run("ip", "link", "set", "lo", "up")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1\n")


@dataclass(frozen=True)
class ControlGroups:
    """A hierarchy of control groups: where it is mounted, and how to mount it again."""

    target: str
    filesystem: str
    options: str


def control_groups(mountinfo: str) -> list[ControlGroups]:
    """The hierarchies in the text of `/proc/self/mountinfo`."""
    found = []
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(" - ")
        filesystem, _, options = rest.split(" ")[:3]
        if filesystem == "cgroup2":
            found.append(ControlGroups(fields.split(" ")[4], filesystem, ""))
        elif filesystem == "cgroup":
            names = [option for option in options.split(",") if option not in ("rw", "ro", "xattr")]
            # A hierarchy of version 1 without a controller has a name.
            named = any(name.startswith("name=") for name in names)
            found.append(ControlGroups(fields.split(" ")[4], filesystem, ",".join(["none"] * named + names)))
    return found


def _hide_local_cluster() -> None:
    """Make /var/lib a private copy of the machine's without the state of a local cluster, which may be running."""
    layers = PRIVATE / "var-lib"
    upper, work = layers / "upper", layers / "work"
    upper.mkdir(parents=True)
    work.mkdir()
    # In an overlay, this device means: there is no such file.
    os.mknod(upper / local_cluster.STATE.name, stat.S_IFCHR, os.makedev(0, 0))
    parent = local_cluster.STATE.parent
    _mount("overlay", str(parent), f"lowerdir={parent},upperdir={upper},workdir={work}")


def start_engine(current: Step) -> None:
    """Start the Docker engine and wait until it answers.

    Raises:
        ClusterError: it ended, or does not answer within a minute.
    """
    command = [
        "dockerd",
        f"--host=unix://{SOCKET}",
        f"--data-root={DATA}/docker",
        "--exec-root=/run/docker",
        "--pidfile=/run/docker.pid",
        f"--add-runtime=granted={BIN}/container-runtime",
        "--default-runtime=granted",
        # Lowering it takes a capability that the machine may not grant.
        "--oom-score-adjust=0",
        "--storage-driver=overlay2",
    ]
    with current.log.open("ab") as log:
        engine = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + START_LIMIT
    while subprocess.run(["docker", "version"], capture_output=True, timeout=30).returncode != 0:
        if engine.poll() is not None:
            raise ClusterError(f"dockerd ended with status {engine.returncode}")
        if time.monotonic() > deadline:
            raise ClusterError(f"dockerd does not answer after {START_LIMIT:.0f} s")
        time.sleep(0.2)


def _mount(filesystem: str, target: str, options: str = "") -> None:
    _run("mount", "-t", filesystem, *(["-o", options] if options else []), filesystem, target)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=30)


if __name__ == "__main__":
    sys.exit(main())
