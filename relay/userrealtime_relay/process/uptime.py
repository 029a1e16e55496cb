"""The age of this process."""

from __future__ import annotations

import os
import time
from pathlib import Path


def age() -> float | None:
    """Return the seconds since the process was started, before Python began; None if the kernel has no /proc."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, IndexError, ValueError):
        return None
