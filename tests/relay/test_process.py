"""The start of the process: its age, and its imports."""

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


def run(code: str) -> list[str]:
    """Run Python code in a new process; return the words of its output."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True).stdout.split()


def test_imports_leave_out_the_command_line_of_uvicorn() -> None:
    code = """
import gc, sys
from userrealtime_relay.process.imports import fast_imports
with fast_imports():
    print(gc.isenabled())
    import userrealtime_relay.server, uvicorn
print(gc.isenabled(), gc.get_freeze_count() > 0, "click" in sys.modules, uvicorn.Config.__name__)
"""
    assert run(code) == ["False", "True", "True", "False", "Config"], "uvicorn imports its command line from elsewhere"


def test_a_failed_import_does_not_disable_the_collector() -> None:
    code = """
import gc
from userrealtime_relay.process.imports import fast_imports
try:
    with fast_imports():
        import a_module_that_does_not_exist
except ImportError:
    print(gc.isenabled())
"""
    assert run(code) == ["True"]
