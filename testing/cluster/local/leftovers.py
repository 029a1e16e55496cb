"""The remains of a local cluster on the machine. After `down` there are none.

It checks the machine itself, not records, and so also finds remains whose record was lost.
"""

import json
import os
import re
import subprocess
from pathlib import Path

from testing.cluster.paths import STATE

from .components import CGROUP, INTERFACE

NODE_MODULE = "testing.cluster.local.node"


def leftovers() -> list[str]:
    """Return a line for each process, mount, interface, control group or directory of a local cluster."""
    found = [f"process {pid}: {command}" for pid, command in processes()]
    found += [f"mount {target}" for target in mounts()]
    if (Path("/sys/class/net") / INTERFACE).exists():
        found.append(f"interface {INTERFACE}")
    found += [f"control group {path}" for path in cgroups()]
    if STATE.exists():
        found.append(f"directory {STATE}")
    return found


def processes() -> list[tuple[int, str]]:
    """Return the node's first process and the processes in the cluster's control group, with command lines."""
    found = []
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit() or int(directory.name) == os.getpid():
            continue
        try:
            command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            member = f":/{CGROUP}/" in (directory / "cgroup").read_text()
        except OSError:
            continue  # It ended during this check.
        if member or f"-m {NODE_MODULE} {STATE}/" in command:
            found.append((int(directory.name), command))
    return found


def mounts() -> list[str]:
    """Return the mount points in the state directory. All others are in the node's mount namespace and end with it."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    targets = [re.sub(r"\\040", " ", line.split(" ")[4]) for line in lines]
    return [target for target in targets if Path(target).is_relative_to(STATE)]


def cgroups() -> list[Path]:
    """Return the cluster's control group in every hierarchy."""
    return [path for root in cgroup_roots() if (path := root / CGROUP).exists()]


def cgroup_roots() -> list[Path]:
    """Return the mount points of control group hierarchies: several with version 1, one with version 2."""
    roots = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, filesystem = line.partition(" - ")
        if filesystem.split(" ")[0] in ("cgroup", "cgroup2"):
            roots.append(Path(fields.split(" ")[4]))
    return roots


def snapshot() -> set[str]:
    """The machine's mounts, interfaces, routes, nft tables, named network namespaces and the kernel values at stake.

    Taken before `up` and after `down`, two snapshots are equal.
    """
    facts = {f"mount {line.split(' ')[4]}" for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    facts |= {f"interface {path.name}" for path in Path("/sys/class/net").iterdir()}
    facts |= {f"route {route['dst']} {route.get('dev')}" for route in json.loads(_output("ip", "-json", "route"))}
    facts |= {f"nft {line}" for line in _output("nft", "list", "tables").splitlines()}
    namespaces = Path("/run/netns")
    facts |= {f"netns {path.name}" for path in namespaces.iterdir()} if namespaces.exists() else set()
    for name in ("net/ipv4/ip_forward", "vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops"):
        facts.add(f"sysctl {name} {Path('/proc/sys', name).read_text().strip()}")
    facts |= {f"control group {path}" for root in cgroup_roots() for path in root.iterdir() if path.is_dir()}
    return facts


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout
