"""The process's age is that of the process, not of the module."""

from __future__ import annotations

import subprocess
import sys
import time

from testing.patience import PATIENCE_S


def test_the_age_begins_with_the_process() -> None:
    code = "import time; time.sleep(0.3); from userrealtime_relay.process.uptime import age; print(age())"
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    assert 0.28 <= float(done.stdout) <= time.monotonic() - began + 0.02  # the kernel counts in hundredths
