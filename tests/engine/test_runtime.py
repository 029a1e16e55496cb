import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from testing.engine import runtime

ALL = (1 << 41) - 1
LESS = ALL & ~(1 << 24)


def status(mask: int) -> str:
    return f"Name:\tx\nCapPrm:\t{ALL:016x}\nCapEff:\t{mask:016x}\nCapBnd:\t{ALL:016x}\n"


def test_effective_capabilities_are_read() -> None:
    assert runtime.effective(status(LESS)) == LESS


@pytest.mark.parametrize(("mask", "lacking"), [(ALL, set()), (LESS, {"CAP_SYS_RESOURCE"})])
def test_only_what_this_machine_lacks_is_removed(mask: int, lacking: set[str]) -> None:
    assert runtime.lacking(status(mask)) == lacking


def test_a_capability_is_removed_from_every_set() -> None:
    both = ["CAP_CHOWN", "CAP_SYS_RESOURCE"]
    process = {"args": ["sh"], "capabilities": {"bounding": both, "effective": both}}
    one = ["CAP_CHOWN"]
    assert runtime.without(process, {"CAP_SYS_RESOURCE"}) == {
        "args": ["sh"],
        "capabilities": {"bounding": one, "effective": one},
    }


def test_a_process_without_capabilities_stays_as_it_is() -> None:
    assert runtime.without({"args": ["sh"]}, {"CAP_SYS_RESOURCE"}) == {"args": ["sh"]}


@pytest.fixture
def runc(tmp_path: Path) -> Path:
    """A directory with a `runc` that prints its arguments."""
    program = tmp_path / "bin" / "runc"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program.parent


@pytest.mark.parametrize(
    ("option", "file", "inside"), [("--bundle", "config.json", True), ("--process", "process.json", False)]
)
def test_a_specification_is_rewritten_and_runc_started(
    runc: Path, tmp_path: Path, option: str, file: str, inside: bool
) -> None:
    process = {"capabilities": {"bounding": ["CAP_CHOWN", "CAP_SYS_RESOURCE"]}}
    path = tmp_path / file
    path.write_text(json.dumps({"process": process} if inside else process))
    value = str(tmp_path if inside else path)
    done = subprocess.run(
        [sys.executable, "-I", "-S", runtime.__file__, "create", option, value, "name"],
        env={**os.environ, "PATH": f"{runc}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stdout == f"create {option} {value} name\n"
    written = json.loads(path.read_text())
    kept = (written["process"] if inside else written)["capabilities"]["bounding"]
    lacking = runtime.lacking(Path("/proc/self/status").read_text())
    assert kept == [name for name in process["capabilities"]["bounding"] if name not in lacking]
