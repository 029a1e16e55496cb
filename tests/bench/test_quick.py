"""The benchmark runs, and every available server delivers every event."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_relay_beside_ws() -> None:
    if shutil.which("npm") is None:
        pytest.skip("node and npm are not installed: there is no ws to measure against")
    command = [sys.executable, "-m", "bench.relay", "--quick", "--only", "userrealtime", "ws"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert rows[0] == "| | userrealtime | ws |"
    assert len(rows) == 11
    assert not any("—" in row for row in rows), done.stdout
