"""The progress of steps: title, elapsed time and log.

A `step` is one line. On a terminal the line is redrawn every second; elsewhere (a CI log) there is a line at the
start, one every 30 seconds and one at the end. Commands of a step write to the step's log, whose tail is shown when
the step fails.
"""

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .errors import ClusterError
from .paths import cache

HEARTBEAT = 30.0
TAIL_LINES = 15
# Docker puts the reason at the end of a long line.
TAIL_WIDTH = 1000


def clock(seconds: float) -> str:
    """Return elapsed seconds as `mm:ss`."""
    return f"{int(seconds) // 60:02d}:{int(seconds) % 60:02d}"


def note(text: str) -> None:
    """Print a line about something that already exists."""
    print(f"✓ {text}", flush=True)


@contextmanager
def exclusive(name: str, timeout: float = 3600) -> Iterator[None]:
    """Admit one process at a time; the others print a note and wait.

    Raises:
        ClusterError: another process is still active after `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    path = cache("lock", name)
    with path.open("a") as file:
        waiting = False
        while not _locked(file.fileno()):
            if not waiting:
                note(f"another run is at work here ({path} is locked): waiting for it")
                waiting = True
            if time.monotonic() > deadline:
                raise ClusterError(f"another run has held {path} for {timeout:.0f} s; `fuser {path}` names it")
            time.sleep(0.5)
        yield


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@dataclass(frozen=True)
class Step:
    """A step in progress. Its commands write to the file `log`."""

    title: str
    log: Path

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        timeout: float,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        """Run a command, its output into the log.

        Raises:
            ClusterError: it failed, or took longer than `timeout` seconds (it is ended then).
        """
        program = Path(argv[0]).name
        try:
            with self.log.open("ab") as log:
                # A separate process group: all processes of a build can be ended together.
                process = subprocess.Popen(
                    argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, cwd=cwd, start_new_session=True
                )
        except FileNotFoundError:
            raise ClusterError(f"{program} is not installed") from None
        with process:
            try:
                code = process.wait(timeout=timeout)
            except subprocess.TimeoutExpired:
                _end_group(process)
                raise ClusterError(f"{program} took longer than {timeout:.0f} s and was ended") from None
            except BaseException:
                _end_group(process)
                raise
        if code != 0:
            raise ClusterError(f"{program} ended with status {code}")

    def tail(self) -> str:
        """Return the last lines of the log, indented."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(f"    {line[:TAIL_WIDTH]}" for line in lines[-TAIL_LINES:])


def _end_group(process: "subprocess.Popen[bytes]") -> None:
    """End a command and its child processes: with SIGTERM, and after 10 seconds with SIGKILL."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def heed_sigterm() -> None:
    """Let SIGTERM end this process gracefully. Otherwise the commands of its steps would keep running."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


@contextmanager
def step(title: str, *, usual: str = "", hint: str = "") -> Iterator[Step]:
    """Show `title` and the time passed until the block ends.

    Args:
        usual: how long the step usually takes, for a reader who wonders whether it hangs.
        hint: what to try when the step fails.

    Raises:
        ClusterError: raised by the block; the step's name, the tail of its log, the log's path and `hint` are added.
    """
    log = cache("log", re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") + ".log")
    log.write_bytes(b"")
    started = time.monotonic()
    label = f"▸ {title}" + (f" (usually {usual})" if usual else "")
    over = threading.Event()
    ticker = threading.Thread(target=_tick, args=(label, started, over), daemon=True)
    ticker.start()
    outcome = "✗"
    try:
        yield Step(title, log)
        outcome = "✓"
    except ClusterError as error:
        current = Step(title, log)
        parts = [f"{title}: {error}"]
        if tail := current.tail():
            parts += [tail, f"  whole log: {log}"]
        if hint:
            parts.append(f"  {hint}")
        raise ClusterError("\n".join(parts)) from error
    finally:
        over.set()
        ticker.join(timeout=5)
        start_of_line = "\r\x1b[K" if sys.stdout.isatty() else ""
        print(f"{start_of_line}{outcome} {title}  {clock(time.monotonic() - started)}", flush=True)


def _tick(label: str, started: float, over: threading.Event) -> None:
    tty = sys.stdout.isatty()
    interval = 1.0 if tty else HEARTBEAT
    if tty:
        # A line that wraps cannot be redrawn.
        label = label[: shutil.get_terminal_size().columns - len(" … 000:00")]
    print(f"{label} …", end="" if tty else "\n", flush=True)
    while not over.wait(interval):
        elapsed = clock(time.monotonic() - started)
        print(f"\r\x1b[K{label} … {elapsed}" if tty else f"{label} … {elapsed}", end="" if tty else "\n", flush=True)
