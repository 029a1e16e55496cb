"""The processes of pods whose node is on this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path


def processes_with(variable: str, value: str) -> list[int]:
    """Return the ids of the processes that have a variable in their environment. Others' may be hidden."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"{variable}={value}".encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def any_left(processes: Iterable[int]) -> bool:
    """Return whether any of these processes exists. Its environment is unreadable before its sockets are closed."""
    return any(Path("/proc", str(process)).exists() for process in processes)
