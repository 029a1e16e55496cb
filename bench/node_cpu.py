"""The CPU time of the components of the local cluster, from the kernel's counters of its processes."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from testing.cluster.local.cluster import _node

CONTAINER_RUNTIME: Final = "container runtime (containerd, shims, runc, CNI)"
RELAY: Final = "relay"
OTHER: Final = "other processes"
_COMPONENTS: Final = (
    ("kube-apiserver", "API server and etcd"),
    ("hyperkube etcd", "API server and etcd"),
    ("kube-controller-manager", "controller manager and scheduler"),
    ("kube-scheduler", "controller manager and scheduler"),
    ("hyperkube kubelet", "kubelet"),
    ("containerd", CONTAINER_RUNTIME),
    ("runc", CONTAINER_RUNTIME),
    ("/pause", CONTAINER_RUNTIME),
    ("userrealtime_operator.activator", "activators"),
    ("userrealtime_operator", "operators"),
    ("userrealtime_relay", RELAY),
    ("postgres", "Postgres"),
)
"""A part of the command line, and the component. The first match counts."""


def component_of(command: str) -> str:
    """Return the component to which a process with this command line belongs."""
    return next((component for part, component in _COMPONENTS if part in command), OTHER)


def cpu_seconds(statistics: str) -> float:
    """Return the CPU time of a process and its ended children, given the contents of /proc/PID/stat."""
    fields = statistics.rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def read_cpu() -> dict[str, float] | None:
    """Return the CPU seconds of each component since its start; None if the local cluster does not run.

    The time of a process that has ended is in that of its parent.
    """
    first = _node()
    if first is None:
        return None
    found: dict[str, float] = defaultdict(float)
    for command, statistics in _processes(first):
        found[component_of(command)] += cpu_seconds(statistics)
    return found


def difference(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Return the CPU seconds between two readings."""
    return {component: seconds - before.get(component, 0.0) for component, seconds in after.items()}


def _processes(first: int) -> Iterator[tuple[str, str]]:
    """Yield the command line and the statistics of a process and of all its descendants."""
    children: dict[int, list[int]] = defaultdict(list)
    statistics: dict[int, str] = {}
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            try:
                text = (directory / "stat").read_text()
            except OSError:
                continue  # it has ended
            pid = int(directory.name)
            statistics[pid] = text
            children[int(text.rpartition(")")[2].split()[1])].append(pid)
    pending = [first]
    while pending:
        pid = pending.pop()
        pending += children[pid]
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        yield command, statistics.get(pid, ") 0 0" + " 0" * 20)
