"""What the kernel knows of this process."""

from __future__ import annotations

import os
import time
from pathlib import Path


def age() -> float | None:
    """Seconds since the process was started, before Python was; None where the kernel does not say."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, IndexError, ValueError):
        return None
