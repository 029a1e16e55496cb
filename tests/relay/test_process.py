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


def test_imports_leave_out_what_the_relay_does_not_use() -> None:
    code = """
import gc, sys
from userrealtime_relay.process.imports import UNUSED, fast_imports
with fast_imports():
    print(gc.isenabled())
    import userrealtime_relay.server
print(gc.isenabled(), gc.get_freeze_count() > 0)
print([name for name in (*UNUSED, "http.client", "starlette", "tempfile", "zipfile") if name in sys.modules])
with fast_imports():
    import userrealtime_relay.transports.application, uvicorn
print([name for name in (*UNUSED, "click") if name in sys.modules], uvicorn.Config.__name__)
"""
    expected = ["False", "True", "True", "[]", "[]", "Config"]
    assert run(code) == expected, "a library imports a module in UNUSED from elsewhere"


def test_unused_modules_can_be_imported_later() -> None:
    code = """
import importlib
from userrealtime_relay.process.imports import UNUSED, fast_imports
with fast_imports():
    from http.server import BaseHTTPRequestHandler as unused
print(unused.__mro__[1:])
with fast_imports():
    import userrealtime_relay.transports.application
for name in UNUSED:
    print(type(importlib.import_module(name)).__name__)
import http.server, urllib.request
print(http.server.BaseHTTPRequestHandler is not unused, urllib.request.urlopen.__name__)
"""
    assert run(code) == ["(<class", "'object'>,)", *["module"] * 7, "True", "urlopen"]


def test_modules_that_were_imported_before_stay() -> None:
    code = """
import http.server
from userrealtime_relay.process.imports import fast_imports
with fast_imports():
    import userrealtime_relay.server
import sys
print(sys.modules["http.server"] is http.server, http.server.HTTPServer.__name__)
"""
    assert run(code) == ["True", "HTTPServer"]


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
