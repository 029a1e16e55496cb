"""The benchmark runs, and every available server delivers every event."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_relay_beside_ws_and_a_protocol_beside_its_own_server() -> None:
    if shutil.which("npm") is None:
        pytest.skip("node and npm are not installed: there is no ws to measure against")
    peers = ["userrealtime", "ws", "userrealtime:durable-streams", "durable-streams"]
    command = [sys.executable, "-m", "bench.relay", "--quick", "--only", *peers]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    native, protocols = rows[:11], rows[11:]
    assert native[0] == "| | userrealtime | ws |"
    assert protocols[0] == "| | userrealtime | its own server |"
    assert [row.split(",")[0] for row in protocols[1:]] == [
        "| Durable Streams: memory",
        "| Durable Streams: memory a connection",
        "| Durable Streams: fan-out to 1",
        "| Durable Streams: fan-out to 10",
        "| Durable Streams: fan-out to 50",
    ]
    assert not any("—" in row for row in rows), done.stdout
