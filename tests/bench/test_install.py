"""Programs for the benchmark are built once, and a missing or failing tool is reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.relay import install

# A build tool that notes its arguments and makes the program. `--root` is followed by the folder.
CARGO = """#!/bin/sh
echo "$@" >>"$LOG"
while [ "$1" != --root ]; do shift; done
mkdir -p "$2/bin" && touch "$2/bin/server"
"""


def tools(folder: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
    """Make these scripts the only build tools, and an empty folder the cache."""
    folder.mkdir()
    for name, script in scripts.items():
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/bin")
    monkeypatch.setenv("LOG", str(folder / "log"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))


def test_a_crate_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "tools"
    tools(folder, monkeypatch, cargo=CARGO, protoc="")
    prepare = install.cargo("server", "1.2.3", "local", "fast")
    command = prepare()
    assert prepare() == command
    assert Path(command[0]).name == "server"
    assert Path(command[0]).exists()
    (call,) = (folder / "log").read_text().splitlines()
    pinned = "install server --version 1.2.3 --locked --quiet --no-default-features --features local,fast --root"
    assert call.startswith(pinned)


def test_a_missing_tool_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools(tmp_path / "tools", monkeypatch, cargo=CARGO)
    monkeypatch.setenv("PATH", str(tmp_path / "tools"))
    with pytest.raises(install.Unavailable, match="not installed: protoc"):
        install.cargo("server", "1.2.3")()


def test_the_last_line_of_a_failed_build_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools(tmp_path / "tools", monkeypatch, cargo="#!/bin/sh\necho building; echo no linker >&2; exit 1\n", protoc="")
    with pytest.raises(install.Unavailable, match="cargo install server failed: no linker"):
        install.cargo("server", "1.2.3")()
