"""The node's first process.

Started by `unshare` as process 1 of its own namespaces: `python -m testing.cluster.local.node SPEC FD`, FD being the
listening socket of the ingress. It says `ready` on its standard output, waits for a line on its standard input (by
then its interface is there), sets up the inside of the node, starts the components in order and from then on
restarts each one that ends. Being process 1 it also reaps what the containers leave, and its end is the end of every
process in the node.
"""

import fcntl
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from userrealtime_core.trust import client_context

from .components import ENVIRONMENT, PKI, SYSTEM_CGROUP, NodeSpec, Process
from .leftovers import cgroup_roots

START_LIMIT = 60.0
RESTART_DELAY = 1.0
LISTENER = 3  # The descriptor under which a component finds its listening socket, as with systemd.


def main() -> None:
    spec = NodeSpec.from_json(Path(sys.argv[1]).read_text())
    # Moved out of the way of descriptor 3, and closed in every component but the one it is for.
    listener = fcntl.fcntl(int(sys.argv[2]), fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(int(sys.argv[2]))
    print("ready", flush=True)
    if not sys.stdin.readline():
        sys.exit("node: the parent process has ended")
    set_up(spec)
    supervise(spec.processes, listener)


def set_up(spec: NodeSpec) -> None:
    """Set mounts, kernel values, host name and addresses; they are visible only in the node."""
    for root in cgroup_roots():
        if (root / SYSTEM_CGROUP).exists():
            (root / SYSTEM_CGROUP / "cgroup.procs").write_text("0")  # this process, and so its children
    state = Path(spec.state)
    # /var/lib last: it hides the state's own path.
    for source, target in ((state / "log", "/var/log"), (state / "lib", "/var/lib")):
        _run("mount", "--bind", str(source), target)
    _run("mount", "-t", "proc", "proc", "/proc")
    _run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    # Volumes mounted after a container started show up in it only over shared mounts.
    _run("mount", "--make-rshared", "/")
    for name, value in spec.kernel_values.items():
        override = Path("/run/sys", name)
        override.parent.mkdir(parents=True, exist_ok=True)
        override.write_text(f"{value}\n")
        _run("mount", "--bind", str(override), f"/proc/sys/{name}")
    socket.sethostname(spec.hostname)
    _run("ip", "link", "set", "lo", "up")
    for address in spec.addresses:
        # An IPv6 address can be used at once, without the check whether another machine has it.
        _run("ip", "address", "add", address, "dev", "node0", *(["nodad"] if ":" in address else []))
    _run("ip", "link", "set", "node0", "up")
    for family, forwarding in (("-4", "ipv4/ip_forward"), ("-6", "ipv6/conf/all/forwarding")):
        if any((":" in address) == (family == "-6") for address in spec.addresses):
            Path("/proc/sys/net", forwarding).write_text("1\n")
            # An immediate answer, not a timeout, and no packet that this machine might forward.
            _run("ip", family, "route", "add", "unreachable", "default")


def supervise(processes: Sequence[Process], listener: int) -> None:
    """Start all components in order, then restart each that ends. Never returns."""
    running: dict[int, Process] = {}
    for process in processes:
        running[start(process, listener)] = process
        wait_ready(process)
    while True:
        pid, status = os.wait()
        ended = running.pop(pid, None)
        if ended is not None:
            log(f"{ended.name} ended with {os.waitstatus_to_exitcode(status)}, restarting")
            # One at a time limits the rate of a component that ends repeatedly right after its start.
            time.sleep(RESTART_DELAY)
            running[start(ended, listener)] = ended


def start(process: Process, listener: int) -> int:
    """Start a component, whose output is appended to its log; return its process id."""
    output = f"/var/log/{process.name}.log"
    actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    if process.listens:
        actions.append((os.POSIX_SPAWN_DUP2, listener, LISTENER))
    # Not `subprocess`: it reaps children itself, and `os.wait` would miss them.
    return os.posix_spawnp(process.argv[0], list(process.argv), ENVIRONMENT, file_actions=actions, setpgroup=0)


def wait_ready(process: Process) -> None:
    """Wait until the component responds, at most `START_LIMIT` seconds; then continue without it."""
    deadline = time.monotonic() + START_LIMIT
    while process.ready and not _answers(process.ready):
        if time.monotonic() > deadline:
            log(f"{process.name} does not answer at {process.ready}, going on")
            return
        time.sleep(0.05)


def _answers(address: str) -> bool:
    if address.startswith("https://"):
        context = client_context(PKI / "ca.crt")
        try:
            with urllib.request.urlopen(address, timeout=2, context=context):
                return True
        except OSError:
            return False
    host, _, port = address.rpartition(":")
    unix = address.startswith("/")
    with socket.socket(socket.AF_UNIX if unix else socket.AF_INET) as probe:
        probe.settimeout(1)
        return probe.connect_ex(address if unix else (host, int(port))) == 0


def log(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=30)


if __name__ == "__main__":
    main()
