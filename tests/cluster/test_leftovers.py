import subprocess
import sys
import time
from pathlib import Path

import pytest

from testing.cluster.local import leftovers
from testing.patience import PATIENCE_S


def test_a_node_is_found_without_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "STATE", tmp_path)
    command = [sys.executable, "-c", "input()", "-m", leftovers.NODE_MODULE, f"{tmp_path}/spec.json", "7"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        try:
            # The kernel continues this process shortly before it shows the new command line.
            deadline = time.monotonic() + PATIENCE_S
            while process.pid not in dict(leftovers.processes()) and time.monotonic() < deadline:
                time.sleep(0.01)
            assert process.pid in dict(leftovers.processes())
        finally:
            process.kill()
    assert process.pid not in dict(leftovers.processes())


def test_the_state_directory_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "STATE", tmp_path / "state")
    assert not [line for line in leftovers.leftovers() if line.startswith("directory")]
    (tmp_path / "state").mkdir()
    assert f"directory {tmp_path / 'state'}" in leftovers.leftovers()
