import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from testing.cluster import progress
from testing.cluster.errors import ClusterError
from testing.cluster.progress import clock, exclusive, step
from testing.patience import PATIENCE_S


def test_clock() -> None:
    assert [clock(0), clock(61.9), clock(3600)] == ["00:00", "01:01", "60:00"]


def test_a_step_says_when_it_starts_and_ends(capsys: pytest.CaptureFixture[str]) -> None:
    with step("making tea", usual="4 min"):
        pass
    first, last = capsys.readouterr().out.splitlines()
    assert first == "▸ making tea (usually 4 min) …"
    assert last.startswith("✓ making tea  00:0")


def test_a_long_step_shows_that_it_lives(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "HEARTBEAT", 0.01)
    seen = ""
    with step("making tea"):
        while seen.count("▸ making tea … 00:00") < 2:
            seen += capsys.readouterr().out


def test_a_failure_tells_step_log_and_hint(capsys: pytest.CaptureFixture[str]) -> None:
    script = "print('no water'); raise SystemExit(3)"
    with pytest.raises(ClusterError) as caught, step("making tea", hint="fill the kettle") as current:
        current.run([sys.executable, "-c", script], timeout=30)
    text = str(caught.value)
    assert text.startswith("making tea: ")
    assert "status 3" in text
    assert "    no water" in text
    assert str(current.log) in text
    assert text.endswith("fill the kettle")
    assert "✗ making tea" in capsys.readouterr().out


def await_end(pid: str) -> None:
    child = Path("/proc", pid.strip(), "cmdline")
    deadline = time.monotonic() + PATIENCE_S
    # A process that has ended and was not yet reaped has no command line.
    while child.exists() and child.read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_command_that_takes_too_long_is_ended_with_all_it_started(tmp_path: Path) -> None:
    script = f"sleep 60 & echo $! > {tmp_path}/pid; wait"
    with pytest.raises(ClusterError, match=r"sh took longer than 1 s"), step("waiting") as current:
        current.run(["sh", "-c", script], timeout=1)
    await_end((tmp_path / "pid").read_text())


def test_who_is_ended_ends_its_command(tmp_path: Path) -> None:
    script = f"""
from testing.cluster.progress import heed_sigterm, step
heed_sigterm()
with step("waiting") as current:
    current.run(["sh", "-c", "echo $$ > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/pid; exec sleep 60"], timeout=60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + PATIENCE_S
        while not (tmp_path / "pid").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.terminate()
        assert process.wait(timeout=30) == 128 + signal.SIGTERM
    await_end((tmp_path / "pid").read_text())


def test_a_program_that_is_missing_is_named() -> None:
    with pytest.raises(ClusterError, match="no-such-program is not installed"), step("trying") as current:
        current.run(["no-such-program"], timeout=5)


def test_one_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    with exclusive("thing"):
        with pytest.raises(ClusterError, match="another run has held"), exclusive("thing", timeout=0):
            pytest.fail("two at a time")
        with exclusive("other thing"):
            pass
    assert "another run is at work" in capsys.readouterr().out
    with exclusive("thing", timeout=0):
        pass
